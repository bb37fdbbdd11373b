"""The built-in data: drawn scenes with captions, some colour–shape combinations held back.

Every example is a pure function of its split and index. Training never shows nor names an `UNSEEN`
combination, but shows each of its colours and each of its shapes in other combinations: to classify
one, a model must have learned each of the two words by itself.

The wide splits have the same scenes on canvases of 1:4 to 4:1, upright and lying, with a shape that
is as large as on a square of the shorter side and may be at either end: a square cut out of the
middle often misses it.
"""

import functools
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from flaxclip.data.sources.source import Pair

Split = Literal["train", "seen", "unseen", "shift", "train-wide", "wide"]
"""`train` and `train-wide` draw from the seen combinations; the others are balanced evaluation
sets: `wide`, like `unseen` and `shift`, of the unseen ones."""

PATHS: dict[str, Split] = {"scenes": "train", "scenes-wide": "train-wide"}
"""What `data.path` calls the splits for training."""

Shift = Literal["outline", "noise", "palette", "background"]
SHIFTS: tuple[Shift, ...] = ("outline", "noise", "palette", "background")
"""A line instead of a filled shape; ten times the noise; washed-out colours; tiles behind."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 30, 35),
    "orange": (245, 135, 20),
    "yellow": (250, 225, 40),
    "green": (40, 150, 55),
    "cyan": (60, 215, 225),
    "blue": (35, 70, 205),
    "purple": (130, 45, 165),
    "pink": (250, 145, 190),
    "brown": (115, 70, 35),
    "white": (248, 248, 248),
    "grey": (135, 135, 135),
    "black": (18, 18, 18),
}
SHAPES = (
    "circle", "square", "triangle", "diamond", "star", "heart",
    "cross", "ring", "crescent", "arrow", "semicircle", "bolt",
)  # fmt: skip
TEXTURES = ("plain", "striped", "dotted", "checkered")
SIZES = {"small": 0.32, "medium": 0.39, "large": 0.46}
"""Name to radius, in units of the image's shorter side."""
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


class Scene(NamedTuple):
    """The parameters of a drawing; colours in 0..255, lengths in units of the shorter side."""

    colour: str
    shape: str
    texture: str
    size: str
    position: tuple[int, int]
    background: str


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
        return Pair(_render(rng, scene, height, width, self.shift(index)), (caption,))

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


