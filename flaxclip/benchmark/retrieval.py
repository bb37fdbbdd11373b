"""Image–text retrieval: find the partner among all candidates."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from flaxclip.api import CLIPModel
from flaxclip.benchmark.datasets import PairImages
from flaxclip.benchmark.scores import Score, recall_at_k
from flaxclip.benchmark.tasks import RetrievalTask
from flaxclip.benchmark.zero_shot import embed_images
from flaxclip.data.source import UnreadableRecordError
from flaxclip.data.webdataset import WebDatasetSource
from flaxclip.errors import InputError


class Retrieved(NamedTuple):
    """What a task's report is made of."""

    scores: dict[str, Score]
    captions: list[str]
    similarities: Float[np.ndarray, "images captions"]
    unreadable: tuple[str, ...]


def retrieve_task(model: CLIPModel, task: RetrievalTask, batch_size: int) -> Retrieved:
    """Recall at 1, 5 and 10 in both directions; every caption equal to the right one is right.

    Raises:
        InputError: the shards cannot be read.
    """
    source = WebDatasetSource(task.shards)
    captions = [_caption(source, index) for index in range(len(source))]
    ztxt = jnp.concatenate(
        [
            model.encode_text(captions[start : start + batch_size])
            for start in range(0, len(captions), batch_size)
        ]
    )
    zimg, unreadable = embed_images(model, PairImages(source), batch_size)
    similarities = np.asarray(jnp.matmul(zimg, ztxt.T, precision=jax.lax.Precision.HIGHEST))
    same_caption = np.array(captions)[:, None] == np.array(captions)[None, :]
    scores = {}
    for k in (1, 5, 10):
        # k draws without replacement from n candidates hold the one right one k/n of the time.
        chance = min(k / len(captions), 1.0)
        scores[f"image_to_text_recall@{k}"] = Score(
            recall_at_k(similarities, same_caption, k), chance
        )
        scores[f"text_to_image_recall@{k}"] = Score(
            recall_at_k(similarities.T, same_caption, k), chance
        )
    return Retrieved(scores, captions, similarities, unreadable)


def _caption(source: WebDatasetSource, index: int) -> str:
    try:
        return source[index].caption
    except UnreadableRecordError as error:
        raise InputError(
            f"{source.name(index)}: {error}\n"
            "a pair without its caption cannot be retrieved: mend it or take it out of the shard"
        ) from None
