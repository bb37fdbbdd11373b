"""Several corpora as one."""

import bisect
import functools
import itertools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from flaxclip.data.sources.runs import extents_of, is_at_hand, run_of
from flaxclip.data.sources.source import Pair, Source, place, reads_remotely
from flaxclip.data.storage.ranged_reads import Extent


class MixtureSource:
    """Corpora one after the other; `data.order` draws from them in proportion to their weights.

    Each keeps its own captions: they are chosen where the corpus is opened.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float]):
        """`weights`: examples of each corpus in the stream, relative to the others."""
        self.sources = tuple(sources)
        self.weights = tuple(weights)
        self.starts = (0, *itertools.accumulate(len(source) for source in sources[:-1]))

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    def __getitem__(self, index: int) -> Pair:
        number, index = self._locate(index)
        return self.sources[number][index]

    def reinforced(self, index: int) -> Any:
        """What is stored of teachers with the example, if its corpus has that."""
        number, index = self._locate(index)
        return self.sources[number].reinforced(index)  # type: ignore[attr-defined]

    def fields(self, index: int) -> Mapping[str, Any]:
        """The fields of the example in its corpus."""
        number, index = self._locate(index)
        return self.sources[number].fields(index)

    def name(self, index: int) -> str:
        """With the corpus's number in front: shards of two may have one name."""
        number, index = self._locate(index)
        return f"mixture.{number}/{self.sources[number].name(index)}"

    def place(self, index: int) -> str:
        """As `name`, without waiting."""
        number, index = self._locate(index)
        return f"mixture.{number}/{place(self.sources[number], index)}"

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of each corpus in the stream."""
        return tuple(weight / sum(self.weights) for weight in self.weights)

    def bounds(self, index: int) -> tuple[int, int]:
        """First example, and one past the last, of the corpus that the example belongs to."""
        number, _ = self._locate(index)
        return self.starts[number], self.starts[number] + len(self.sources[number])

    @functools.cached_property
    def reads_remotely(self) -> bool:
        """True if one of the corpora does."""
        return any(map(reads_remotely, self.sources))

    def run_of(self, index: int) -> tuple[int, Hashable] | None:
        """The corpus and its run that the example is fetched with; None if it is read alone."""
        number, index = self._locate(index)
        run = run_of(self.sources[number], index)
        return None if run is None else (number, run)

    def extents_of(self, index: int) -> tuple[Extent, ...]:
        """The extents that the example is fetched with; none if it is read alone."""
        number, index = self._locate(index)
        return extents_of(self.sources[number], index)

    def is_at_hand(self, index: int) -> bool:
        """True if reading the example means no waiting for a network."""
        number, index = self._locate(index)
        part = self.sources[number]
        return not reads_remotely(part) or is_at_hand(part, index)

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self):,}")
        number = bisect.bisect_right(self.starts, index) - 1
        return number, index - self.starts[number]
