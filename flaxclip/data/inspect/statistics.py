"""Sizes of images and lengths of captions, counted so that counts of parts can be added up.

All is whole numbers, so the sum over any division of a corpus, in any order, is the same.
"""

import collections
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from flaxclip.data.images.open_image import open_image
from flaxclip.data.sources.source import Pair

_EXACT_BELOW = 64
"""Smaller values have a bin each; larger ones share a bin with those up to 1/32 above them."""
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


class PairFacts(NamedTuple):
    """Measurements of one pair."""

    image_format: str
    """Pillow's name of the format; `pixels` if the source holds pixels rather than files."""
    width: int
    height: int
    image_bytes: int
    captions: tuple[tuple[int, int], ...]
    """Characters and words of each caption."""


MEASURES: Mapping[str, str] = {
    "width": "width, px",
    "height": "height, px",
    "shorter_side": "shorter side, px",
    "aspect": "width : height × 100",
    "image_bytes": "image, bytes",
    "captions": "captions of a pair",
    "caption_characters": "characters of a caption",
    "caption_words": "words of a caption",
}
"""Quantities with a distribution: the field's name, and its description with the unit."""


def measure(pair: Pair) -> PairFacts:
    """The facts of a pair, from the image's header.

    Raises:
        UnreadableExampleError: not an image, or one of too many pixels.
    """
    image = pair.image
    image_format: str | None
    if isinstance(image, np.ndarray):
        (height, width), image_format, image_bytes = image.shape[:2], "pixels", image.nbytes
    else:
        header = open_image(image)
        (width, height), image_format, image_bytes = header.size, header.format, len(image)
    assert image_format is not None, "an image that is opened has one"
    captions = tuple((len(caption), len(caption.split())) for caption in pair.captions)
    return PairFacts(image_format, width, height, image_bytes, captions)


@dataclasses.dataclass
class Distribution:
    """A histogram of whole numbers, with their exact count, sum, smallest and largest."""

    bins: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    """Lower edge -> count."""
    total: int = 0
    smallest: int | None = None
    largest: int | None = None

    @property
    def count(self) -> int:
        return self.bins.total()

    @property
    def mean(self) -> float:
        return self.total / self.count

    def add(self, value: int) -> None:
        shift = max(value.bit_length() - _EXACT_BELOW.bit_length() + 1, 0)
        self.bins[value >> shift << shift] += 1
        self.total += value
        self.smallest = value if self.smallest is None else min(self.smallest, value)
        self.largest = value if self.largest is None else max(self.largest, value)

    def __iadd__(self, other: "Distribution") -> "Distribution":
        self.bins.update(other.bins)
        self.total += other.total
        ends = [end for end in (self.smallest, other.smallest) if end is not None]
        self.smallest = min(ends, default=None)
        ends = [end for end in (self.largest, other.largest) if end is not None]
        self.largest = max(ends, default=None)
        return self

    def quantile(self, share: float) -> int:
        """The lower edge of the bin at which `share` of all values is reached: exact below 64, at
        most 1/32 too low above.
        """
        assert self.smallest is not None, "there is no quantile of nothing"
        wanted, seen = share * self.count, 0
        for edge in sorted(self.bins):
            seen += self.bins[edge]
            if seen >= wanted:
                break
        return max(edge, self.smallest)

    def to_json(self) -> dict[str, Any]:
        if not self.count:
            return {"count": 0, "bins": []}
        return {
            "count": self.count,
            "sum": self.total,
            "mean": round(self.mean, 4),
            "smallest": self.smallest,
            "largest": self.largest,
            "quantiles": {f"{share:.0%}": self.quantile(share) for share in QUANTILES},
            "bins": sorted(self.bins.items()),
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Distribution":
        bins = collections.Counter(dict(stored["bins"]))
        return cls(bins, stored.get("sum", 0), stored.get("smallest"), stored.get("largest"))


@dataclasses.dataclass
class PairStatistics:
    """Distributions of `MEASURES` over pairs, and how many images there are in each format."""

    formats: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    distributions: dict[str, Distribution] = dataclasses.field(
        default_factory=lambda: {name: Distribution() for name in MEASURES}
    )

    @property
    def pairs(self) -> int:
        return self.formats.total()

    def add(self, facts: PairFacts) -> None:
        self.formats[facts.image_format] += 1
        for name, value in _values(facts):
            self.distributions[name].add(value)

    def __iadd__(self, other: "PairStatistics") -> "PairStatistics":
        self.formats.update(other.formats)
        for name, distribution in other.distributions.items():
            self.distributions[name] += distribution
        return self

    def to_json(self) -> dict[str, Any]:
        return {
            "pairs": self.pairs,
            "formats": dict(sorted(self.formats.items())),
            **{
                name: {"meaning": meaning, **self.distributions[name].to_json()}
                for name, meaning in MEASURES.items()
            },
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "PairStatistics":
        distributions = {name: Distribution.from_json(stored[name]) for name in MEASURES}
        return cls(collections.Counter(stored["formats"]), distributions)


def _values(facts: PairFacts) -> Iterator[tuple[str, int]]:
    yield "width", facts.width
    yield "height", facts.height
    yield "shorter_side", min(facts.width, facts.height)
    yield "aspect", round(100 * facts.width / facts.height)
    yield "image_bytes", facts.image_bytes
    yield "captions", len(facts.captions)
    for characters, words in facts.captions:
        yield "caption_characters", characters
        yield "caption_words", words
