"""What does `python -m nvstream.cli` do? The same as `nvstream`."""

from nvstream.cli import main

main()
