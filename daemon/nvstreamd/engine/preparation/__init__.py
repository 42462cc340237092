"""How does a call become tokens without holding up anybody else? Beside the passes, in processes that may be killed."""
