"""Positions in the stream -> rows of a batch."""

import dataclasses
import functools
from collections.abc import Callable
from concurrent.futures import Future

import grain
import numpy as np
from jaxtyping import UInt8

from flaxclip.data.images.eval_transform import SizedTransform
from flaxclip.data.images.train_transform import AugmentConfig, Crop, choose_crop, render_crop
from flaxclip.data.order import CorpusOrder, Draw, example_rng, replacement
from flaxclip.data.sources.captions import draw_caption
from flaxclip.data.sources.runs import is_at_hand
from flaxclip.data.sources.source import Pair, Source, UnreadableExampleError, reads_remotely
from flaxclip.data.tokenizers.base import Tokenizer
from flaxclip.data.workers.host_batches import Row
from flaxclip.data.workers.reading_threads import call_in_thread
from flaxclip.errors import InputError

MAX_REPLACEMENTS = 16
"""Examples tried in place of an unreadable one. At 10% broken, all fail once in 10^16 rows."""


@dataclasses.dataclass
class _Loading:
    """A row that is being loaded."""

    position: int
    draw: Draw
    reading: Future[Pair] | None = None
    pair: Pair = dataclasses.field(init=False)
    rng: np.random.Generator = dataclasses.field(init=False)
    crop: Crop = dataclasses.field(init=False)
    pixels: UInt8[np.ndarray, "size size 3"] = dataclasses.field(init=False)
    error: UnreadableExampleError | None = None
    replaced: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class ExampleLoader:
    """Positions in the stream -> rows, as a pure function; runs in worker processes."""

    source: Source
    order: CorpusOrder | grain.MapDataset[Draw]
    tokenizer: Tokenizer
    transform: SizedTransform
    augment: AugmentConfig
    seed: int

    def __call__(
        self,
        positions: range,
        begin: Callable[[int], None],
        ahead: list[_Loading] | None = None,
    ) -> list[Row]:
        """The rows at `positions`; an unreadable example is replaced by another one.

        Args:
            positions: in the stream.
            begin: called with each position that is about to be worked on, or waited for.
            ahead: what `read_ahead` has returned for these positions.

        Raises:
            InputError: `MAX_REPLACEMENTS` examples in a row are unreadable.
        """
        rows = self.read_ahead(positions) if ahead is None else ahead
        pending = rows
        while pending:
            # All of one kind of work, then of the next: decoding an image leaves nothing of the
            # others' code and data in the core's cache.
            for work in (self._read, self._choose_crop, self._render):
                for row in pending:
                    if row.error is None:
                        begin(row.position)
                        try:
                            work(row)
                        except UnreadableExampleError as error:
                            row.error = error
            pending = [row for row in pending if row.error is not None]
            for row in pending:
                self._replace(row)
            self._begin_reading(pending)
        captions = [
            draw_caption(row.pair, functools.partial(example_rng, self.seed, row.draw, "caption"))
            for row in rows
        ]
        tokens, truncated = self.tokenizer.encode(captions)
        return [
            Row(row.pixels, ids, bool(cut), tuple(row.replaced))
            for row, ids, cut in zip(rows, tokens, truncated, strict=True)
        ]

    def read_ahead(self, positions: range) -> list[_Loading]:
        """Begin to read the examples at `positions`, where reading means waiting for a network."""
        rows = [_Loading(position, self.order[position]) for position in positions]
        self._begin_reading(rows)
        return rows

    def name(self, position: int) -> str:
        """Name of the example at `position`."""
        return self.source.name(self.order[position].example)

    def _begin_reading(self, rows: list[_Loading]) -> None:
        if reads_remotely(self.source):
            for row in rows:
                # By the loading thread itself, if there is nothing to wait for: a tenth faster.
                if not is_at_hand(self.source, row.draw.example):
                    row.reading = call_in_thread(self.source.__getitem__, row.draw.example)

    def _read(self, row: _Loading) -> None:
        # Requests begin in the order in which they are waited for here: if one hangs, the others
        # before it end, and the position that was begun last is its own.
        row.pair = row.reading.result() if row.reading else self.source[row.draw.example]
        row.reading = None

    def _choose_crop(self, row: _Loading) -> None:
        row.rng = example_rng(self.seed, row.draw, "image")
        row.crop = choose_crop(row.pair.image, self.transform, self.augment, row.rng)

    def _render(self, row: _Loading) -> None:
        row.pixels = render_crop(row.crop, self.transform, self.augment, row.rng)

    def _replace(self, row: _Loading) -> None:
        """Draw another example."""
        name = self.source.name(row.draw.example)
        row.replaced.append(f"{name}: {row.error}".replace("\n", " "))
        if len(row.replaced) == MAX_REPLACEMENTS:
            raise InputError(
                f"{MAX_REPLACEMENTS} examples in a row are unreadable; the first: "
                f"{row.replaced[0]}\n"
                "a few broken examples are replaced by others, but this corpus is broken at large"
            )
        example = replacement(self.source, row.draw.example, len(row.replaced) - 1)
        row.draw, row.error = row.draw._replace(example=example), None
