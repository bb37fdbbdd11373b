"""The two passes of `data.prepare`, over ranges of examples and over shards, as pure functions.

The scan reads every example once: it lists those that are unreadable or filtered out, and gives
each of the others a key, the hash of its contents. A shard is a range of keys, so its examples and
their order depend on the contents of the corpus alone; equal examples get into one shard, where all
but the first are dropped. The second pass reads the examples of each shard and writes them.
Images are read twice rather than sent around: the passes exchange 32 bytes an example.
"""

import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from flaxclip.data.inspect.statistics import PairFacts, PairStatistics, measure
from flaxclip.data.prepare.encoding import ImageEncoding, encode_for_storage
from flaxclip.data.prepare.filters import PairFilters
from flaxclip.data.read_ahead import read_ahead
from flaxclip.data.sources.array_records.array_record import encode_record
from flaxclip.data.sources.corpus import CorpusConfig
from flaxclip.data.sources.source import Pair, Source, UnreadableExampleError, reads_remotely
from flaxclip.errors import InputError

SPLITS = ("train", "validation")
ROW = np.dtype([("high", "<u8"), ("low", "<u8"), ("example", "<u8"), ("split", "<u8")])
"""An example that the scan keeps: its key, in two halves, its number, and its place in `SPLITS`."""
_Row: TypeAlias = tuple[int, int, int, int]
_Read: TypeAlias = Callable[[], tuple[Pair, Mapping[str, Any]]]
SCENE_SIZE = 224
"""Side, in pixels, of images of the built-in data."""
_SIZES_WANTED = 20_000
"""Records from which the number of shards is estimated: ±1% for image sizes of the web."""
_ENCODINGS_WANTED = 400
"""Encoded examples for that estimate, if images change: each costs as much as writing it."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that the output depends on, beside the corpus itself."""

    corpus: CorpusConfig
    filters: PairFilters = PairFilters()
    encoding: ImageEncoding = ImageEncoding()
    deduplicate: Literal["pair", "image", "none"] = "pair"
    validation: float = 0.0
    shard_mb: float = 256


class Dropped(NamedTuple):
    """An example that is left out."""

    record: str
    """Its name in the source; the key in `dropped.jsonl`."""
    reason: str
    """One of `pair_filters.REASONS`."""
    detail: str
    """The value that was found."""


class Size(NamedTuple):
    """Size of an example whose key is among the smallest, for estimating the number of shards."""

    key: str
    split: str
    stored_bytes: int | None
    """If None, not known without encoding the image."""


class Scan(NamedTuple):
    """Result of the first pass for a range of examples."""

    rows: np.ndarray
    """[kept] of `ROW`."""
    dropped: list[Dropped]
    sizes: list[Size]


def scan_examples(source: Source, recipe: Recipe, examples: range) -> Scan:
    """Look at each example's header and captions; an image's pixels are looked at when written."""
    rows, dropped, sizes = [], [], []
    measured, encoded = (
        int(min(wanted / len(source), 1) * 2**64) for wanted in (_SIZES_WANTED, _ENCODINGS_WANTED)
    )

    def look_at(example: int) -> tuple[Pair, PairFacts, Mapping[str, Any]]:
        pair = source[example]
        facts = measure(pair)
        return pair, facts, source.fields(example) if recipe.filters.score_key is not None else {}

    looks = read_ahead(look_at, examples, reads_remotely(source))
    for example, look in zip(examples, looks, strict=True):
        try:
            pair, facts, fields = look()
        except UnreadableExampleError as error:
            dropped.append(Dropped(source.name(example), "unreadable", str(error)))
            continue
        why = recipe.filters.why_dropped(facts, fields)
        if why is not None:
            dropped.append(Dropped(source.name(example), *why))
            continue
        row = identify(pair, example, recipe)
        rows.append(row)
        high = row[0]
        if high < measured:
            key, split = f"{high:016x}{row[1]:016x}", SPLITS[row[3]]
            if not recipe.encoding.changes_images:
                sizes.append(Size(key, split, facts.image_bytes))
            elif high < encoded:
                sizes.append(Size(key, split, _encoded_bytes(pair, recipe.encoding)))
            else:
                sizes.append(Size(key, split, None))
    return Scan(np.array(rows, ROW), dropped, sizes)


