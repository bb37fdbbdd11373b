"""The first pass of `data.prepare`, over ranges of examples, as pure functions.

The scan reads every example once: it lists those that are unreadable or filtered out, and gives
each of the others a key, the hash of its contents. A shard is a range of keys, so its examples and
their order depend on the contents of the corpus alone; equal examples get into one shard, where the
second pass (`write_shards.py`) drops all but the first. Images are read twice rather than sent
around: the passes exchange 32 bytes an example.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from flaxclip.data.inspect.statistics import PairFacts, measure
from flaxclip.data.prepare.encoding import ImageEncoding, encode_for_storage
from flaxclip.data.prepare.filters import PairFilters
from flaxclip.data.read_ahead import read_ahead
from flaxclip.data.reinforced.reinforce import Reinforcing
from flaxclip.data.sources.corpus import CorpusConfig
from flaxclip.data.sources.source import Pair, Source, UnreadableExampleError, reads_remotely

SPLITS = ("train", "validation")
ROW = np.dtype([("high", "<u8"), ("low", "<u8"), ("example", "<u8"), ("split", "<u8")])
"""An example that the scan keeps: its key, in two halves, its number, and its place in `SPLITS`."""
Row: TypeAlias = tuple[int, int, int, int]
"""One of `ROW`, as plain numbers."""
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
    reinforcing: Reinforcing | None = None
    """What is stored of teachers. If None, nothing."""


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
                stored: int | None = facts.image_bytes
            else:
                stored = _encoded_bytes(pair, recipe.encoding) if high < encoded else None
            if stored is not None and recipe.reinforcing is not None:
                stored += recipe.reinforcing.bytes_per_example(len(pair.captions))
            sizes.append(Size(key, split, stored))
    return Scan(np.array(rows, ROW), dropped, sizes)


def identify(pair: Pair, example: int, recipe: Recipe) -> Row:
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
