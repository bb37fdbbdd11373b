"""Roofline of a compiled step on a chip: its speed is bounded by the slowest resource."""

import dataclasses

from flaxclip.chips import Chip
from flaxclip.planning.compiled_step import CompiledStep, Traffic

_PLANNED = "of chips that can be planned for, all figures are known"


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds a step, if each resource were the only limit (Williams et al. 2009)."""

    matrix_units: float
    hbm: float
    ici: float
    dcn: float
    compiler: float | None
    """By the compiler's own cost model, which includes latencies and work other than matrix
    products, but not collectives. If None, the compiler gave no estimate."""

    @property
    def bound(self) -> float:
        """Lower bound of a step's time, even if everything overlaps perfectly."""
        return max(self.matrix_units, self.hbm, self.ici, self.dcn)

    @property
    def expected(self) -> float:
        """The compiler's time, or that of the networks if they are slower."""
        return max(self.compiler or 0.0, self.bound)

    @property
    def limit(self) -> str:
        """The resource that sets `bound`."""
        named = {
            "matrix units": self.matrix_units,
            "HBM": self.hbm,
            "ICI": self.ici,
            "DCN": self.dcn,
        }
        return max(named, key=named.__getitem__)


def roofline(step: CompiledStep, chip: Chip) -> Roofline:
    """The limits of `step` on `chip`, by the chip's published figures."""
    assert chip.hbm_bandwidth is not None, _PLANNED
    assert chip.clock is not None, _PLANNED
    return Roofline(
        matrix_units=step.matrix_flops / chip.peak_flops,
        hbm=step.hbm_bytes / chip.hbm_bandwidth,
        ici=sum(network_seconds(row, chip) for row in step.traffic if row.network == "ICI"),
        dcn=sum(network_seconds(row, chip) for row in step.traffic if row.network == "DCN"),
        compiler=None if step.estimated_cycles is None else step.estimated_cycles / chip.clock,
    )


def network_seconds(row: Traffic, chip: Chip) -> float:
    """Seconds that a chip takes to receive `row`'s bytes.

    A group that extends along some dimensions of the torus has the links of those; along none, it
    is within a chip. Between slices a chip has its share of its host's cards.
    """
    if row.network == "DCN":
        assert chip.dcn_bandwidth is not None, _PLANNED
        return row.received_bytes / chip.dcn_bandwidth
    if row.torus_axes == 0:
        assert chip.on_chip_bandwidth is not None, "only chips of several devices have such groups"
        return row.received_bytes / chip.on_chip_bandwidth
    assert chip.torus_axes is not None, _PLANNED
    assert chip.ici_bandwidth is not None, _PLANNED
    share = min(1.0, row.torus_axes / chip.torus_axes)
    return row.received_bytes / (chip.ici_bandwidth * share)
