"""The grid of devices that a batch's matrix of all pairs is divided over."""

import dataclasses
import math
from typing import Any, Literal

import jax
from jaxtyping import Array, Int, Shaped

Over = Literal["row", "column"]


@dataclasses.dataclass(frozen=True)
class DeviceGrid:
    """`rows x columns` devices, device k at (k // columns, k % columns), seen from one of them.

    Images and texts start out divided over all devices. A device's part of the matrix is the images
    of its grid row against the texts of its grid column. So on n devices it receives about 2 /
    sqrt(n) of all embeddings; comparing its own images with all texts, it would receive all of the
    texts.

    Methods run inside a `jax.shard_map` over `axes`; on a grid of one device, anywhere.
    """

    axes: tuple[str, ...]
    """Mesh axes whose devices, in their order, make up the grid."""
    rows: int
    columns: int

    @classmethod
    def squarest(cls, axes: tuple[str, ...] | None, max_columns: int | None = None) -> "DeviceGrid":
        """All devices of the context mesh's `axes`, or one device if that is None."""
        if axes is None:
            return cls((), 1, 1)
        mesh = jax.sharding.get_abstract_mesh()
        devices = math.prod(mesh.shape[axis] for axis in axes)
        most = math.isqrt(devices)
        if max_columns is not None:
            most = max(min(most, max_columns), 1)
        columns = max(c for c in range(1, most + 1) if devices % c == 0)
        return cls(axes, devices // columns, columns)

    @property
    def size(self) -> int:
        return self.rows * self.columns

    @property
    def position(self) -> tuple[Int[Array, ""] | int, Int[Array, ""] | int]:
        """Row and column of the calling device."""
        index = jax.lax.axis_index(self.axes) if self.size > 1 else 0
        return index // self.columns, index % self.columns

    def gather(self, x: Shaped[Array, "local ..."], over: Over) -> Shaped[Array, "gathered ..."]:
        """`x` of all devices in this one's grid row or column, one after another."""
        groups = self._groups(over)
        if len(groups[0]) == 1:
            return x
        return jax.lax.all_gather(x, self.axes, axis_index_groups=groups, tiled=True)

    def scatter_sum(
        self, x: Shaped[Array, "gathered ..."], over: Over
    ) -> Shaped[Array, "local ..."]:
        """The transpose of `gather`: this device's own part of the sum over the others."""
        groups = self._groups(over)
        if len(groups[0]) == 1:
            return x
        return jax.lax.psum_scatter(x, self.axes, axis_index_groups=groups, tiled=True)

    def send_up(self, tree: Any) -> Any:
        """Send every array one device up in the grid column; the top one sends to the bottom."""
        steps = [
            (group[row], group[row - 1])
            for group in self._groups("column")
            for row in range(self.rows)
        ]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, self.axes, steps), tree)

    def sum(self, x: Shaped[Array, ""]) -> Shaped[Array, ""]:
        """The sum over all devices."""
        return jax.lax.psum(x, self.axes) if self.size > 1 else x

    def _groups(self, over: Over) -> list[list[int]]:
        rows = [
            [row * self.columns + column for column in range(self.columns)]
            for row in range(self.rows)
        ]
        return rows if over == "row" else [list(column) for column in zip(*rows, strict=True)]
