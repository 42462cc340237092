"""Which messages cross the socket pair between daemon and engine? Generated from proto/nvstream/engine/v1."""
