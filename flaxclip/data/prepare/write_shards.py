"""The second pass of `data.prepare`, over shards, as pure functions.

It reads the examples of each shard that the first pass (`scan.py`) has planned, and writes them in
the order of their keys.
"""

import contextlib
import errno
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from flaxclip.data.inspect.statistics import PairStatistics, measure
from flaxclip.data.prepare.encoding import encode_for_storage
from flaxclip.data.prepare.scan import Dropped, Recipe, Row, identify
from flaxclip.data.read_ahead import read_ahead
from flaxclip.data.reinforced.reinforce import Example, reinforce
from flaxclip.data.sources.array_records.array_record import encode_record
from flaxclip.data.sources.source import Pair, Source, UnreadableExampleError, reads_remotely
from flaxclip.errors import InputError

_Read: TypeAlias = Callable[[], tuple[Pair, Mapping[str, Any]]]


class ShardReport(NamedTuple):
    """Result of the second pass for a shard."""

    pairs: int
    bytes: int
    sha256: str
    statistics: dict[str, Any]
    dropped: list[Dropped]
    teacher_truncated_captions: int | None = None
    """Captions that lost their end to a teacher's context length, summed over teachers. If None,
    nothing is stored of teachers."""


class _Loaded(NamedTuple):
    """An example that is to be stored."""

    name: str
    key: tuple[int, int]
    pair: Pair
    """Its image in the form that is stored."""
    fields: Mapping[str, Any]


def write_shard(
    source: Source,
    recipe: Recipe,
    rows: np.ndarray,
    path: pathlib.Path,
    encoded: Callable[[int], None] = lambda crops: None,
) -> ShardReport:
    """Write the examples of `rows`, in the order of their keys, to `path` on this machine.

    `encoded` is called now and then, with the number of crops that teachers have embedded since.

    Raises:
        InputError: it cannot be written, or the corpus is another one than was scanned.
    """
    statistics, truncated = PairStatistics(), 0
    dropped: list[Dropped] = []
    try:
        writer = ArrayRecordWriter(os.fspath(path), "group_size:1,uncompressed")
        ordered = np.sort(rows, order=("high", "low", "example")).tolist()
        with contextlib.closing(writer):
            for one, stored, cut in _to_store(source, recipe, ordered, dropped, encoded):
                writer.write(stored)
                statistics.add(measure(one.pair))
                truncated += cut
        digest = _check_written(path, statistics.pairs)
    except (OSError, RuntimeError) as error:
        # RuntimeError is how the writer passes on what the operating system said.
        raise cannot_write(path, error) from None
    size = path.stat().st_size
    of_teachers = None if recipe.reinforcing is None else truncated
    return ShardReport(statistics.pairs, size, digest, statistics.to_json(), dropped, of_teachers)


def _to_store(
    source: Source,
    recipe: Recipe,
    ordered: Sequence[Row],
    dropped: list[Dropped],
    encoded: Callable[[int], None],
) -> Iterator[tuple[_Loaded, bytes, int]]:
    """The examples of a shard with their records, and how many of their captions teachers cut off;
    `dropped` gets those that are left out.
    """
    kept = _kept(source, recipe, ordered, dropped)
    if recipe.reinforcing is None:
        for one in kept:
            yield one, encode_record(one.name, _image(one), one.fields), 0
        return
    examples = (Example(one.pair, one.key, one) for one in kept)
    for one, made in reinforce(examples, recipe.reinforcing, encoded):
        if isinstance(made, UnreadableExampleError):
            dropped.append(Dropped(one.name, "unreadable", str(made)))
            continue
        captions = tuple(made.reinforced["captions"])
        one = one._replace(pair=Pair(one.pair.image, captions))
        record = encode_record(one.name, _image(one), one.fields, made.reinforced)
        yield one, record, made.truncated_captions


def _image(one: _Loaded) -> bytes:
    assert isinstance(one.pair.image, bytes), "it is encoded for storage"
    return one.pair.image


def _kept(
    source: Source, recipe: Recipe, ordered: Sequence[Row], dropped: list[Dropped]
) -> Iterator[_Loaded]:
    """The examples of a shard, but for duplicates and unreadable ones, which go to `dropped`."""
    last_key, last_name = None, ""
    for row, read in _with_reads(source, recipe, ordered):
        key, name = row[:2], source.name(row[2])
        if key == last_key and recipe.deduplicate != "none":
            dropped.append(Dropped(name, "duplicate", f"of {last_name}"))
            continue
        try:
            yield _load(name, read, recipe, row)
        except UnreadableExampleError as error:
            dropped.append(Dropped(name, "unreadable", str(error)))
            continue
        last_key, last_name = key, name


def _with_reads(
    source: Source, recipe: Recipe, ordered: Sequence[Row]
) -> Iterator[tuple[Row, _Read]]:
    """Each row with what reads its example; duplicates, mostly dropped, are not read ahead."""

    def read(number: int) -> tuple[Pair, Mapping[str, Any]]:
        return source[number], source.fields(number)

    keys = [row[:2] if recipe.deduplicate != "none" else None for row in ordered]
    repeats = [
        key is not None and key == before for before, key in zip([None, *keys], keys, strict=False)
    ]
    firsts = [row[2] for row, repeated in zip(ordered, repeats, strict=True) if not repeated]
    ahead = read_ahead(read, firsts, reads_remotely(source))
    for row, repeated in zip(ordered, repeats, strict=True):
        yield row, functools.partial(read, row[2]) if repeated else next(ahead)


def _load(name: str, read: _Read, recipe: Recipe, row: Row) -> _Loaded:
    """The example in the form that is stored."""
    try:
        pair, fields = read()
        changed = None if identify(pair, row[2], recipe) == row else "other contents"
    except UnreadableExampleError as error:
        changed = str(error)
    if changed is not None:
        raise InputError(
            f"{name} is no longer what it was when it was scanned: {changed}\n"
            "give back the corpus as it was, or prepare it afresh with --overwrite"
        )
    image = encode_for_storage(pair.image, recipe.encoding)
    try:
        encode_record(name, b"", fields)
    except (TypeError, ValueError) as error:
        raise UnreadableExampleError(f"fields that JSON cannot hold: {error}") from error
    return _Loaded(name, row[:2], pair._replace(image=image), fields)


def _check_written(path: pathlib.Path, records: int) -> str:
    """The SHA-256 of a shard, once it is safely on the disk."""
    # A file that was cut off opens, as one without records.
    with contextlib.closing(ArrayRecordReader(os.fspath(path))) as reader:
        found = reader.num_records()
    if found != records:
        raise OSError(f"holds {found:,} of {records:,} records")
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def cannot_write(path: os.PathLike | str, error: Exception) -> InputError:
    """The error for a disk that is full, or a folder that cannot be written."""
    reason = getattr(error, "strerror", None) or str(error).split(";")[0]
    if getattr(error, "errno", None) in (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS):
        return InputError(f"cannot write {path}: {reason}\nname a folder that can be written")
    return InputError(
        f"cannot write {path}: {reason}\n"
        "what is finished is kept: make room, and the same command goes on from there"
    )
