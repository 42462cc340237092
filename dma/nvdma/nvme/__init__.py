"""How is an NVMe controller driven from user space? (NVM Express Base Specification 2.0)"""
