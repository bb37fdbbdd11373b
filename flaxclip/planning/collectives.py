"""Collectives in a compiled program: kind, bytes, repeats and network."""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np

from flaxclip.planning.hlo import Computation, Instruction, Program

Kind = Literal[
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute"
]  # fmt: skip
_OPCODES = {
    **{kind: kind for kind in get_args(Kind)},
    **{f"{kind}-start": kind for kind in get_args(Kind)},
    "ragged-all-to-all": "all-to-all",
}
# What slices exchange goes through their hosts: the TPU compiler sends it there and says for what.
_BETWEEN_SLICES: dict[str, Kind] = {
    "ALL_GATHER": "all-gather",
    "ALL_REDUCE": "all-reduce",
    "REDUCE_SCATTER": "reduce-scatter",
    "ALL_TO_ALL": "all-to-all",
    "ONE_TO_ONE": "collective-permute",
}


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange between devices."""

    kind: Kind
    operand_bytes: int
    """Bytes that one device sends in."""
    groups: tuple[tuple[int, ...], ...]
    """Devices that exchange with one another, by their positions in the mesh of a slice; for a
    permutation the pairs of source and target. Between slices, the numbers of the slices."""
    repeats: int
    """Number of times it runs in one run of the program."""
    where: str
    """The operation of the traced function that it serves."""
    between_slices: bool = False
    """True if it uses the data centre's network, from each chip of a slice to the chip in the same
    place of another."""

    @property
    def group_size(self) -> int:
        return len(self.groups[0])

    @property
    def received_bytes(self) -> float:
        """Lower bound of the bytes that a device receives each time.

        An all-reduce is a reduce-scatter and an all-gather (Rabenseifner 2004); no network lets
        either do with less.
        """
        n, size = self.group_size, self.operand_bytes
        if self.kind == "all-gather":
            return size * (n - 1)
        if self.kind == "all-reduce":
            return 2 * size * (n - 1) / n
        if self.kind == "collective-permute":
            return size
        return size * (n - 1) / n


def find_collectives(program: Program) -> list[Collective]:
    """All exchanges of `program`.

    Raises:
        ValueError: a list of devices is written in a way that is not known here.
    """
    within = [
        Collective(
            kind,
            sum(array.bytes for array in computation.operand_arrays(line)),
            groups,
            repeats,
            line.traced_name,
        )
        for computation, line, kind, repeats in _exchanges(program)
        # Alone in a group, or sending to itself, a device has nothing to exchange.
        if _are_exchanging(groups := parse_groups(line.attributes))
    ]
    between = [
        Collective(
            parse_transfer_kind(line.attributes),
            sum(array.bytes for array in computation.operand_arrays(line)),
            (parse_slices(line.attributes),),
            repeats,
            line.traced_name,
            between_slices=True,
        )
        for computation, repeats in program.running()
        for line in computation.instructions.values()
        if line.opcode == "send" and "_xla_megascale_transfer_type" in line.attributes
    ]
    return within + between


def _are_exchanging(groups: tuple[tuple[int, ...], ...]) -> bool:
    return any(len(set(group)) > 1 for group in groups)


def _exchanges(program: Program) -> Iterator[tuple[Computation, Instruction, Kind, int]]:
    for outer, repeats in program.running():
        for line in outer.instructions.values():
            if line.opcode in _OPCODES:
                yield outer, line, _OPCODES[line.opcode], repeats
            elif line.opcode == "fusion":
                name = line.called("calls")
                inner = program.computations[name]
                if _continues_another(inner):
                    continue
                for fused in inner.instructions.values():
                    if kind := _OPCODES.get(fused.opcode):
                        # A fusion of an all-reduce and the slice that a device keeps of it: the
                        # TPU has no other form of a reduce-scatter.
                        scatters = name.startswith("all-reduce-scatter")
                        yield inner, fused, "reduce-scatter" if scatters else kind, repeats


def _continues_another(fused: Computation) -> bool:
    """True if a collective in the fusion was begun by an earlier fusion.

    The TPU compiler overlaps collectives with other work: they begin in one fusion, advance in
    others and end in another. The program's text shows the collective in each of them.
    """
    return fused.name.startswith("async_collective_fusion") or any(
        'custom_call_target="AsyncCollectiveDone"' in line.attributes
        for line in fused.instructions.values()
    )


def parse_groups(attributes: str) -> tuple[tuple[int, ...], ...]:
    """The groups of devices in an instruction's attributes.

    XLA writes them as lists `{{0,1},{2,3}}`, as a reshaped and transposed range
    `[2,4]<=[4,2]T(1,0)`, and as axes of a mesh `mesh['a'=2,'b'=4] {'b'}`, whose devices may be
    such a range too.

    Raises:
        ValueError: none of these.
    """
    if pairs := re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes):
        return _number_lists(pairs.group(1))
    if lists := re.search(r"replica_groups=\{((?:\{[\d,]*\},?)+)\}", attributes):
        return _number_lists(lists.group(1))
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if iota:
        rows, columns = int(iota.group(1)), int(iota.group(2))
        shape = _numbers(iota.group(3))
        devices = np.arange(math.prod(shape)).reshape(shape)
        if iota.group(4):
            devices = devices.transpose(_numbers(iota.group(4)))
        return _tuples(devices.reshape(rows, columns))
    axes = re.search(
        r"replica_groups=mesh\[((?:'\w+'=\d+,?)+)\]"
        r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{((?:'\w+',?)+)\}",
        attributes,
    )
    if axes:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes.group(1)))
        along = re.findall(r"'(\w+)'", axes.group(4))
        names = list(sizes)
        shape = [int(size) for size in sizes.values()]
        devices = np.arange(math.prod(shape))
        if axes.group(2):
            devices = devices.reshape(_numbers(axes.group(2)))
        if axes.group(3):
            devices = devices.transpose(_numbers(axes.group(3)))
        devices = devices.reshape(shape)
        across = [axis for axis, name in enumerate(names) if name not in along]
        devices = devices.transpose(across + [names.index(name) for name in along])
        return _tuples(devices.reshape(-1, math.prod(int(sizes[name]) for name in along)))
    raise ValueError(f"no groups of devices that can be read in {attributes[:200]!r}")


def parse_transfer_kind(attributes: str) -> Kind:
    """The kind of a transfer between slices.

    Raises:
        ValueError: a transfer that is not known here.
    """
    found = re.search(r'_xla_megascale_transfer_type="?(\w+)', attributes)
    kind = found and _BETWEEN_SLICES.get(found.group(1))
    if not kind:
        raise ValueError(f"no kind of transfer that can be read in {attributes[:200]!r}")
    return kind


def parse_slices(attributes: str) -> tuple[int, ...]:
    """Slices that exchange with one another, counted from 0.

    XLA counts from 1, and writes slices and the chips in each, `"{1,2}x{0:3}"`, or pairs of chips,
    `{{100002->200000},...}`: a slice's number times 100,000 and a chip's.

    Raises:
        ValueError: none of these.
    """
    pairs = re.search(r"_xla_megascale_target=\"?\{\{([\d\->{},]+)\}\}", attributes)
    if pairs:
        chips = re.findall(r"(\d+)->(\d+)", pairs.group(1))
        return tuple(sorted({int(chip) // 100_000 - 1 for pair in chips for chip in pair}))
    found = re.search(r'_xla_megascale_target="?\{([\d,]+)\}x', attributes)
    if not found:
        raise ValueError(f"no slices that can be read in {attributes[:200]!r}")
    return tuple(number - 1 for number in _numbers(found.group(1)))


def torus_axes(collective: Collective, coords: Sequence[Sequence[int]]) -> int:
    """Number of dimensions of the chips' network along which the exchange can travel at once.

    Groups have the same layout, but in a permutation some devices may keep their data. `coords`
    gives each device's position in the network.
    """
    return max(
        sum(len(set(along)) > 1 for along in zip(*(coords[index] for index in group), strict=True))
        for group in collective.groups
    )


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _number_lists(text: str) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(_numbers(group)) for group in re.findall(r"\{([\d,]+)\}", text))


def _tuples(groups: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(map(int, group)) for group in groups)
