"""The work of a run's steps: pairs, model FLOPs and, at native aspect ratio, padding."""

from typing import NamedTuple

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather

from flaxclip.config import TrainConfig
from flaxclip.step_shapes import pairs_until
from flaxclip.train_step import pair_flops, step_flops


class Work(NamedTuple):
    """The work of several steps."""

    pairs: int
    flops: float
    """Model FLOPs, of the patches that images have; padding does not count."""
    padding: float | None
    """Share of the places for patches that hold padding. None if images are squares."""


class WorkDone:
    """Adds up the work of steps between two reports."""

    def __init__(self, config: TrainConfig, start_step: int):
        self._config = config
        self._step = start_step
        self._lengths = config.lengths
        self._unreported: dict[int, tuple[float, int, int]] = {}
        if self._lengths is None:
            self._step_flops = step_flops(config)
        else:
            self._coefficients = _quadratic(*(pair_flops(config, n) for n in (1, 2, 3)))

    def loaded(self, step: int, patches: int | None) -> None:
        """Note that the images in this host's rows of the batch of `step` have `patches` in all."""
        if self._lengths is None:
            return
        assert patches is not None, "told with every batch of images at their own aspect ratio"
        length = self._lengths.at(step - 1)
        pairs = length.pairs // jax.process_count()
        constant, linear, square = self._coefficients
        # The work grows with the square of an image's patches, and those of one step are alike.
        mean = patches / pairs
        flops = pairs * (constant + linear * mean + square * mean**2)
        self._unreported[step] = flops, patches, pairs * length.patches

    def lap(self, step: int) -> Work:
        """The work of all hosts in the steps after the last lap, up to `step`.

        Every host must call this.
        """
        steps = step - self._step
        pairs = pairs_until(self._config, step) - pairs_until(self._config, self._step)
        self._step = step
        if self._lengths is None:
            return Work(pairs, steps * self._step_flops, None)
        done = [self._unreported.pop(n) for n in sorted(self._unreported) if n <= step]
        # Of a step, since JAX gathers 32 bits: those of a lap have more.
        means = np.array([done], np.float64).mean(axis=1).astype(np.float32)
        flops, patches, places = process_allgather(means, tiled=True).sum(axis=0).tolist()
        return Work(pairs, steps * flops, 1 - patches / places)


def _quadratic(first: int, second: int, third: int) -> tuple[float, float, float]:
    """The coefficients (constant, linear, square) of what is so much at 1, 2 and 3."""
    square = (third - 2 * second + first) / 2
    linear = second - first - 3 * square
    return first - linear - square, linear, square
