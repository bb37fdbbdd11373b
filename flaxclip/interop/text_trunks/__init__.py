"""transformers' text towers in open_clip's models, a file each; a new one is one more.

A module here declares `TRUNKS`; `registry.py` finds them.
"""
