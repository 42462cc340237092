"""Which ways to read does this machine have, why not the others, and what would help?"""
