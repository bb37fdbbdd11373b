"""Positions without embeddings of their own: sines and cosines, and ranges of distances."""

import math

import numpy as np
from jaxtyping import Float32, Int

RANGES = 32
"""Ranges of distances, half of them to each side (Raffel et al. 2020, section 2.1)."""

_FARTHEST = 128
"""Distance from which all are in one range."""


def sinusoids(positions: int, width: int) -> Float32[np.ndarray, "positions width"]:
    """All sines, then all cosines, as in tensor2tensor; frequencies fall from 1 to 1/10,000."""
    half = width // 2
    frequencies = np.exp(np.arange(half) * -(math.log(10_000) / (half - 1)))
    angles = np.arange(positions)[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def distance_ranges(length: int) -> Int[np.ndarray, "length length"]:
    """The range of each position's distance from each, attending position first.

    Near distances have a range each, and farther ones share them, with bounds on a logarithmic
    scale.
    """
    distance = np.arange(length)[None] - np.arange(length)[:, None]
    near, half = RANGES // 4, RANGES // 2
    far = np.maximum(abs(distance), 1).astype(np.float32) / near
    logarithmic = np.log(far) / np.float32(math.log(_FARTHEST / near)) * np.float32(half - near)
    shared = np.minimum(near + logarithmic.astype(int), half - 1)
    return np.where(distance > 0, half, 0) + np.where(abs(distance) < near, abs(distance), shared)
