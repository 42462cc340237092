"""Which hardware is there, may we have it, and how is it taken so that it can always be given back?"""
