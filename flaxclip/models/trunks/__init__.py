"""Families of image towers, a file each; a new one is one more file.

A module here declares either `FAMILIES`, rows of traits for the vision transformer, or a subclass
of `TrunkConfig` with a module of its own. `registry.py` finds both.

Parameters of layers, in the order of fine-tuning's layer decay, lie under `transformer/blocks/`, or
under `stage1/`, `stage2/`, ... as `downsample`, `first` and `rest`, of which `rest` is stacked.
What lies before them has one of the names in `fine_tuning.INPUTS`; all else comes after them.
"""
