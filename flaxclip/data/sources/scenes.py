"""The built-in data: drawn scenes with captions, some colour–shape combinations held back.

Every example is a pure function of its split and index. Training never shows nor names an `UNSEEN`
combination, but shows each of its colours and each of its shapes in other combinations: to classify
one, a model must have learned each of the two words by itself.

The wide splits have the same scenes on canvases of 1:4 to 4:1, upright and lying, with a shape that
is as large as on a square of the shorter side and may be at either end: a square cut out of the
middle often misses it.
"""

from typing import Literal, get_args

import numpy as np

from flaxclip.data.sources.scene_drawing import COLOURS, SHIFTS, SIZES, Scene, Shift, render
from flaxclip.data.sources.source import Pair

Split = Literal["train", "seen", "unseen", "shift", "train-wide", "wide"]
"""`train` and `train-wide` draw from the seen combinations; the others are balanced evaluation
sets: `wide`, like `unseen` and `shift`, of the unseen ones."""

PATHS: dict[str, Split] = {"scenes": "train", "scenes-wide": "train-wide"}
"""What `data.path` calls the splits for training."""

SHAPES = (
    "circle", "square", "triangle", "diamond", "star", "heart",
    "cross", "ring", "crescent", "arrow", "semicircle", "bolt",
)  # fmt: skip
TEXTURES = ("plain", "striped", "dotted", "checkered")
POSITIONS = {
    (-1, -1): "top left", (0, -1): "top", (1, -1): "top right",
    (-1, 0): "left", (0, 0): "centre", (1, 0): "right",
    (-1, 1): "bottom left", (0, 1): "bottom", (1, 1): "bottom right",
}  # fmt: skip

ALL = tuple((colour, shape) for shape in SHAPES for colour in COLOURS)
# Two of every shape and two of every colour, so that no word is rarer than another.
UNSEEN = tuple(
    (tuple(COLOURS)[(place + offset) % len(COLOURS)], shape)
    for place, shape in enumerate(SHAPES)
    for offset in (3, 8)
)
SEEN = tuple(combination for combination in ALL if combination not in UNSEEN)

CAPTIONS = (
    "a {colour} {shape}",
    "a {size} {colour} {shape}",
    "a {texture} {colour} {shape}",
    "a {size} {texture} {colour} {shape}",
    "a {colour} {shape} on a {background} background",
    "a {colour} {shape} at the {position}",
    "a {size} {colour} {shape} at the {position}",
    "a picture of a {texture} {colour} {shape}",
    "a drawing of a {colour} {shape} at the {position} on {background}",
    "the {shape} is {colour} and {texture}",
    "the {shape} at the {position} is {colour}",
    "a {size} {texture} {colour} {shape} at the {position} on a {background} background",
)
PROMPT_TEMPLATES = ("a {}", "a picture of a {}", "a drawing of a {}")

_EVALUATION_IMAGES = {"seen": 16, "unseen": 40, "shift": 40, "wide": 40}
"""Images per class."""
_MOST_ASPECT = 4.0  # of the longer side to the shorter one
_TRAIN_EXAMPLES = 10_000_000


class ScenesSource:
    """Scenes of one split, drawn at `image_size` pixels a side, or in wide splits the shorter."""

    def __init__(self, split: Split, image_size: int):
        self.split = split
        self.image_size = image_size
        self.classes = SEEN if split in ("train", "seen", "train-wide") else UNSEEN

    def __len__(self) -> int:
        """Ten million for training; a fixed number a class for evaluation."""
        if self.split in PATHS.values():
            return _TRAIN_EXAMPLES
        return _EVALUATION_IMAGES[self.split] * len(self.classes)

    def __getitem__(self, index: int) -> Pair:
        """The scene of that index, and a caption with more or less detail."""
        rng = self._rng(index)
        scene = _draw_attributes(rng, self.classes[self.label(index)])
        caption = CAPTIONS[rng.integers(len(CAPTIONS))].format(
            **scene._asdict() | {"position": POSITIONS[scene.position]}
        )
        height, width = self._canvas(rng)
        return Pair(render(rng, scene, height, width, self.shift(index)), (caption,))

    def fields(self, index: int) -> dict[str, str]:
        """The caption, as if it stood in a text file beside the image."""
        return {"txt": self[index].captions[0]}

    def label(self, index: int) -> int:
        """Position of the example's combination in `classes`."""
        return index % len(self.classes)

    def shift(self, index: int) -> Shift | None:
        """The change from training's drawings; all kinds are equally frequent in every class."""
        if self.split != "shift":
            return None
        return SHIFTS[index // len(self.classes) % len(SHIFTS)]

    def name(self, index: int) -> str:
        """Split and index."""
        return f"scenes/{self.split}/{index}"

    def _canvas(self, rng: np.random.Generator) -> tuple[int, int]:
        """Height and width in pixels; of wide splits, the ratio is log-uniform."""
        short = self.image_size
        if "wide" not in self.split:
            return short, short
        aspect = _MOST_ASPECT ** rng.uniform(-1, 1)
        long = round(short * max(aspect, 1 / aspect))
        return (short, long) if aspect > 1 else (long, short)

    def _rng(self, index: int) -> np.random.Generator:
        split = get_args(Split).index(self.split)
        return np.random.Generator(np.random.Philox(key=[index, split]))


def _draw_attributes(rng: np.random.Generator, combination: tuple[str, str]) -> Scene:
    colour, shape = combination
    grounds = [name for name in COLOURS if name != colour]
    return Scene(
        colour,
        shape,
        TEXTURES[rng.integers(len(TEXTURES))],
        tuple(SIZES)[rng.integers(len(SIZES))],
        tuple(POSITIONS)[rng.integers(len(POSITIONS))],
        grounds[rng.integers(len(grounds))],
    )
