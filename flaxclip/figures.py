"""Figures of a model's view: similarity matrices, and grids of predictions."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
from jaxtyping import Float, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_DOTS_PER_INCH = 110


def draw_similarities(
    images: Sequence[UInt8[np.ndarray, "h w 3"]],
    captions: Sequence[str],
    similarities: Float[np.ndarray, "images captions"],
) -> Figure:
    """An image of cosine similarities: images along the top, captions down the side."""
    count = len(images)
    figure = Figure(figsize=(3.2 + 0.62 * count, 1.2 + 0.62 * count), layout="constrained")
    axes = figure.subplots(2, 1, height_ratios=(1, count))
    # "auto" fills the width of the matrix below: each image stands over its own column.
    axes[0].imshow(np.concatenate(images, axis=1), aspect="auto")
    axes[0].set_axis_off()
    values = similarities.T
    axes[1].imshow(values, cmap="viridis", aspect="auto")
    middle = (values.min() + values.max()) / 2
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            value = values[row, column]
            ink = "black" if value > middle else "white"
            axes[1].text(column, row, f"{value:.2f}", ha="center", va="center", color=ink, size=7)
    # Dollars are dollars: between two of them Matplotlib would read a formula, or fail to.
    labels = [_short(caption) for caption in captions]
    axes[1].set_yticks(range(len(captions)), labels, parse_math=False)
    axes[1].set_xticks([])
    return figure


def draw_predictions(
    images: Sequence[UInt8[np.ndarray, "h w 3"]],
    truths: Sequence[str],
    guesses: Sequence[Sequence[str]],
    columns: int = 6,
) -> Figure:
    """A grid of images with their three best guesses; the right one is green and ticked."""
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.9 * columns, 2.7 * rows))
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(0.01, 0.34 / rows, 0.99, 1 - 0.12 / rows, wspace=0.05, hspace=0.55)
    for place in axes.flat:
        place.set_axis_off()
    for place, image, truth, guess in zip(axes.flat, images, truths, guesses, strict=False):
        place.imshow(image)
        place.set_title(_short(truth, 26), size=9, weight="bold", parse_math=False)
        for line, name in enumerate(guess):
            right = name == truth
            mark = "✓ " if right else ""
            colour = "tab:green" if right else "dimgrey"
            place.text(
                0.5, -0.06 - 0.12 * line, f"{mark}{_short(name, 26)}",
                transform=place.transAxes, ha="center", va="top", size=8, color=colour,
                parse_math=False,
            )  # fmt: skip
    return figure


def _short(text: str, length: int = 34) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def save_figure(figure: Figure, path: Path) -> None:
    """Write the figure in the format of the extension of `path`."""
    # `Figure.savefig` would draw it twice.
    PIL.Image.fromarray(figure_pixels(figure)).save(path)


def figure_pixels(figure: Figure) -> UInt8[np.ndarray, "h w 3"]:
    """The figure as pixels."""
    figure.set_dpi(_DOTS_PER_INCH)
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        # One line for each Chinese sign of a caption, say; the page has captions as text.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]
