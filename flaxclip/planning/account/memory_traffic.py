"""Bytes that a compiled program moves between a chip and its main memory (HBM)."""

from collections.abc import Iterable

from flaxclip.planning.hlo import Computation, HloArray, Instruction, Program

# They name, group or await data, and move none.
_FREE = {
    "after-all", "bitcast", "call", "conditional", "constant", "copy-done", "get-tuple-element",
    "iota", "opt-barrier", "parameter", "partition-id", "recv-done", "send-done", "slice-done",
    "tuple", "while",
}  # fmt: skip
_SLICES = {"dynamic-slice", "slice"}


def hbm_traffic(program: Program) -> int:
    """Bytes read and written in one run of `program`, with its loops' repeats.

    Each instruction reads its operands and writes its result once; a fusion is one instruction. If
    an array is only sliced, or updated in part, that part counts: a loop over stacked layers
    touches one layer at a time. Arrays that the compiler placed on the chip do not count, nor does
    the padding of tiled layouts, so the hardware moves at least this much.
    """
    return sum(
        repeats * moved_bytes(program, computation, line)
        for computation, repeats in program.running()
        for line in computation.instructions.values()
    )


def moved_bytes(program: Program, computation: Computation, line: Instruction) -> int:
    """Bytes that one run of an instruction reads and writes, as `hbm_traffic` counts them."""
    if line.opcode in _FREE:
        return 0
    if line.opcode == "fusion":
        fused = program.computations[line.called("calls")]
        return sum(
            _read(program, fused, parameter)
            for parameter in fused.instructions.values()
            if parameter.opcode == "parameter"
            and _bytes(computation.operand(line, int(parameter.literal)).result)
        ) + _written(program, fused, line.result)
    if line.opcode == "custom-call" and '"AllocateBuffer"' in line.attributes:
        return 0
    if line.opcode == "dynamic-update-slice":
        return _part(computation.operand(line, 1)) * line.result[0].in_main_memory
    if line.opcode in _SLICES:
        return _part(line) * computation.operand(line, 0).result[0].in_main_memory
    if line.opcode == "slice-start":  # (source, slice, context)
        return line.result[1].bytes * sum(array.in_main_memory for array in line.result[:2])
    if line.opcode == "copy-start":  # (destination, source, context)
        return _bytes(line.result[:2])
    return _bytes(line.result) + _bytes(computation.operand_arrays(line))


def _read(program: Program, fused: Computation, array: Instruction) -> int:
    """Bytes that a fusion reads of an array: a parameter, or the same array inside."""
    total = 0
    for user in fused.instructions.values():
        if array.name not in user.operands:
            continue
        if user.opcode == "bitcast":
            total += _read(program, fused, user)
        elif user.opcode == "fusion":
            inner = program.computations[user.called("calls")]
            index = user.operands.index(array.name)
            total += sum(
                _read(program, inner, parameter)
                for parameter in inner.instructions.values()
                if parameter.opcode == "parameter" and int(parameter.literal) == index
            )
        elif user.opcode in _SLICES and user.operands[0] == array.name:
            total += _part(user)
        elif not _passes_on(user, array):
            return _part(array)
    return min(total, _part(array))


def _passes_on(user: Instruction, array: Instruction) -> bool:
    """True if `user` passes the array on without reading it.

    That is, it returns it in a tuple, updates it in place, or hands it to a collective that
    overlaps with the rest of the fusion.
    """
    in_place = user.opcode == "dynamic-update-slice" and user.operands[0] == array.name
    return in_place or user.opcode == "tuple" or user.opcode.startswith(("all-", "collective-"))


def _written(program: Program, fused: Computation, result: tuple[HloArray, ...]) -> int:
    root = fused.root
    parts = (
        [fused.instructions[name] for name in root.operands] if root.opcode == "tuple" else [root]
    )
    if len(parts) != len(result):
        return _bytes(result)
    return sum(
        _made(program, fused, part)
        for part, array in zip(parts, result, strict=True)
        if array.in_main_memory
    )


def _made(program: Program, fused: Computation, part: Instruction) -> int:
    """Bytes of a fusion's result that it writes, without those that it leaves as they were."""
    while part.opcode == "bitcast":
        part = fused.operand(part, 0)
    if part.opcode == "fusion":
        inner = program.computations[part.called("calls")]
        if inner.root.opcode != "tuple":
            return _made(program, inner, inner.root)
    if part.opcode == "dynamic-update-slice":
        return _part(fused.operand(part, 1))
    if part.opcode == "parameter" or part.opcode.startswith(("all-", "collective-")):
        return 0
    return _part(part)


def _part(line: Instruction) -> int:
    return sum(array.bytes for array in line.result)


def _bytes(arrays: Iterable[HloArray]) -> int:
    return sum(array.bytes for array in arrays if array.in_main_memory)
