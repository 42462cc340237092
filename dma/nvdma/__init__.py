"""Which package moves bytes between drives and memory, knowing no model and no request? This one."""
