"""The arrays of one host's part of a batch: their shapes at each step, and how rows get in."""

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32, UInt8

from flaxclip.data.images.native_size import PatchArrays, write_patches
from flaxclip.data.sequence_lengths import LengthSchedule

NO_ARRAYS: Mapping[str, np.ndarray] = MappingProxyType({})


class Row(NamedTuple):
    """One row of a batch: an example at one of its visits, with statistics of its loading."""

    image: UInt8[np.ndarray, "height width 3"]
    """A square, or at its own aspect ratio whole patches."""
    tokens: Int32[np.ndarray, " length"]
    truncated: bool
    replaced: tuple[str, ...]
    extra: Mapping[str, np.ndarray] = NO_ARRAYS
    """Further arrays, by name: those that `BatchShape.extra` lists."""
    truncated_for_teachers: int = 0
    """Teachers that run beside the student, for which the caption lost its end."""


class BatchArrays(NamedTuple):
    """One host's part of a batch."""

    images: UInt8[np.ndarray, "rows height width 3"] | PatchArrays
    tokens: Int32[np.ndarray, "rows length"]
    extra: dict[str, np.ndarray]
    """Further arrays of the rows, by name."""

    def write(self, place: int, row: Row) -> None:
        """Let `row` be the one at `place`."""
        if isinstance(self.images, PatchArrays):
            self.images.grid[place] = write_patches(row.image, self.images.patches[place])
        else:
            self.images[place] = row.image
        self.tokens[place] = row.tokens
        for name, array in self.extra.items():
            array[place] = row.extra[name]


@dataclasses.dataclass(frozen=True)
class BatchShape:
    """Of `BatchArrays`; the same at every step."""

    rows: int
    image: tuple[int, ...]
    """Height, width and colours; or at the image's own aspect ratio places for patches, and values
    of a patch."""
    context_length: int
    extra: tuple[tuple[str, tuple[int, ...], str], ...] = ()
    """Name, shape and NumPy type of each further array that a row has, in `Row.extra`."""

    def of_step(self, step: int) -> "BatchShape":
        """The shape of the batch of `step`."""
        return self

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays together."""
        return self.rows * sum(
            math.prod(dims) * np.dtype(kind).itemsize for _, dims, kind in self._of_a_row()
        )

    def arrays(self, memory: Any, offset: int = 0) -> BatchArrays:
        """The arrays at `offset` of `memory`, which has `nbytes` or more from there on."""
        views = {}
        # Larger elements first: each array begins at a multiple of its elements' size.
        for name, dims, kind in sorted(
            self._of_a_row(), key=lambda array: -np.dtype(array[2]).itemsize
        ):
            views[name] = np.ndarray((self.rows, *dims), kind, memory, offset)
            offset += views[name].nbytes
        images, tokens, grid = views.pop("images"), views.pop("tokens"), views.pop("grid", None)
        return BatchArrays(images if grid is None else PatchArrays(images, grid), tokens, views)

    def _of_a_row(self) -> list[tuple[str, tuple[int, ...], str]]:
        arrays = [("images", self.image, "uint8"), ("tokens", (self.context_length,), "int32")]
        if len(self.image) == 2:
            arrays.append(("grid", (2,), "int32"))
        return [*arrays, *self.extra]


@dataclasses.dataclass(frozen=True)
class LengthShapes:
    """The shapes of batches of images at their own aspect ratio, each step of its length."""

    lengths: LengthSchedule
    hosts: int
    patch_size: int
    context_length: int

    def of_step(self, step: int) -> BatchShape:
        """The shape of the batch of `step`."""
        length = self.lengths.at(step)
        return self._shape(length.patches, length.pairs)

    @property
    def nbytes(self) -> int:
        """Bytes of the largest batch."""
        lengths = zip(self.lengths.lengths, self.lengths.pairs, strict=True)
        return max(self._shape(*length).nbytes for length in lengths)

    def _shape(self, patches: int, pairs: int) -> BatchShape:
        image = patches, 3 * self.patch_size**2
        return BatchShape(pairs // self.hosts, image, self.context_length)


@runtime_checkable
class StepShapes(Protocol):
    """What `BatchShape` and `LengthShapes` have in common."""

    def of_step(self, step: int) -> BatchShape:
        """The shape of the batch of `step`."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of the largest batch."""
        ...
