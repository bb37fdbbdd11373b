"""Custom kernels (Pallas) in a compiled program: what the compiler's cost model leaves out."""

import re

from flaxclip.chips import Chip
from flaxclip.planning.hlo import Instruction

OVERHEAD = 1.5
"""Times the slower of a kernel's resources: it overlaps them no better than compiled code does."""
TRANSCENDENTALS_PER_CYCLE = 8 * 128
"""One for each lane of a vector unit."""


_COST = re.compile(r'"cost_estimate":\{([^}]*)\}')


def is_kernel(line: Instruction) -> bool:
    """True if the instruction runs a kernel that was written by hand."""
    return 'custom_call_target="tpu_custom_call"' in line.attributes


def states_cost(line: Instruction) -> bool:
    """True if the kernel has a `pallas.CostEstimate`."""
    return _COST.search(line.attributes) is not None


def kernel_cycles(line: Instruction, moved_bytes: int, chip: Chip) -> int | None:
    """Cycles of one run of a kernel, by the cost that it states (`pallas.CostEstimate`).

    1.5 times the larger of its bytes by the memory's bandwidth and its FLOPs by the matrix units'
    rate, and its transcendentals by the vector unit's. Bytes are those of its operands and results
    in HBM. If None, it states no cost.
    """
    stated = _COST.search(line.attributes)
    if stated is None:
        return None
    cost = {name: int(value) for name, value in re.findall(r'"(\w+)":"(\d+)"', stated.group(1))}
    assert chip.hbm_bandwidth is not None, "of chips that can be planned for, it is known"
    assert chip.clock is not None, "of chips that can be planned for, it is known"
    seconds = max(moved_bytes / chip.hbm_bandwidth, cost.get("flops", 0) / chip.peak_flops)
    vector = cost.get("transcendentals", 0) / TRANSCENDENTALS_PER_CYCLE
    return round(OVERHEAD * seconds * chip.clock + vector)
