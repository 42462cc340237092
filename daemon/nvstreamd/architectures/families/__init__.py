"""Which arithmetic is whose? A page for each family: blocks put together."""
