"""How are quantised weights multiplied?"""
