"""Which caption belongs to an image, and which image to a caption, out of very few."""

import functools
import math

import numpy as np

from flaxclip.benchmark.datasets import Associations, Choices
from flaxclip.benchmark.embeddings import Embedder
from flaxclip.benchmark.methods.zero_shot import note_cut_texts
from flaxclip.benchmark.results import Findings
from flaxclip.benchmark.scores import mean_of, share_of_hits, with_interval


def choose_task(embedder: Embedder, data: Choices) -> Findings:
    """Text, image and group score of Thrush et al. 2022 (Winoground), section 3.2.

    Text: every image of an item is closest to its own caption; image: every caption to its own
    image; group: both. Ties count as wrong. An item of one image has a text score alone.
    """
    ztxt, cut = embedder.embed_texts(data.captions)
    zimg, unreadable = embedder.embed_images(data.images)
    similar = np.einsum("ipd,icd->ipc", zimg[data.image_rows], ztxt[data.caption_rows])
    images, captions = similar.shape[1:]
    own = similar[:, np.arange(images), np.arange(images)]
    # Each own similarity is among those that it is compared with, once.
    text = ((similar >= own[:, :, None]).sum(axis=2) == 1).all(axis=1)
    hits = {"text": (text, captions**-images)}
    if images > 1:
        image = ((similar >= own[:, None, :]).sum(axis=1) == 1).all(axis=1)
        # Of two by two random similarities, one of six orders has both own ones on top.
        hits |= {"image": (image, images**-captions), "group": (text & image, 1 / 6)}
    scores = {name: share_of_hits(hit, float(chance)) for name, (hit, chance) in hits.items()}
    arrays = {f"{name}_hits": hit for name, (hit, _) in hits.items()}
    return Findings(scores, {}, arrays, unreadable, note_cut_texts("captions", cut))


def associate_task(embedder: Embedder, data: Associations) -> Findings:
    """Jaccard index of the images that are closest to a cue and of those that go with it.

    Bitton et al. 2022 (WinoGAViL), section 4: a model picks as many images as go with the cue.
    """
    zcue, cut = embedder.embed_texts(data.cues)
    zimg, unreadable = embedder.embed_images(data.images)
    similar = np.einsum("nd,nd->n", zimg, zcue[data.item_of])
    scores, chances = np.zeros(len(data.cues)), np.zeros(len(data.cues))
    for item in range(len(data.cues)):
        right = data.goes_with_cue[data.item_of == item]
        wanted = int(right.sum())
        picked = np.argsort(-similar[data.item_of == item], kind="stable")[:wanted]
        hits = int(right[picked].sum())
        scores[item] = hits / (2 * wanted - hits)
        chances[item] = _blind_jaccard(len(right), wanted)
    score = with_interval(mean_of(scores), len(scores), float(chances.mean()))
    return Findings(
        {"jaccard": score}, {}, {"jaccard": scores}, unreadable, note_cut_texts("cues", cut)
    )


@functools.cache
def _blind_jaccard(candidates: int, wanted: int) -> float:
    """The expected index of a random pick of `wanted` out of `candidates`."""
    ways = math.comb(candidates, wanted)
    return sum(
        math.comb(wanted, hits) * math.comb(candidates - wanted, wanted - hits) / ways
        * hits / (2 * wanted - hits)
        for hits in range(wanted + 1)
    )  # fmt: skip
