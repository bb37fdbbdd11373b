"""Inspect a sample of a corpus, and keep exact figures apart from estimates."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from flaxclip.data.images.open_image import decode_image
from flaxclip.data.inspect.statistics import PairFacts, PairStatistics, measure
from flaxclip.data.inspect.vectors import StoredVectors, count_vectors
from flaxclip.data.read_ahead import read_ahead
from flaxclip.data.sources.source import Pair, Source, UnreadableExampleError, reads_remotely


class Sample(NamedTuple):
    """An example to be shown."""

    name: str
    pair: Pair
    facts: PairFacts


@dataclasses.dataclass(frozen=True)
class Inspection:
    """Results of an inspection. Statistics cover the examples that were read and are intact."""

    examples: int
    read: int
    statistics: PairStatistics
    broken: list[tuple[str, str]]
    """Name and fault of each broken example among those read."""
    samples: list[Sample]
    vectors: StoredVectors | None = None
    """Of teachers, with the intact ones; None if there are none."""

    @property
    def is_exact(self) -> bool:
        """True if every example was read."""
        return self.read == self.examples

    @property
    def broken_interval(self) -> tuple[float, float]:
        """95% confidence interval of the share of broken examples (Clopper & Pearson 1934)."""
        if self.is_exact:
            return (len(self.broken) / self.examples,) * 2
        interval = scipy.stats.binomtest(len(self.broken), self.read).proportion_ci(0.95)
        # What was seen is there, whatever the sample lets one expect.
        unread = self.examples - self.read
        low = max(interval.low, len(self.broken) / self.examples)
        high = min(interval.high, (len(self.broken) + unread) / self.examples)
        return float(low), float(high)

    def to_json(self) -> dict[str, Any]:
        low, high = self.broken_interval
        return {
            "records": self.examples,
            "read": self.read,
            "exact": self.is_exact,
            "broken": {
                "of_those_read": len(self.broken),
                "share": len(self.broken) / self.read,
                "interval_95": [low, high],
                "records": [{"record": name, "found": found} for name, found in self.broken],
            },
            "statistics": self.statistics.to_json(),
            "teacher_vectors": self.vectors and self.vectors.to_json(),
            "samples": [
                {
                    "record": sample.name,
                    "format": sample.facts.image_format,
                    "width": sample.facts.width,
                    "height": sample.facts.height,
                    "bytes": sample.facts.image_bytes,
                    "captions": sample.pair.captions,
                }
                for sample in self.samples
            ],
        }


def inspect_source(source: Source, sample: int, shown: int, seed: int) -> Inspection:
    """Read `sample` examples of a corpus, or all if it has no more, and decode their images.

    Args:
        source: the corpus.
        sample: number of examples to read; drawn without replacement, read in their order.
        shown: number of whole ones to keep, drawn from those that were read.
        seed: of both draws.
    """
    rng = np.random.default_rng(seed)
    examples = len(source)
    numbers: Sequence[int] = range(examples)
    if sample < examples:
        numbers = sorted(rng.choice(examples, sample, replace=False, shuffle=False).tolist())
    kept = set(rng.permutation(len(numbers))[: 2 * shown].tolist())  # some may be broken
    statistics, broken, samples = PairStatistics(), [], []
    intact = []
    reads = read_ahead(source.__getitem__, numbers, reads_remotely(source))
    for place, (number, read) in enumerate(zip(numbers, reads, strict=True)):
        try:
            pair = read()
            facts = measure(pair)
            if isinstance(pair.image, bytes):
                decode_image(pair.image)
        except UnreadableExampleError as error:
            broken.append((source.name(number), str(error)))
            continue
        statistics.add(facts)
        intact.append(number)
        if place in kept:
            samples.append(Sample(source.name(number), pair, facts))
    rng.shuffle(samples)
    vectors = count_vectors(source, intact)
    return Inspection(examples, len(numbers), statistics, broken, samples[:shown], vectors)
