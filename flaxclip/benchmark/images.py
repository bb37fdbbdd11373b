"""Images of results: what they show, and small images for the page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
from jaxtyping import Int, UInt8

from flaxclip.benchmark.datasets import (
    Captioned,
    Images,
    Labelled,
    finish_of,
    measured_pixels,
)
from flaxclip.benchmark.embeddings import Embedder
from flaxclip.benchmark.prompts import Asked, Classification
from flaxclip.benchmark.results import Findings
from flaxclip.data.images.eval_transform import SizedTransform, Transform
from flaxclip.data.sources.source import UnreadableExampleError
from flaxclip.zero_shot.class_prompts import class_prompts

SHOWN = 12
THUMBNAIL = SizedTransform(96)


def draw_result(embedder: Embedder, asked: Asked, findings: Findings, stem: Path) -> dict[str, Any]:
    """Images of the findings; returns what the page needs to show them."""
    folder = stem.with_name(f"{stem.name}-images")
    if isinstance(asked, Captioned):
        shown, found = (findings.arrays[f"image_to_text_{name}"] for name in ("shown", "found"))
        first = dict(map(tuple, asked.pairs[::-1]))  # of several captions, the first
        truths = [asked.captions[first[int(index)]] for index in shown]
        guesses = [[asked.captions[best] for best in row[:3]] for row in found]
        _draw_overview(embedder, asked.images, truths, truths, guesses, shown, stem)
        return {"retrieved": _save_retrieved(findings, asked, folder)}
    if not isinstance(asked, Classification) or asked.data.labels.ndim != 1:
        return {}
    data, wording = asked
    names = wording.shown_names
    # Evenly spread: neighbours in a data set are often of one class.
    count = len(data.images)
    shown = np.linspace(0, count - 1, min(SHOWN, count)).astype(int)
    truths = [names[data.labels[index]] for index in shown]
    prompts = class_prompts(wording.class_names, wording.templates)
    captions = [prompts[data.labels[index]][0] for index in shown]
    guesses = [[names[best] for best in findings.arrays["ranking"][index, :3]] for index in shown]
    _draw_overview(embedder, data.images, truths, captions, guesses, shown, stem)
    return {"mistakes": _save_mistakes(findings, data, names, folder)}


def _save_mistakes(
    findings: Findings, data: Labelled, names: Sequence[str], folder: Path
) -> list[dict[str, Any]]:
    """The most confident mistakes as small images, and what the model took each for."""
    labels, first = findings.arrays["labels"], findings.arrays["ranking"][:, 0]
    confidence = findings.arrays["confidence"]
    wrong = np.flatnonzero(first != labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:SHOWN]
    found = []
    for number, index in enumerate(worst):
        found.append(
            {
                "image": _save_thumbnail(data.images, int(index), folder, f"{number:02}"),
                "name": data.images.name(int(index)),
                "class": names[labels[index]],
                "prediction": names[first[index]],
                "confidence": float(confidence[index]),
            }
        )
    return found


def _save_retrieved(findings: Findings, data: Captioned, folder: Path) -> list[dict[str, Any]]:
    """Some images with the captions found for them; the right ones are marked."""
    right = set(map(tuple, data.pairs))
    found = []
    rows = zip(
        findings.arrays["image_to_text_shown"], findings.arrays["image_to_text_found"], strict=True
    )
    for number, (index, captions) in enumerate(rows):
        found.append(
            {
                "image": _save_thumbnail(data.images, int(index), folder, f"{number:02}"),
                "name": data.images.name(int(index)),
                "captions": [
                    {"text": data.captions[c], "right": (int(index), int(c)) in right}
                    for c in captions
                ],
            }
        )
    return found


def _save_thumbnail(images: Images, index: int, folder: Path, stem: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}.jpg"
    PIL.Image.fromarray(_pixels(images, index, THUMBNAIL)).save(path, quality=85)
    return f"{folder.name}/{path.name}"


def _pixels(images: Images, index: int, transform: Transform) -> UInt8[np.ndarray, "size size 3"]:
    """An image as the model sees it, on a white square if it is none."""
    size = transform.size
    try:
        pixels = finish_of(images)(measured_pixels(images[index], transform))
        if pixels.shape[:2] == (size, size):
            return pixels
        return np.asarray(
            PIL.ImageOps.pad(PIL.Image.fromarray(pixels), (size, size), color="white")
        )
    except UnreadableExampleError:
        return np.zeros((transform.size, transform.size, 3), np.uint8)


def _draw_overview(
    embedder: Embedder,
    images: Images,
    truths: Sequence[str],
    captions: Sequence[str],
    guesses: Sequence[Sequence[str]],
    shown: Int[np.ndarray, " shown"],
    stem: Path,
) -> None:
    """Grids of some images: what they were taken for, and how similar to each other's captions.

    Lists have an entry for each image of `shown`.
    """
    from flaxclip.figures import draw_predictions, draw_similarities, save_figure  # slow to import

    transform = embedder.model.transform
    pixels = [_pixels(images, int(index), transform) for index in shown]
    save_figure(
        draw_predictions(pixels, truths, guesses), stem.with_name(f"{stem.name}-predictions.png")
    )
    zimg = embedder.embed_images(images, limited=False).z[shown]  # in memory still
    similarities = zimg @ embedder.encode_few_texts(captions).T
    path = stem.with_name(f"{stem.name}-similarities.png")
    save_figure(draw_similarities(pixels, captions, similarities), path)
