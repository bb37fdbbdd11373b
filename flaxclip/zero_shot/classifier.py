"""Class names become a linear classifier, by any function that encodes texts.

Below both the notebook's face and the benchmark, so that one ensemble of prompts has the same
logits in either.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from flaxclip.models.clip import l2_normalise
from flaxclip.numerics import similarity
from flaxclip.zero_shot.class_prompts import Names, Templates, check_distinct, class_prompts

_IMAGES_AT_ONCE = 2048
"""Images whose cosines with all classes are in memory together: 8 MB with 1,000 classes."""

EncodeText = Callable[[Sequence[str]], Float[Array | np.ndarray, "texts embed"]]


def build_zero_shot_classifier(
    encode_text: EncodeText, class_names: Names, templates: Templates
) -> Float[Array, "classes embed"]:
    """One unit vector per class: the renormalised mean of its prompts' embeddings.

    Prompt ensembling (Radford et al. 2021, section 3.1.4): averaging embeddings rather than
    probabilities lets a class cost one dot product, however many templates describe it. A class
    with several names has the prompts of all of them in the mean.

        classifier = build_zero_shot_classifier(model.encode_text, names, ["a {}", "my {}"])

    Args:
        encode_text: a list of texts to their unit embeddings, as `CLIPModel.encode_text`.
        class_names: see `Names`.
        templates: see `Templates`.

    Raises:
        InputError: a template has no `{}`, two classes share a name, there are no names or no
            templates, or a class has no prompts or no parent to put into them.
    """
    prompts = class_prompts(class_names, templates)
    check_distinct(class_names)
    return average_prompts(encode_text, prompts)


def average_prompts(
    encode_text: EncodeText, prompts: Sequence[Sequence[str]]
) -> Float[Array, "classes embed"]:
    """One unit vector per class, of the prompts that each class has."""
    zprompts = encode_text([prompt for texts in prompts for prompt in texts])
    class_of = np.repeat(np.arange(len(prompts)), [len(texts) for texts in prompts])
    return _normalised_sums(jnp.asarray(zprompts), class_of, len(prompts))


# As one program: one by one, its operations take half a second to compile, in every process.
@functools.partial(jax.jit, static_argnames="classes")
def _normalised_sums(
    zprompts: Float[Array, "prompts d"], class_of: Int[Array | np.ndarray, " prompts"], classes: int
) -> Float[Array, "classes d"]:
    return l2_normalise(jax.ops.segment_sum(zprompts, class_of, classes))


@jax.jit
def _similarities(
    zimg: Float[Array, "n d"], classifier: Float[Array, "classes d"]
) -> Float[Array, "n classes"]:
    return similarity(zimg, classifier)


def class_similarities(
    zimg: Float[Array | np.ndarray, "n d"], classifier: Float[Array, "classes d"]
) -> Float[np.ndarray, "n classes"]:
    """Cosine of each image with each class."""
    # In place: for 50,000 images of 1,000 classes a list of parts is 200 MB more.
    cosines = np.empty((len(zimg), len(classifier)), np.float32)
    for rows, block in zip(_blocks(cosines), similarity_blocks(zimg, classifier), strict=True):
        rows[:] = block
    return cosines


def similarity_blocks(
    zimg: Float[Array | np.ndarray, "n d"], classifier: Float[Array, "classes d"]
) -> Iterator[Float[np.ndarray, "images classes"]]:
    """Cosine of each image with each class, for some thousand images at a time."""
    for block in _blocks(zimg):
        yield np.asarray(_similarities(block, classifier))


def _blocks(rows: Float[Array | np.ndarray, "n d"]) -> list[Float[Array | np.ndarray, "images d"]]:
    """Some thousand rows each, which are views; of no rows, one of none."""
    starts = range(0, max(1, len(rows)), _IMAGES_AT_ONCE)
    return [rows[start : start + _IMAGES_AT_ONCE] for start in starts]


class Guesses(NamedTuple):
    """What a classifier takes images for."""

    ranking: Int[np.ndarray, "n best"]
    """The five best classes, best first; of equals the first."""
    confidence: Float[np.ndarray, " n"]
    """Probability of the best class."""
    lead: Float[np.ndarray, " n"]
    """Cosine with the last class less that with the first: of two, how much rather the second."""
    among_all: Int[np.ndarray, " n"]
    """The best class, distractors among them."""


def guess_classes(
    zimg: Float[Array | np.ndarray, "n d"],
    classifier: Float[Array, "all_classes d"],
    classes: int,
    scale: float,
) -> Guesses:
    """Rank the first `classes` of a classifier's; those behind them are distractors.

    `scale` times a cosine is the logit that the model was trained with. Cosines of all images are
    never in memory together: those of 50,000 with 1,000 classes are 200 MB.
    """
    # One by one: those that are begun and not waited for hold all cosines at once.
    parts = [jax.device_get(_guess(block, classifier, classes, scale)) for block in _blocks(zimg)]
    return Guesses(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def best_classes(
    logits: Float[Array | np.ndarray, "n classes"],
) -> tuple[Float[Array, "n best"], Int[Array, "n best"]]:
    """Logits and numbers of the five best classes, best first; of equals the first."""
    best, classes = jax.lax.top_k(logits, min(5, logits.shape[1]))
    return best, classes


@functools.partial(jax.jit, static_argnames="classes")
def _guess(
    zimg: Float[Array, "n d"],
    classifier: Float[Array, "all_classes d"],
    classes: int,
    scale: Float[Array, ""],
) -> tuple[Array, ...]:
    cosines = similarity(zimg, classifier)
    among = cosines[:, :classes]
    best, ranking = best_classes(among)
    confidence = 1 / jnp.exp(scale * (among - best[:, :1])).sum(axis=1)
    return ranking, confidence, among[:, -1] - among[:, 0], cosines.argmax(axis=1)


def softmax(logits: Float[np.ndarray, "n classes"]) -> Float[np.ndarray, "n classes"]:
    """Probabilities of classes that exclude each other."""
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)
