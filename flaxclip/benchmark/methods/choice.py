"""Which caption belongs to an image, and which image to a caption, out of very few."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from flaxclip.benchmark.datasets import Associations, Choices, Statements
from flaxclip.benchmark.embeddings import Embedder
from flaxclip.benchmark.intervals import share_of_hits, share_per_class, with_interval
from flaxclip.benchmark.methods.zero_shot import note_cut_texts
from flaxclip.benchmark.results import Findings
from flaxclip.benchmark.scores import mean_of


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
    by_kind = _of_kinds({name: hit for name, (hit, _) in hits.items()}, data.kinds)
    return Findings(scores, by_kind, arrays, unreadable, note_cut_texts("captions", cut))


def judge_task(embedder: Embedder, data: Statements) -> Findings:
    """How often every right caption of an image is closer to it than every wrong one.

    `text` is that share of items, and `text_of_kinds` its mean over the kinds of items. Of several
    right captions, `text_1`, `text_2`, ... are those of each alone, and `text_only` is how often
    they are closer to each other than to any wrong one (Dumpala et al. 2024, SugarCrepe++).
    Ties count as wrong.
    """
    ztxt, cut = embedder.embed_texts(data.captions)
    zimg, unreadable = embedder.embed_images(data.images)
    options = ztxt[data.caption_rows]
    similar = np.einsum("id,icd->ic", zimg[data.image_rows], options)
    captions, right = data.is_right.shape[1], int(data.is_right[0].sum())
    wrong = np.where(data.is_right, -np.inf, similar).max(axis=1)
    worst = np.where(data.is_right, similar, np.inf).min(axis=1)
    hits = {"text": (worst > wrong, 1 / math.comb(captions, right))}
    if right > 1:
        rights = np.nonzero(data.is_right)[1].reshape(-1, right)
        for number, place in enumerate(rights.T, start=1):
            own = np.take_along_axis(similar, place[:, None], axis=1)[:, 0]
            hits[f"text_{number}"] = own > wrong, 1 / (captions - right + 1)
        hits["text_only"] = _closest_to_each_other(options, data.is_right), 1 / 3
    scores = {name: share_of_hits(hit, chance) for name, (hit, chance) in hits.items()}
    details = _of_kinds({name: hit for name, (hit, _) in hits.items()}, data.kinds)
    arrays = {f"{name}_hits": hit for name, (hit, _) in hits.items()}
    if data.kinds:
        kinds = np.array(data.kinds)
        averaged = sorted(set(data.kinds) if data.averaged_kinds is None else data.averaged_kinds)
        rows = np.flatnonzero(np.isin(kinds, averaged))
        of_kind = np.searchsorted(averaged, kinds[rows])
        arrays["text_of_kinds_hits"] = hits["text"][0]
        classes = arrays["text_of_kinds_classes"] = np.full(len(kinds), -1, np.int32)
        classes[rows] = of_kind
        scores["text_of_kinds"] = share_per_class(hits["text"][0][rows], of_kind, hits["text"][1])
        details["averaged_kinds"] = len(averaged)
        best = similar.argmax(axis=1)
        for kind, scores_of in details["kinds"].items():
            scores_of["most_similar"] = np.bincount(
                best[kinds == kind], minlength=captions
            ).tolist()
    return Findings(scores, details, arrays, unreadable, note_cut_texts("captions", cut))


def _closest_to_each_other(
    options: Float[np.ndarray, "items captions d"], is_right: Bool[np.ndarray, "items captions"]
) -> Bool[np.ndarray, " items"]:
    similar = np.einsum("iad,ibd->iab", options, options)
    both = is_right[:, :, None] & is_right[:, None, :]
    apart = is_right[:, :, None] & ~is_right[:, None, :]
    among = np.where(both & ~np.eye(options.shape[1], dtype=bool), similar, np.inf)
    across = np.where(apart, similar, -np.inf)
    return among.min(axis=(1, 2)) > across.max(axis=(1, 2))


def _of_kinds(
    hits: Mapping[str, Bool[np.ndarray, " items"]], kinds: Sequence[str]
) -> dict[str, Any]:
    """Each kind's number of items, and their scores."""
    if not kinds:
        return {}
    found: dict[str, dict[str, Any]] = {}
    for kind in sorted(set(kinds)):
        rows = np.array(kinds) == kind
        found[kind] = {"items": int(rows.sum())}
        found[kind] |= {name: float(hit[rows].mean()) for name, hit in hits.items()}
    return {"kinds": found}


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
