"""Generated from proto/nvstream/v1 by scripts/generate_protos.py."""
