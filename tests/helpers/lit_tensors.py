"""LiT's tensors as Google's two libraries name them, read from `parity/lit_reference.py`'s file."""

import json
import re
from pathlib import Path

import numpy as np

from flaxclip.interop.lit import OLD_NUMBERS

REFERENCE = np.load(Path(__file__).parents[1] / "golden" / "lit_reference.npz")
LAYOUTS = ("vision_transformer", "big_vision")


def shapes_of(layout):
    lines = (line.split(" ", 1) for line in REFERENCE[f"{layout}/tensors"].tolist())
    return {name: tuple(json.loads(shape)) for name, shape in lines}


def with_old_numbers(tensors):
    old = {today: before for before, today in OLD_NUMBERS.items()}
    pattern = re.compile("|".join(old))
    return {pattern.sub(lambda m: old[m[0]], name): x for name, x in tensors.items()}
