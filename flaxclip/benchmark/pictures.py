"""Pictures of results: grids of predictions, similarity matrices, small pictures for the page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure

from flaxclip.benchmark.datasets import Captioned, Labelled, Pictures
from flaxclip.benchmark.embeddings import Embedder
from flaxclip.benchmark.zero_shot import Result
from flaxclip.data.source import UnreadableRecordError
from flaxclip.data.transforms import ImageTransform, decode_image, preprocess

SHOWN = 12
THUMBNAIL = ImageTransform(96)


def draw_similarities(
    images: Sequence[UInt8[np.ndarray, "h w 3"]],
    captions: Sequence[str],
    similarities: Float[np.ndarray, "images captions"],
    path: Path,
) -> None:
    """A picture of cosine similarities: pictures along the top, captions down the side."""
    count = len(images)
    figure = Figure(figsize=(3.2 + 0.62 * count, 1.2 + 0.62 * count), layout="constrained")
    axes = figure.subplots(2, 1, height_ratios=(1, count))
    # "auto" fills the width of the matrix below: each picture stands over its own column.
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
    axes[1].set_yticks(range(len(captions)), [_short(caption) for caption in captions])
    axes[1].set_xticks([])
    figure.savefig(path, dpi=110)


def draw_predictions(
    images: Sequence[UInt8[np.ndarray, "h w 3"]],
    truths: Sequence[str],
    guesses: Sequence[Sequence[str]],
    path: Path,
    columns: int = 6,
) -> None:
    """A grid of pictures with their three best guesses; the right one is green and ticked."""
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.9 * columns, 2.7 * rows))
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(0.01, 0.34 / rows, 0.99, 1 - 0.12 / rows, wspace=0.05, hspace=0.55)
    for place in axes.flat:
        place.set_axis_off()
    for place, image, truth, guess in zip(axes.flat, images, truths, guesses, strict=False):
        place.imshow(image)
        place.set_title(_short(truth, 26), size=9, weight="bold")
        for line, name in enumerate(guess):
            right = name == truth
            mark = "✓ " if right else ""
            colour = "tab:green" if right else "dimgrey"
            place.text(
                0.5, -0.06 - 0.12 * line, f"{mark}{_short(name, 26)}",
                transform=place.transAxes, ha="center", va="top", size=8, color=colour,
            )  # fmt: skip
    figure.savefig(path, dpi=110)


def _short(text: str, length: int = 34) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def save_mistakes(
    result: Result, data: Labelled, names: Sequence[str], folder: Path
) -> list[dict[str, Any]]:
    """The most confident mistakes as small pictures, and what the model took each for."""
    labels, first = result.arrays["labels"], result.arrays["ranking"][:, 0]
    confidence = result.arrays["confidence"]
    wrong = np.flatnonzero(first != labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:SHOWN]
    found = []
    for number, index in enumerate(worst):
        found.append(
            {
                "picture": _save_thumbnail(data.pictures, int(index), folder, f"{number:02}"),
                "name": data.pictures.name(int(index)),
                "class": names[labels[index]],
                "prediction": names[first[index]],
                "confidence": float(confidence[index]),
            }
        )
    return found


def save_retrieved(result: Result, data: Captioned, folder: Path) -> list[dict[str, Any]]:
    """Some pictures with the captions found for them; the right ones are marked."""
    right = set(map(tuple, data.pairs))
    found = []
    rows = zip(
        result.arrays["image_to_text_shown"], result.arrays["image_to_text_found"], strict=True
    )
    for number, (index, captions) in enumerate(rows):
        found.append(
            {
                "picture": _save_thumbnail(data.pictures, int(index), folder, f"{number:02}"),
                "name": data.pictures.name(int(index)),
                "captions": [
                    {"text": data.captions[c], "right": (int(index), int(c)) in right}
                    for c in captions
                ],
            }
        )
    return found


def _save_thumbnail(pictures: Pictures, index: int, folder: Path, stem: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}.jpg"
    PIL.Image.fromarray(_pixels(pictures, index, THUMBNAIL)).save(path, quality=85)
    return f"{folder.name}/{path.name}"


def _pixels(
    pictures: Pictures, index: int, transform: ImageTransform
) -> UInt8[np.ndarray, "h w 3"]:
    try:
        image = pictures[index]
        image = decode_image(image).convert("RGB") if isinstance(image, bytes) else image
        return preprocess(image, transform)
    except UnreadableRecordError:
        return np.zeros((transform.size, transform.size, 3), np.uint8)


def draw_overview(
    embedder: Embedder,
    pictures: Pictures,
    truths: Sequence[str],
    captions: Sequence[str],
    guesses: Sequence[Sequence[str]],
    shown: Sequence[int],
    stem: Path,
) -> None:
    """Grids of some pictures: what they were taken for, and how similar to each other's captions.

    Lists have an entry for each picture of `shown`.
    """
    transform = embedder.model.transform
    pixels = [_pixels(pictures, int(index), transform) for index in shown]
    draw_predictions(pixels, truths, guesses, stem.with_name(f"{stem.name}-predictions.png"))
    model = embedder.model
    zimg, ztxt = model.encode_image(np.stack(pixels)), model.encode_text(list(captions))
    similarities = np.asarray(zimg @ ztxt.T)
    path = stem.with_name(f"{stem.name}-similarities.png")
    draw_similarities(pixels, captions, similarities, path)
