"""What travels between devices in a compiled program, read from its text."""

import re


def collectives(program: str) -> list[tuple[str, tuple[int, ...]]]:
    """(operation, shape of its result) of every array that is sent between devices."""
    operations = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    found = []
    for line in program.splitlines():
        # A combined operation has a tuple of shapes: %x = (f32[], f32[64,24]{1,0}) all-reduce(...
        match = re.search(rf" = (.+?) ({operations}|ragged-all-to-all)(?:-start)?\(", line)
        for dimensions in re.findall(r"\w\[([\d,]*)\]", match.group(1)) if match else ():
            found.append((match.group(2), tuple(int(n) for n in dimensions.split(",") if n)))
    assert found, "eight devices that send nothing: the program is not divided"
    return found
