"""How a built-in scene is drawn: one textured shape on a shaded background."""

import functools
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

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
SIZES = {"small": 0.32, "medium": 0.39, "large": 0.46}
"""Name to radius, in units of the image's shorter side."""


class Scene(NamedTuple):
    """The parameters of a drawing; colours in 0..255, lengths in units of the shorter side."""

    colour: str
    shape: str
    texture: str
    size: str
    position: tuple[int, int]
    background: str


def render(
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
