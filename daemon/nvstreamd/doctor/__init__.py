"""Which ways to read does this machine have, why not the others, and what would help?"""

# A probe of a scratch file: the option --probe without a file.
SCRATCH = ""
