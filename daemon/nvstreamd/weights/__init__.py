"""Where do a layer's bytes lie, and how do they come to memory in time?"""
