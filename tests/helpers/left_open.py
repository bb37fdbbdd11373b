"""Whether code leaves descriptors open, or processes behind."""

import contextlib
import gc
import pathlib
from collections.abc import Iterator


@contextlib.contextmanager
def nothing_left_open() -> Iterator[None]:
    """Fail unless this process has the same descriptors and children afterwards."""
    gc.collect()  # what earlier tests have left
    before = _descriptors(), _children()
    yield
    gc.collect()
    after = _descriptors(), _children()
    assert after == before, f"before: {before}\nafter: {after}"


def _descriptors() -> dict[str, str]:
    found = {}
    for link in pathlib.Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that lists the folder
            found[link.name] = str(link.readlink())
    return {number: target for number, target in found.items() if "/fd" not in target}


def _children() -> set[str]:
    lists = pathlib.Path("/proc/self/task").glob("*/children")
    return {child for path in lists for child in path.read_text().split()}