def _render(
    rng: np.random.Generator, scene: Scene, height: int, width: int, shift: Shift | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """A filled shape on a slightly shaded background; or changed as training never shows it."""
    x, y = _grid(height, width)
    ground, ink = _tint(rng, scene.background), _tint(rng, scene.colour)
    if shift == "palette":
        wash = rng.uniform(0.25, 0.45)
        ground, ink = (colour * (1 - wash) + 128 * wash for colour in (ground, ink))

    across, down = _float32(rng.uniform(-25, 25, 2) / _extent(height, width))
    canvas = ground + (x * across + y * down)[..., None]
    if shift == "background":
        tiles = (np.floor(x * 5) + np.floor(y * 5)) % 2
        canvas = canvas + tiles[..., None] * _float32(rng.uniform(-70, 70, 3))

    outline = 0.28 if shift == "outline" else 0.0
    mask = _mask(rng, scene, height, width, outline)[..., None]
    paint = ink + _pattern(rng, scene.texture, height, width)[..., None] * _contrast(ink)
    noise = rng.standard_normal((height, width, 1), np.float32) * (40 if shift == "noise" else 4)
    image = canvas + mask * (paint - canvas) + noise
    return image.clip(0, 255).astype(np.uint8)


@functools.cache
def _grid(height: int, width: int) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    """Pixel centres, x and y, from the middle; along the shorter side from -0.5 to 0.5."""
    x, y = (
        _float32((np.arange(pixels) + 0.5) / min(height, width) - extent / 2)
        for pixels, extent in zip((width, height), _extent(height, width), strict=True)
    )
    return np.broadcast_to(x, (height, width)), np.broadcast_to(y[:, None], (height, width))


def _extent(height: int, width: int) -> Float[np.ndarray, " 2"]:
    """Width and height in units of the shorter side."""
    return np.array([width, height]) / min(height, width)


def _tint(rng: np.random.Generator, colour: str) -> Float[np.ndarray, " 3"]:
    return _float32(COLOURS[colour] + rng.uniform(-14, 14, 3))


def _float32(values: np.ndarray) -> np.ndarray:
    # Images are 8-bit: drawing them in double precision would only take twice the time.
    return values.astype(np.float32)


def _contrast(ink: Float[np.ndarray, " 3"]) -> Float[np.ndarray, " 3"]:
    """Towards black for light inks, towards white for dark ones: a texture keeps its colour."""
    return (-ink if ink.mean() > 90 else 255 - ink) * 0.25


def _pattern(
    rng: np.random.Generator, texture: str, height: int, width: int
) -> Float[np.ndarray, "h w"]:
    """1 where a texture's second tone lies, else 0."""
    if texture == "plain":
        return np.zeros((height, width), np.float32)
    x, y = _grid(height, width)
    across, down = _float32(rng.uniform(0, 1, 2))
    if texture == "striped":
        angle = np.float32(rng.uniform(0, np.pi))
        return (((x * np.cos(angle) + y * np.sin(angle)) * 7 + across) % 1 < 0.5).astype(np.float32)
    if texture == "dotted":
        dx, dy = (x * 6 + across) % 1 - 0.5, (y * 6 + down) % 1 - 0.5
        return (dx * dx + dy * dy < 0.09).astype(np.float32)
    return (np.floor(x * 7 + across) + np.floor(y * 7 + down)) % 2


_SUPERSAMPLING = 4


def _mask(
    rng: np.random.Generator, scene: Scene, height: int, width: int, outline: float = 0.0
) -> Float[np.ndarray, "h w"]:
    """Coverage of each pixel, 0..1. `outline`: width of the drawn line over the radius; 0 fills."""
    radius = SIZES[scene.size] * rng.uniform(0.95, 1.05)
    # A shape keeps inside the image, so a large one moves less.
    middle = _extent(height, width) / 2
    room = np.maximum(middle - radius, 0.0)
    centre = middle + np.array(scene.position) * room * rng.uniform(0.7, 1.0, 2)
    angle = rng.uniform(-0.15, 0.15)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    fine = min(height, width) * _SUPERSAMPLING
    image = Image.new("L", (width * _SUPERSAMPLING, height * _SUPERSAMPLING))
    draw = ImageDraw.Draw(image)
    for points, ink in _outlines()[scene.shape]:
        corners = (((points @ turn.T) * radius + centre) * fine).ravel().tolist()
        if outline:
            draw.line([*corners, *corners[:2]], 255, round(outline * radius * fine), "curve")
        else:
            draw.polygon(corners, ink)
    return np.asarray(image.reduce(_SUPERSAMPLING), np.float32) / 255


@functools.cache
def _outlines() -> dict[str, list[tuple[Float[np.ndarray, "points 2"], int]]]:
    """Polygons within the unit circle, y down, each with its fill: 255, or 0 for a hole."""

    def arc(start: float, stop: float, radius: float = 1.0, x: float = 0.0) -> np.ndarray:
        t = np.linspace(start, stop, 32)
        return np.stack([x + radius * np.cos(t), radius * np.sin(t)], 1)

    def alternate(points: int, inner: float) -> np.ndarray:
        t = np.arange(2 * points) * np.pi / points - np.pi / 2
        return (
            np.stack([np.cos(t), np.sin(t)], 1)
            * np.where(np.arange(2 * points) % 2, inner, 1)[:, None]
        )

    full = 2 * np.pi
    t = np.linspace(0, full, 48)
    heart = np.stack(
        [
            16 * np.sin(t) ** 3,
            5 * np.cos(2 * t) + 2 * np.cos(3 * t) + np.cos(4 * t) - 13 * np.cos(t),
        ],
        1,
    )
    a, b = 0.32, 0.95
    polygons = {
        "circle": arc(0.0, full) * 0.9,
        "square": np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.78,
        "triangle": np.array([(0, -1), (0.95, 0.75), (-0.95, 0.75)]),
        "diamond": np.array([(0, -1), (0.62, 0), (0, 1), (-0.62, 0)]),
        "star": alternate(5, 0.42),
        "heart": heart / 17,
        "cross": np.array(
            [
                (-a, -b),
                (a, -b),
                (a, -a),
                (b, -a),
                (b, a),
                (a, a),
                (a, b),
                (-a, b),
                (-a, a),
                (-b, a),
                (-b, -a),
                (-a, -a),
            ]
        ),
        "crescent": np.concatenate(
            [arc(0.96, full - 0.96), arc(1.63, full - 1.63, 0.82, 0.62)[::-1]]
        ),
        "arrow": np.array(
            [(-1, -0.3), (0.1, -0.3), (0.1, -0.8), (1, 0), (0.1, 0.8), (0.1, 0.3), (-1, 0.3)]
        ),
        "semicircle": arc(np.pi, full) + np.array([0, 0.45]),
        "bolt": np.array(
            [(0.35, -1), (-0.6, 0.2), (-0.05, 0.2), (-0.35, 1), (0.6, -0.25), (0.05, -0.25)]
        ),
    }
    outlines = {name: [(points, 255)] for name, points in polygons.items()}
    outlines["ring"] = [(arc(0.0, full) * 0.95, 255), (arc(0.0, full) * 0.5, 0)]
    return outlines
