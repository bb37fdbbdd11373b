"""A teacher as `data.prepare` asks it: crops and captions in, embeddings to be stored out."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int32, UInt8

from flaxclip.checkpoint.checksum import sha256_of_checksums, tree_checksums
from flaxclip.data.images.eval_transform import SizedTransform
from flaxclip.data.reinforced.stored_vectors import StoredTeacher
from flaxclip.data.tokenizers.base import Tokenizer
from flaxclip.data.tokenizers.load import load_tokenizer
from flaxclip.errors import InputError
from flaxclip.interop.name_table import unflatten
from flaxclip.models.spec import ModelSpec
from flaxclip.teachers.lesson import embed_images, embed_texts
from flaxclip.teachers.weights import check_finite
from flaxclip.weights import open_weights


@dataclasses.dataclass(frozen=True)
class TeacherEncoder:
    """An `Encoder` of a checkpoint; each process reads its weights when it first needs them."""

    checkpoint: str
    identity: str
    width: int
    logit_scale: float
    model: str | None = None
    """Architecture, if the weights do not say."""

    @property
    def teacher(self) -> StoredTeacher:
        """Its identity."""
        return StoredTeacher(self.identity, self.width, self.logit_scale)

    @property
    def transform(self) -> SizedTransform:
        """Size of its images, and how they are resized."""
        spec = _open(self).spec
        return SizedTransform(spec.model.vision.image_size, spec.preprocess)

    def encode_images(self, images: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n dt"]:
        """Unit embeddings, by the computation of a teacher that runs beside the student."""
        spec, variables, _ = _open(self)
        return np.asarray(_embed_images(spec, variables, images))

    def tokenize(
        self, texts: Sequence[str]
    ) -> tuple[Int32[np.ndarray, "n length"], Bool[np.ndarray, " n"]]:
        """Ids by its tokenizer, and for each text True if it lost its end to the context length."""
        return _open(self).tokenizer.encode(texts)

    def encode_tokens(self, tokens: Int32[np.ndarray, "n length"]) -> Float[np.ndarray, "n dt"]:
        """Unit embeddings, likewise."""
        spec, variables, _ = _open(self)
        return np.asarray(_embed_texts(spec, variables, tokens))

    def encode_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "n dt"]:
        """Unit embeddings, likewise."""
        return self.encode_tokens(self.tokenize(texts)[0])


def open_encoder(checkpoint: str, model: str | None = None) -> TeacherEncoder:
    """The teacher whose weights are at `checkpoint`, anything that `flaxclip.load` takes, as it
    takes `model`.

    Raises:
        InputError: there is none, or it is damaged, or holds numbers that are not finite.
    """
    opened = _read(checkpoint, model)
    identity = _known_identity(checkpoint, model)
    scale = float(opened.variables["params"]["logit_scale"])
    return TeacherEncoder(checkpoint, identity, opened.spec.model.embed_dim, scale, model)


class _Opened(NamedTuple):
    spec: ModelSpec
    variables: dict[str, Any]
    tokenizer: Tokenizer


def _open(encoder: TeacherEncoder) -> _Opened:
    opened = _read(encoder.checkpoint, encoder.model)
    if _known_identity(encoder.checkpoint, encoder.model) != encoder.identity:
        raise InputError(
            f"teacher {encoder.checkpoint} is another one for a worker than for who started it\n"
            "every worker must see the same weights under the same path"
        )
    return opened


@functools.lru_cache(maxsize=4)
def _read(checkpoint: str, model: str | None) -> _Opened:
    try:
        weights = open_weights(checkpoint, model)
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        flat = {name: jax.device_put(value, device) for name, value in weights.read(device)}
    except InputError as error:
        raise InputError(f"teacher {checkpoint}: {error}") from None
    check_finite(checkpoint, flat)
    text = weights.spec.model.text
    tokenizer = load_tokenizer(weights.spec.tokenizer, text.context_length, text.vocab_size)
    return _Opened(weights.spec, unflatten(flat), tokenizer)


@functools.lru_cache(maxsize=4)
def _known_identity(checkpoint: str, model: str | None) -> str:
    """As a run that asks the teacher live records it."""
    return sha256_of_checksums(tree_checksums(_read(checkpoint, model).variables))


_embed_images = jax.jit(embed_images, static_argnames="spec")
_embed_texts = jax.jit(embed_texts, static_argnames="spec")
