"""Families of text towers, a file each; a new one is one more file.

A module here declares `FAMILIES`, rows of traits for the text transformer; `registry.py` finds it.
Parameters of layers lie under `transformer/blocks/`, stacked. What lies before them has one of the
names in `fine_tuning.INPUTS`; all else comes after them.
"""
