"""Who starts, feeds, watches and replaces the engines?"""
