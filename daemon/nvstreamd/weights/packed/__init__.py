"""Where do a model's bytes lie on disks and drives, and who wrote them there?"""
