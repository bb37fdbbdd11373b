"""Which caption belongs to a picture, and which picture to a caption, out of very few."""

import numpy as np

from flaxclip.benchmark.datasets import Choices
from flaxclip.benchmark.embeddings import Embedder
from flaxclip.benchmark.scores import mean_of, with_interval
from flaxclip.benchmark.zero_shot import Result


def choose_task(embedder: Embedder, data: Choices) -> Result:
    """Text, image and group score of Thrush et al. 2022 (Winoground), section 3.2.

    Text: every picture of an item is closest to its own caption; image: every caption to its own
    picture; group: both. Ties count as wrong. An item of one picture has a text score alone.
    """
    ztxt, truncated = embedder.embed_texts(data.captions)
    zimg, unreadable = embedder.embed_images(data.pictures)
    similar = np.einsum("ipd,icd->ipc", zimg[data.picture_rows], ztxt[data.caption_rows])
    pictures, captions = similar.shape[1:]
    own = similar[:, np.arange(pictures), np.arange(pictures)]
    # Each own similarity is among those that it is compared with, once.
    text = ((similar >= own[:, :, None]).sum(axis=2) == 1).all(axis=1)
    hits = {"text": (text, captions**-pictures)}
    if pictures > 1:
        image = ((similar >= own[:, None, :]).sum(axis=1) == 1).all(axis=1)
        # Of two by two random similarities, one of six orders has both own ones on top.
        hits |= {"image": (image, pictures**-captions), "group": (text & image, 1 / 6)}
    scores = {
        name: with_interval(mean_of(hit), len(hit), float(chance))
        for name, (hit, chance) in hits.items()
    }
    notes = ()
    if truncated:
        notes = (f"{truncated:,} captions were too long for the model and lost their end",)
    arrays = {f"{name}_hits": hit for name, (hit, _) in hits.items()}
    return Result(scores, {}, arrays, unreadable, notes)
