"""Compiled programs, read from their text: the instructions that run, and how often."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_BITS = {"pred": 8, "token": 0, "opaque": 0}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b([a-z]+[a-z0-9]*)\[([\d,]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r'\bop_name="([^"]*)"')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class HloArray:
    """The type of an array, as in `bf16[256,768]{1,0:T(8,128)S(1)}`."""

    dtype: str
    dimensions: tuple[int, ...]
    layout: str

    @property
    def bytes(self) -> int:
        """Size without the padding of tiled layouts."""
        width = re.search(r"\d+", self.dtype)
        bits = _BITS.get(self.dtype) if width is None else int(width.group())
        return math.prod(self.dimensions) * (bits or 0) // 8

    @property
    def in_main_memory(self) -> bool:
        """True unless the layout names another memory: a TPU's `S(1)` is on the chip itself."""
        return "S(" not in self.layout


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    result: tuple[HloArray, ...]
    """One array, or a tuple's, nested ones flattened."""
    operands: tuple[str, ...]
    """Names of the instructions in the same computation whose results it takes."""
    literal: str
    """A constant's value, or a parameter's number; empty for all others."""
    attributes: str
    """The rest of the line."""
    is_root: bool

    @property
    def traced_name(self) -> str:
        """The operation of the traced function that it serves; empty if the compiler put it in."""
        name = _NAME.search(self.attributes)
        return name.group(1) if name else ""

    @property
    def estimated_cycles(self) -> int | None:
        """The TPU compiler's estimate of one run; None if it makes none, as for loops' bodies."""
        if self.opcode == "while":
            return None  # all that its body takes, which counts by itself
        estimate = _CYCLES.search(self.attributes)
        return int(estimate.group(1)) if estimate else None

    def called(self, *attributes: str) -> str:
        """Name of the computation that an attribute such as `body=%name` names.

        Raises:
            ValueError: it has none of these attributes.
        """
        for attribute in attributes:
            if match := re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes):
                return match.group(1)
        raise ValueError(f"{self.opcode} {self.name} has no {' nor '.join(attributes)}")


@dataclasses.dataclass(frozen=True)
class Computation:
    """A function of the program; `instructions` by name, in their order."""

    name: str
    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        """The instruction that gives the computation's result."""
        return next(line for line in self.instructions.values() if line.is_root)

    def operand(self, instruction: Instruction, index: int) -> Instruction:
        """The instruction that computes an operand."""
        return self.instructions[instruction.operands[index]]

    def operand_arrays(self, instruction: Instruction) -> list[HloArray]:
        """Types of all operands."""
        return [array for name in instruction.operands for array in self.instructions[name].result]


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled module."""

    computations: dict[str, Computation]
    entry: str

    def running(self) -> Iterator[tuple[Computation, int]]:
        """Computations whose instructions are scheduled one by one, and how often each runs.

        Not among them: bodies of fusions, which are one instruction each, and of reductions.
        """
        repeats: dict[str, int] = {}

        def count_runs(name: str, times: int) -> None:
            repeats[name] = repeats.get(name, 0) + times
            for line in self.computations[name].instructions.values():
                if line.opcode == "while":
                    count_runs(line.called("body"), times * self.trip_count(line))
                elif line.opcode in ("call", "async-start"):
                    count_runs(line.called("to_apply", "calls"), times)
                elif line.opcode == "conditional":
                    # Either branch may run; the training step has none that matter.
                    branches = _BRANCHES.search(line.attributes)
                    names = (
                        [line.called("true_computation"), line.called("false_computation")]
                        if branches is None
                        else [name.strip().lstrip("%") for name in branches.group(1).split(",")]
                    )
                    for branch in names:
                        count_runs(branch, times)

        count_runs(self.entry, 1)
        for name, times in repeats.items():
            yield self.computations[name], times

    def trip_count(self, loop: Instruction) -> int:
        """Number of times that a `while` runs its body.

        XLA records it for CPUs and GPUs. On TPUs it is the bound with which the condition compares
        the counter, which starts at 0.

        Raises:
            ValueError: the condition compares with no constant, or with several.
        """
        noted = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
        if noted:
            return int(noted.group(1))
        condition = self.computations[loop.called("condition")]
        bounds = [
            int(number.group())
            for line in condition.instructions.values()
            if line.opcode == "constant"
            and line.result[0].dtype in ("s32", "u32", "s64")
            and (number := re.match(r"-?\d+", line.literal))
        ]
        if len(bounds) != 1:
            raise ValueError(f"loop {loop.name}: cannot tell its trip count from {bounds}")
        return bounds[0]


def parse_program(text: str) -> Program:
    """The program in `jax.stages.Compiled.as_text()`."""
    computations: dict[str, Computation] = {}
    current: dict[str, Instruction] = {}
    entry = ""
    for line in _whole_lines(text):
        if header := _COMPUTATION.match(line):
            current = {}
            computations[header.group(2)] = Computation(header.group(2), current)
            if header.group(1):
                entry = header.group(2)
        elif match := _INSTRUCTION.match(line):
            instruction = _parse_instruction(match.group(2), match.group(3), bool(match.group(1)))
            current[instruction.name] = instruction
    return Program(computations, entry)


def _whole_lines(text: str) -> Iterator[str]:
    """Lines of `text`, whole where an attribute has line breaks, as Pallas kernels' metadata."""
    whole = ""
    for line in text.splitlines():
        if line == "}" or _INSTRUCTION.match(line) or _COMPUTATION.match(line):
            yield whole
            whole = line
        else:
            whole += line
    yield whole


def _parse_instruction(name: str, text: str, is_root: bool) -> Instruction:
    # TYPE OPCODE(OPERANDS), ATTRIBUTES. Tuple types, layouts and operands have brackets of theirs.
    type_end = _closing_bracket(text, 0) + 1 if text.startswith("(") else text.index(" ")
    opening = text.index("(", type_end)
    closing = _closing_bracket(text, opening)
    opcode, inside = text[type_end:opening].strip(), text[opening + 1 : closing]
    is_constant = opcode in ("constant", "parameter")
    return Instruction(
        name,
        opcode,
        _parse_arrays(text[:type_end]),
        () if is_constant else tuple(re.findall(r"%([\w.\-]+)", inside)),
        inside if is_constant else "",
        text[closing + 1 :],
        is_root,
    )


def _closing_bracket(text: str, opening: int) -> int:
    depth = 0
    for match in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if match.group() == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"unbalanced brackets in {text!r}")


@functools.cache
def _parse_arrays(text: str) -> tuple[HloArray, ...]:
    return tuple(
        HloArray(dtype, tuple(int(size) for size in sizes.split(",") if size), layout)
        for dtype, sizes, layout in _ARRAY.findall(text)
    )
