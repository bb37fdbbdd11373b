"""Positions in the stream -> rows of a batch."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from concurrent.futures import Future

import numpy as np
from jaxtyping import UInt8

from flaxclip.data.images.eval_transform import NativeTransform, SizedTransform, Transform
from flaxclip.data.images.train_transform import (
    AugmentConfig,
    Crop,
    View,
    choose_crop,
    draw_changes,
    render_changed,
    view_of,
)
from flaxclip.data.order import Draw, Order, example_rng, replacement
from flaxclip.data.reinforced.stored_vectors import Reinforced, StoredTeacher
from flaxclip.data.reinforced.visits import read_reinforced, stored_arrays, stored_crop
from flaxclip.data.sequence_lengths import LengthSchedule
from flaxclip.data.sources.captions import draw_caption
from flaxclip.data.sources.runs import is_at_hand
from flaxclip.data.sources.source import (
    Pair,
    Source,
    UnreadableExampleError,
    place,
    reads_remotely,
)
from flaxclip.data.tokenizers.base import Tokenizer
from flaxclip.data.workers.batch_shapes import Row
from flaxclip.data.workers.reading_threads import call_in_thread
from flaxclip.errors import InputError

MAX_REPLACEMENTS = 16
"""Examples tried in place of an unreadable one. At 10% broken, all fail once in 10^16 rows."""


@dataclasses.dataclass
class _Loading:
    """A row that is being loaded."""

    position: int
    draw: Draw
    reading: Future[Pair | Reinforced] | None = None
    pair: Pair = dataclasses.field(init=False)
    reinforced: Reinforced | None = None
    """The example, if teachers' vectors are asked for."""
    drawn: int = 0
    """Number of the crop, of those that are stored."""
    caption: int = 0
    """Number of the caption."""
    vectors: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """Teachers' of this crop and this caption, by their names in `Row.extra`."""
    rng: np.random.Generator = dataclasses.field(init=False)
    crop: Crop = dataclasses.field(init=False)
    views: list[View] = dataclasses.field(init=False)
    """Of the student, and of those in `ExampleLoader.transforms`."""
    images: list[UInt8[np.ndarray, "h w 3"]] = dataclasses.field(init=False)
    """One for each of the views."""
    error: UnreadableExampleError | None = None
    replaced: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class ExampleLoader:
    """Positions in the stream -> rows, as a pure function; runs in worker processes."""

    source: Source
    order: Order
    tokenizer: Tokenizer
    transform: Transform
    augment: AugmentConfig
    seed: int
    transforms: Mapping[str, SizedTransform] = dataclasses.field(default_factory=dict)
    """Further views of the same crop, by their names in `Row.extra`."""
    tokenizers: Mapping[str, Tokenizer] = dataclasses.field(default_factory=dict)
    """Further ids of the same caption, likewise."""
    stored: tuple[StoredTeacher, ...] = ()
    """Teachers whose vectors every example has. If any, crops and captions are those of which they
    are stored, and `augment` does not count."""
    lengths: LengthSchedule | None = None
    """Patches of an image at each step, in place of those of `transform`, a `NativeTransform`."""

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
            for work in (self._read, self._draw, self._render):
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
        captions = [row.pair.captions[row.caption] for row in rows]
        tokens, truncated = self.tokenizer.encode(captions)
        others = {name: other.encode(captions) for name, other in self.tokenizers.items()}
        return [
            Row(
                row.images[0],
                tokens[place],
                bool(truncated[place]),
                tuple(row.replaced),
                dict(zip(self.transforms, row.images[1:], strict=True))
                | {name: ids[place] for name, (ids, _) in others.items()}
                | row.vectors,
                sum(int(cut[place]) for _, cut in others.values()),
            )
            for place, row in enumerate(rows)
        ]

    def read_ahead(self, positions: range) -> list[_Loading]:
        """Begin to read the examples at `positions`, where reading means waiting for a network."""
        rows = [_Loading(position, self.order[position]) for position in positions]
        self._begin_reading(rows)
        return rows

    def name(self, position: int) -> str:
        """Name of the example at `position`; for messages of what may be held up, so no waiting."""
        return place(self.source, self.order[position].example)

    def _begin_reading(self, rows: list[_Loading]) -> None:
        if reads_remotely(self.source):
            for row in rows:
                # By the loading thread itself, if there is nothing to wait for: a tenth faster.
                if not is_at_hand(self.source, row.draw.example):
                    row.reading = call_in_thread(self._example, row.draw.example)

    def _read(self, row: _Loading) -> None:
        # Requests begin in the order in which they are waited for here: if one hangs, the others
        # before it end, and the position that was begun last is its own.
        example = row.reading.result() if row.reading else self._example(row.draw.example)
        row.reading = None
        if isinstance(example, Reinforced):
            row.reinforced, row.pair = example, example.pair
        else:
            row.pair = example

    def _example(self, number: int) -> Pair | Reinforced:
        if not self.stored:
            return self.source[number]
        return read_reinforced(self.source, number, self.stored)

    def _draw(self, row: _Loading) -> None:
        """Choose a caption, a crop and the views of it."""
        make_rng = functools.partial(example_rng, self.seed, row.draw, "caption")
        row.caption = draw_caption(row.pair, make_rng)
        row.rng = example_rng(self.seed, row.draw, "image")
        if row.reinforced is None:
            row.crop = choose_crop(row.pair.image, self.transform, self.augment, row.rng)
        else:
            row.drawn = int(row.rng.integers(len(row.reinforced.crops)))
            row.crop = stored_crop(row.reinforced, row.drawn)
            row.vectors = stored_arrays(row.reinforced, row.drawn, row.caption)
        transforms = self._student_transform(row.position), *self.transforms.values()
        row.views = [view_of(row.crop.box, transform) for transform in transforms]

    def _render(self, row: _Loading) -> None:
        if row.reinforced is None:
            changes = draw_changes(self.augment, row.rng)
        else:
            changes = row.reinforced.crops[row.drawn].changes
        row.images = render_changed(row.crop, row.views, changes)

    def _student_transform(self, position: int) -> Transform:
        if self.lengths is None:
            return self.transform
        assert isinstance(self.transform, NativeTransform), "squares have no length"
        step = self.lengths.step_at(position)
        return self.transform._replace(max_patches=self.lengths.at(step).patches)

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