def identify(pair: Pair, example: int, recipe: Recipe) -> _Row:
    """The example's `ROW`.

    Its split is a function of the image, so that no image is in both, whatever its captions.
    """
    data: Any = pair.image  # an array is a buffer too
    image = hashlib.sha256(data)
    if not isinstance(pair.image, bytes):
        image.update(repr(pair.image.shape).encode())
    digest = image.digest()
    split = int.from_bytes(digest[16:24], "big") < recipe.validation * 2**64
    if recipe.deduplicate != "image":
        captions = json.dumps(pair.captions).encode()
        digest = hashlib.sha256(digest + captions).digest()
    # Not the bytes that chose the split: the shards of a split would hold parts of their range.
    high, low = int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:16], "big")
    return high, low, example, int(split)


def _encoded_bytes(pair: Pair, encoding: ImageEncoding) -> int | None:
    try:
        return len(encode_for_storage(pair.image, encoding))
    except UnreadableExampleError:
        return None  # reported when it is to be written


def plan_shards(sizes: Iterable[Size], examples: int, recipe: Recipe) -> dict[str, int]:
    """Number of shards of each split, so that shards have about `recipe.shard_mb`."""
    distinct: dict[str, dict[str, int | None]] = {}
    for number, size in enumerate(sizes):
        key = size.key if recipe.deduplicate != "none" else f"{size.key}/{number}"
        distinct.setdefault(size.split, {})[key] = size.stored_bytes
    scale = max(examples / _SIZES_WANTED, 1)
    shards = dict.fromkeys(SPLITS, 1)  # a small split may have no example in the sample
    for split, of_split in distinct.items():
        known = [stored for stored in of_split.values() if stored is not None]
        mean = sum(known) / len(known) if known else 0
        shards[split] = max(round(scale * len(of_split) * mean / (recipe.shard_mb * 1e6)), 1)
    return shards


def shard_numbers(rows: np.ndarray, shards: int) -> np.ndarray:
    """[rows] the shard of each: `shards` ranges of keys of equal width."""
    return (rows["high"] >> np.uint64(32)) * np.uint64(shards) >> np.uint64(32)


class ShardReport(NamedTuple):
    """Result of the second pass for a shard."""

    pairs: int
    bytes: int
    sha256: str
    statistics: dict[str, Any]
    dropped: list[Dropped]


def write_shard(
    source: Source, recipe: Recipe, rows: np.ndarray, path: pathlib.Path
) -> ShardReport:
    """Write the examples of `rows`, in the order of their keys, to `path` on this machine.

    Raises:
        InputError: it cannot be written, or the corpus is another one than was scanned.
    """
    statistics, dropped = PairStatistics(), []
    try:
        writer = ArrayRecordWriter(os.fspath(path), "group_size:1,uncompressed")
        last_key, last_name = None, ""
        ordered = np.sort(rows, order=("high", "low", "example")).tolist()
        with contextlib.closing(writer):
            for row, read in _with_reads(source, recipe, ordered):
                key, name = row[:2], source.name(row[2])
                if key == last_key and recipe.deduplicate != "none":
                    dropped.append(Dropped(name, "duplicate", f"of {last_name}"))
                    continue
                try:
                    stored, facts = _load(name, read, recipe, row)
                except UnreadableExampleError as error:
                    dropped.append(Dropped(name, "unreadable", str(error)))
                    continue
                writer.write(stored)
                statistics.add(facts)
                last_key, last_name = key, name
        digest = _check_written(path, statistics.pairs)
    except (OSError, RuntimeError) as error:
        # RuntimeError is how the writer passes on what the operating system said.
        raise cannot_write(path, error) from None
    size = path.stat().st_size
    return ShardReport(statistics.pairs, size, digest, statistics.to_json(), dropped)


def _with_reads(
    source: Source, recipe: Recipe, ordered: Sequence[_Row]
) -> Iterator[tuple[_Row, _Read]]:
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


def _load(name: str, read: _Read, recipe: Recipe, row: _Row) -> tuple[bytes, PairFacts]:
    """The example in the form that is stored, and its measurements."""
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
        stored = encode_record(name, image, fields)
    except (TypeError, ValueError) as error:
        raise UnreadableExampleError(f"fields that JSON cannot hold: {error}") from error
    return stored, measure(Pair(image, pair.captions))


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
