"""How do a layer's bytes come to memory in time?"""
