"""Where a step's cycles and bytes go: its instructions, added up by part, tower and phase."""

import collections
import dataclasses
from collections.abc import Iterator

from flaxclip.chips import Chip
from flaxclip.planning.account.kernels import is_kernel, kernel_cycles
from flaxclip.planning.account.memory_traffic import moved_bytes
from flaxclip.planning.account.parts import Part, Phase, Place, Tower, find_place
from flaxclip.planning.hlo import Computation, Instruction, Program

_PRODUCTS = {"convolution", "dot"}
_MOVES = {
    "concatenate", "convert", "copy", "dynamic-slice", "dynamic-update-slice", "pad",
    "reduce-precision", "reshape", "slice", "transpose",
}  # fmt: skip
_NO_WORK = {"bitcast", "constant", "get-tuple-element", "iota", "parameter", "tuple"}
_COLLECTIVES = ("all-", "collective-", "ragged-all-to-all", "recv", "reduce-scatter", "send")


@dataclasses.dataclass(frozen=True)
class AccountRow:
    """Work of one kind in one step, of one chip."""

    tower: Tower | None
    part: Part
    phase: Phase
    cycles: int
    """The TPU compiler's estimate, and that of `kernel_cycles`; 0 for other devices."""
    product_cycles: int
    """Those of `cycles` in instructions that contain a matrix product, and in custom kernels."""
    hbm_bytes: int
    """Lower bound of the bytes read and written, as `hbm_traffic` counts them."""


def make_account(program: Program, chip: Chip | None = None) -> tuple[AccountRow, ...]:
    """All work of `program`, each instruction as often as it runs, the largest first.

    The rows add up to the compiler's estimate, with that of custom kernels on `chip`, and to
    `hbm_traffic`. An instruction counts as a
    whole for one place. For a fusion that is the place of its largest matrix product. Without one
    it is the place that the compiler's name for it says, which is its result's; a copy from or to
    the chip's own memory belongs to what it is made for, and so does what has no name.
    """
    totals: dict[Place, list[int]] = collections.defaultdict(lambda: [0, 0, 0])
    for computation, repeats in program.running():
        places = _Places(program, computation)
        for line in computation.instructions.values():
            moved = moved_bytes(program, computation, line)
            cycles = line.estimated_cycles or 0
            if chip is not None and is_kernel(line):
                cycles = kernel_cycles(line, moved, chip) or 0
            if cycles or moved:
                total = totals[places.find(line)]
                total[0] += repeats * cycles
                if is_kernel(line) or _products(program, line):
                    total[1] += repeats * cycles
                total[2] += repeats * moved
    rows = [
        AccountRow(place.tower, place.part, place.phase, *total) for place, total in totals.items()
    ]
    return tuple(sorted(rows, key=lambda row: (-row.cycles, -row.hbm_bytes)))


class _Places:
    """Places of the instructions of one computation."""

    def __init__(self, program: Program, computation: Computation) -> None:
        self.program, self.lines = program, computation.instructions
        self.users: dict[str, list[str]] = collections.defaultdict(list)
        for line in self.lines.values():
            for operand in line.operands:
                self.users[operand].append(line.name)

    def find(self, line: Instruction) -> Place:
        place = self._by_name(line)
        if place is None:
            # What is brought onto the chip is for those who use it, all else of its source.
            directions = (True, False) if _is_prefetch(line) else (False, True)
            found = (self._nearest(line, to_users) for to_users in directions)
            place = next(filter(None, found), Place("other", "update"))
        if line.opcode.startswith(_COLLECTIVES):
            return dataclasses.replace(place, part="collectives")
        is_slice = place.part == "scan's stacks" and line.opcode not in ("copy", "convert")
        if _only_moves(self.program, line) and not is_slice:
            return dataclasses.replace(place, part="copies")
        return place

    def _by_name(self, line: Instruction) -> Place | None:
        products = _products(self.program, line)
        if products:
            largest = max(products, key=lambda product: sum(a.bytes for a in product.result))
            if place := find_place(largest.traced_name):
                return place
        if place := find_place(line.traced_name):
            return place
        if line.opcode == "fusion":
            return find_place(self.program.computations[line.called("calls")].root.traced_name)
        return None

    def _nearest(self, line: Instruction, to_users: bool) -> Place | None:
        """The place of the nearest instruction that has one, among users or among operands."""
        waiting, seen = collections.deque([line]), {line.name}
        while waiting:
            current = waiting.popleft()
            for name in self.users[current.name] if to_users else current.operands:
                if name not in seen:
                    seen.add(name)
                    if place := self._by_name(self.lines[name]):
                        return place
                    waiting.append(self.lines[name])
        return None


def _inside(program: Program, line: Instruction) -> Iterator[Instruction]:
    """The instruction itself, or those of a fusion."""
    if line.opcode != "fusion":
        yield line
        return
    for fused in program.computations[line.called("calls")].instructions.values():
        yield from _inside(program, fused)


def _products(program: Program, line: Instruction) -> list[Instruction]:
    return [inner for inner in _inside(program, line) if inner.opcode in _PRODUCTS]


def _only_moves(program: Program, line: Instruction) -> bool:
    """True if arrays are copied, laid out anew, cut, joined or converted, and nothing is computed.

    A TPU joins arrays as the maximum of padded ones. Indices are computed all the same.
    """
    inside = [
        inner.opcode
        for inner in _inside(program, line)
        if inner.opcode not in _NO_WORK and any(array.dimensions for array in inner.result)
    ]
    joins = {"maximum", "broadcast"} if "pad" in inside else set()
    return any(opcode in _MOVES for opcode in inside) and set(inside) <= _MOVES | joins


def _is_prefetch(line: Instruction) -> bool:
    """True for a copy onto the chip that goes on while others run."""
    if line.opcode == "copy-start":  # (destination, source, context)
        return not line.result[0].in_main_memory
    if line.opcode == "slice-start":  # (source, slice, context)
        return not line.result[1].in_main_memory
    return False
