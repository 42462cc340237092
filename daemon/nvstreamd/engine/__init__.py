"""How do many requests become tokens? The unprivileged process that computes."""
