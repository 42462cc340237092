"""Which ways are there to move bytes from a file into an arena? One module for each."""
