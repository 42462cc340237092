"""How is a PCIe function found, mapped and given memory to reach?"""
