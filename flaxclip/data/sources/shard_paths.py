"""From the patterns that name shards to their paths."""

import glob
import itertools
import os
from collections.abc import Iterator, Sequence

import braceexpand

from flaxclip.data.storage.file_systems import file_system_of, is_remote
from flaxclip.data.storage.files import is_folder
from flaxclip.errors import InputError


def expand_shards(patterns: Sequence[str], expected: str = "tar") -> list[str]:
    """The sorted absolute paths, or URLs, of all shards that `patterns` name.

    Does not check that a path without a glob exists: opening it does.

    Args:
        patterns: paths, brace patterns and globs.
        expected: the extension that shards should have, for messages.

    Raises:
        InputError: nothing given, a bad pattern, one that matches nothing, or a shard named twice.
    """
    paths = [path for pattern in patterns for path in _expand_one(pattern, expected)]
    if not paths:
        raise InputError("no shards given\nexpected a path, a brace pattern, a glob, or a list")
    paths = sorted(path if is_remote(path) else os.path.abspath(path) for path in paths)
    for path, following in itertools.pairwise(paths):
        if path == following:
            raise InputError(
                f"shard given twice: {path}\nto weigh corpora, make a data.mixture of them"
            )
    return paths


def _expand_one(pattern: str, expected: str) -> Iterator[str]:
    pattern = os.path.expanduser(pattern)
    if not is_remote(pattern) and os.path.exists(pattern) and not os.path.isdir(pattern):
        yield pattern  # its name may hold [ or {
        return
    if not glob.has_magic(pattern) and "{" not in pattern and is_folder(pattern):
        advice = f"expected {expected} files: '{os.path.join(pattern, f'*.{expected}')}'?"
        raise InputError(f"{pattern} is a folder\n{advice}")
    try:
        expanded = list(braceexpand.braceexpand(pattern))
    except ValueError as error:
        raise InputError(f"bad brace pattern {pattern}: {error}") from None
    for path in expanded:
        if glob.has_magic(path) and (is_remote(path) or not os.path.exists(path)):
            yield from _matches(path)
        else:
            yield path  # whether it exists is seen when it is opened


def _matches(pattern: str) -> list[str]:
    if is_remote(pattern):
        fs = file_system_of(pattern)
        try:
            matches = [fs.unstrip_protocol(path) for path in fs.glob(pattern)]
        except OSError as error:
            raise InputError(f"cannot list {pattern}: {error.strerror or error}") from None
    else:
        matches = glob.glob(pattern)
    if not matches:
        where = "" if is_remote(pattern) else f"\nchecked from {os.getcwd()}"
        raise InputError(f"no shard matches {pattern}{where}")
    return matches


def shown(path: str) -> str:
    """A path for a message: relative where it lies below the working folder."""
    if is_remote(path):
        return path
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative
