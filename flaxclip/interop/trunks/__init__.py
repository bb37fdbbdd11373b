"""timm's image towers in open_clip's models, a file each for our families; a new one is one more.

A module here declares `TRUNKS`; `registry.py` finds them.
"""
