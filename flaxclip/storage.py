"""Paths of local files and of objects in `gs://` and the like, and their differences."""

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from etils import epath

_Path = TypeVar("_Path", Path, epath.Path)

METRICS_FILE = "metrics.jsonl"
"""Scalars of a run, one line for each report, in its workdir."""


def is_remote(path: epath.PathLike) -> bool:
    """True if `path` is in object storage, such as `gs://bucket/run`."""
    return "://" in str(path)


def absolute(path: epath.PathLike) -> epath.Path:
    """Make a path absolute, since Orbax refuses relative ones."""
    # `resolve` would take gs://bucket for a folder in the working directory.
    path = epath.Path(path)
    return path if is_remote(path) else path.expanduser().resolve()


def append_text(path: epath.Path, text: str) -> None:
    """Append to a file; in object storage, where that is impossible, rewrite it."""
    if is_remote(path):
        path.write_text((path.read_text() if path.exists() else "") + text)
    else:
        with path.open("a") as file:
            file.write(text)


def replace_text(path: epath.Path, text: str) -> None:
    """Write a file so that readers see the old one or all of the new one."""
    with whole_file(path) as partial:
        partial.write_text(text)


@contextlib.contextmanager
def whole_file(path: _Path) -> Iterator[_Path]:
    """A path to write a file at, which becomes `path` when the context ends without an error.

    Readers of `path` see none, or the old one, or all of the new one. Several processes, on several
    machines, may write the same file at once: what each writes has a name of its own until then. It
    is removed on an error; one that a killed process has left ends in `.partial`.
    """
    if is_remote(path):  # an object appears when it is complete
        yield path
        return
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
