"""From the patterns that name shards to their paths."""

import glob
import itertools
import os
from collections.abc import Iterator, Sequence

import braceexpand

from flaxclip.errors import InputError


def expand_shards(patterns: Sequence[str]) -> list[str]:
    """Absolute paths of the shards that paths, brace patterns and globs name, sorted.

    Whether a path that is no glob exists is left to whoever opens it.

    Raises:
        InputError: nothing given, a bad pattern, one that matches nothing, or a shard named twice.
    """
    paths = [path for pattern in patterns for path in _expand_one(pattern)]
    if not paths:
        raise InputError("no shards given\nexpected a path, a brace pattern, a glob, or a list")
    paths = sorted(os.path.abspath(path) for path in paths)
    for path, following in itertools.pairwise(paths):
        if path == following:
            raise InputError(
                f"shard given twice: {path}\nto weigh corpora, make a data.mixture of them"
            )
    return paths


def _expand_one(pattern: str) -> Iterator[str]:
    if "://" in pattern:
        raise InputError(f"shards must be local or mounted files, not {pattern}")
    pattern = os.path.expanduser(pattern)
    if os.path.isdir(pattern):
        advice = f"expected tar files: '{os.path.join(pattern, '*.tar')}'?"
        raise InputError(f"{pattern} is a folder\n{advice}")
    if os.path.exists(pattern):  # its name may hold [ or {
        yield pattern
        return
    try:
        expanded = list(braceexpand.braceexpand(pattern))
    except ValueError as error:
        raise InputError(f"bad brace pattern {pattern}: {error}") from None
    for path in expanded:
        if glob.has_magic(path) and not os.path.exists(path):
            matches = glob.glob(path)
            if not matches:
                raise InputError(f"no shard matches {path}\nchecked from {os.getcwd()}")
            yield from matches
        else:
            yield path  # whether it exists is seen when it is indexed


def shown(path: str) -> str:
    """A path for a message: relative where it lies below the working folder."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative
