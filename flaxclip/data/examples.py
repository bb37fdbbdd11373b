"""Position in the stream -> one row of a batch."""

import dataclasses

import grain

from flaxclip.data.captions import draw_caption
from flaxclip.data.order import CorpusOrder, Draw, example_rng, stand_in
from flaxclip.data.source import Source, UnreadableRecordError
from flaxclip.data.tokenizers import Tokenizer
from flaxclip.data.training_transform import AugmentConfig, transform_for_training
from flaxclip.data.transforms import ImageTransform
from flaxclip.data.worker import Example
from flaxclip.errors import InputError

MAX_REPLACEMENTS = 16
"""Records tried in place of an unreadable one. At 10% broken, all fail once in 10^16 examples."""


@dataclasses.dataclass(frozen=True)
class ExampleLoader:
    """Position in the stream -> example, as a pure function; runs in worker processes."""

    source: Source
    order: CorpusOrder | grain.MapDataset[Draw]
    tokenizer: Tokenizer
    transform: ImageTransform
    augment: AugmentConfig
    seed: int

    def __call__(self, position: int) -> Example:
        """The example at `position`; in place of an unreadable record, another one.

        Raises:
            InputError: `MAX_REPLACEMENTS` records in a row are unreadable.
        """
        draw = self.order[position]
        replaced: list[str] = []
        for attempt in range(MAX_REPLACEMENTS):
            try:
                return self._load(draw, tuple(replaced))
            except UnreadableRecordError as error:
                replaced.append(f"{self.source.name(draw.record)}: {error}".replace("\n", " "))
                draw = draw._replace(record=stand_in(self.source, draw.record, attempt))
        raise InputError(
            f"{MAX_REPLACEMENTS} records in a row are unreadable; the first: {replaced[0]}\n"
            "a few broken records are replaced by others, but this corpus is broken at large"
        )

    def name(self, position: int) -> str:
        """Name of the record at `position`."""
        return self.source.name(self.order[position].record)

    def _load(self, draw: Draw, replaced: tuple[str, ...]) -> Example:
        pair = self.source[draw.record]
        rng = example_rng(self.seed, draw, "image")
        pixels = transform_for_training(pair.image, self.transform, self.augment, rng)
        caption = draw_caption(pair, example_rng(self.seed, draw, "caption"))
        tokens, truncated = self.tokenizer.encode([caption])
        return Example(pixels, tokens[0], bool(truncated[0]), replaced)
