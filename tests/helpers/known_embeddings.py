"""Embedders without a model: random images, and texts whose embeddings follow from the text."""

import types
import zlib

import numpy as np

from flaxclip.benchmark.embeddings import Embedder
from flaxclip.benchmark.kept_embeddings import Embedded


class KnownTexts(Embedder):
    """`zimg` are random; a text's embedding is random, and the same wherever it stands."""

    def __init__(self, images: int, width: int = 6, logit_scale: float = 10.0, cut=()):
        self.model = types.SimpleNamespace(logit_scale=logit_scale)
        self._width, self._cut = width, frozenset(cut)
        self.zimg = _unit(np.random.default_rng(7).normal(size=(images, width)))

    def text_rows(self, texts):
        seeds = [zlib.crc32(text.encode()) for text in texts]
        return _unit(np.stack([np.random.default_rng(s).normal(size=self._width) for s in seeds]))

    def embed_images(self, images, limited=True):
        assert len(images) == len(self.zimg)
        return Embedded(self.zimg, ())

    def embed_texts(self, texts):
        return Embedded(self.text_rows(texts), tuple(t for t in texts if t in self._cut))


def _unit(z):
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)
