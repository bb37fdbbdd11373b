"""Embeddings of all pictures of a set: on all devices and hosts, kept on disk, resumed."""

import dataclasses
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float

from flaxclip.api import CLIPModel, encode_image, encode_text
from flaxclip.benchmark.datasets import Pictures, image_batches
from flaxclip.sharding import MeshConfig, batch_sharding, make_mesh

CHUNK = 8192
"""Pictures that are embedded before they are put on disk: what a killed run loses at most."""


class Embedded(NamedTuple):
    """Embeddings of all pictures of a set, and those that could not be decoded."""

    zimg: Float[np.ndarray, "n d"]
    unreadable: tuple[str, ...]


class EmbeddedTexts(NamedTuple):
    """Embeddings of texts, and how many were too long for the model and lost their end."""

    ztxt: Float[np.ndarray, "n d"]
    truncated: int


class Embedder:
    """A model on all devices of this host, with embeddings that earlier runs left on disk.

    Chunks of pictures are divided over hosts; every host then has all embeddings. Nothing depends
    on a file system that hosts share.
    """

    def __init__(self, model: CLIPModel, batch_size: int, cache: Path):
        """`batch_size` is rounded up to a multiple of this host's devices."""
        self.model = model
        mesh = make_mesh(MeshConfig(), jax.local_devices())
        self.batch_size = -(-batch_size // mesh.size) * mesh.size
        self._sharding = batch_sharding(mesh)
        self._variables = jax.device_put(model.variables, jax.NamedSharding(mesh, jax.P()))
        self.checkpoint = model_digest(model)
        self._cache = cache
        self.computed = 0
        """Pictures embedded by this host, not found on disk."""

    def embed_images(self, pictures: Pictures) -> Embedded:
        """Unit embeddings in order, each picture once."""
        folder = self._cache / self._key(pictures)
        parts, unreadable = [], []
        for number, start in enumerate(range(0, len(pictures), CHUNK)):
            stop = min(start + CHUNK, len(pictures))
            mine = number % jax.process_count() == jax.process_index()
            part = None
            if mine:
                part = _load(folder / f"{number}.npz") or self._embed(pictures, start, stop)
                _save(folder / f"{number}.npz", part)
            part = _share(part, number % jax.process_count(), stop - start, self._width)
            parts.append(part.zimg)
            unreadable.extend(part.unreadable)
        return Embedded(np.concatenate(parts), tuple(unreadable))

    def embed_texts(self, texts: list[str] | tuple[str, ...]) -> EmbeddedTexts:
        """Unit embeddings of texts in order, computed by every host for itself."""
        parts, truncated = [], 0
        for start in range(0, len(texts), self.batch_size):
            tokens, cut = self.model.tokenizer.encode(texts[start : start + self.batch_size])
            truncated += int(cut.sum())
            padded = np.zeros((self.batch_size, tokens.shape[1]), tokens.dtype)
            # Rows that fill up repeat the first: one of zeros alone has no end marker.
            padded[:] = tokens[:1]
            padded[: len(tokens)] = tokens
            ztxt = encode_text(
                self._variables, jax.device_put(padded, self._sharding), self.model.config
            )
            parts.append(np.asarray(ztxt)[: len(tokens)])
        return EmbeddedTexts(np.concatenate(parts), truncated)

    def dtype_difference(self, pictures: Pictures, count: int = 256) -> dict[str, float]:
        """What the activations' type changes: cosine distance from float32 on the first pictures.

        Returns:
            `examples`, and `mean` and `max` of 1 - cosine similarity.
        """
        stop = min(count, len(pictures))
        batch = next(image_batches(pictures, self.model.transform, self.batch_size, 0, stop))
        images = jax.device_put(batch.images, self._sharding)
        exact = dataclasses.replace(self.model.config, dtype="float32")
        pair = [encode_image(self._variables, images, c) for c in (self.model.config, exact)]
        distance = 1 - np.asarray(jnp.sum(pair[0] * pair[1], axis=1))[batch.is_real]
        return {
            "examples": len(distance), "mean": float(distance.mean()), "max": float(distance.max())
        }  # fmt: skip

    @property
    def _width(self) -> int:
        return self.model.config.embed_dim

    def _key(self, pictures: Pictures) -> str:
        transform = dataclasses.asdict(self.model.transform)
        kind = jax.devices()[0].device_kind  # their arithmetic differs
        parts = (self.checkpoint, kind, pictures.identity, len(pictures), transform, CHUNK)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]

    def _embed(self, pictures: Pictures, start: int, stop: int) -> Embedded:
        zimg, unreadable, pending = [], [], None
        batches = image_batches(
            pictures, self.model.transform, self.batch_size, start, stop, os.cpu_count() or 1
        )
        for batch in batches:
            images = jax.device_put(batch.images, self._sharding)
            computing = encode_image(self._variables, images, self.model.config), batch.is_real
            # The previous batch is fetched while this one is being computed.
            if pending:
                zimg.append(np.asarray(pending[0])[pending[1]])
            pending = computing
            unreadable.extend(batch.unreadable)
        zimg.append(np.asarray(pending[0])[pending[1]])
        self.computed += stop - start
        return Embedded(np.concatenate(zimg), tuple(unreadable))


def model_digest(model: CLIPModel) -> str:
    """A hash of the parameters and the architecture, wherever they came from."""
    digest = hashlib.sha256(repr(model.config).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(model.variables):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def _load(path: Path) -> Embedded | None:
    try:
        with np.load(path) as arrays:
            return Embedded(arrays["zimg"], tuple(json.loads(str(arrays["unreadable"]))))
    except FileNotFoundError:
        return None


def _save(path: Path, part: Embedded) -> None:
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not at all: a run may be killed while it writes.
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as file:
        np.savez(file, zimg=part.zimg, unreadable=json.dumps(part.unreadable))
    os.replace(file.name, path)


def _share(part: Embedded | None, owner: int, rows: int, width: int) -> Embedded:
    """The owner's part, on every host."""
    if jax.process_count() == 1:
        return part

    def broadcast(array: np.ndarray) -> np.ndarray:
        is_owner = jax.process_index() == owner
        return np.asarray(multihost_utils.broadcast_one_to_all(array, is_source=is_owner))

    text = json.dumps(part.unreadable if part else ()).encode()
    length = int(broadcast(np.array(len(text))))
    text = broadcast(np.frombuffer(text.ljust(length)[:length], np.uint8))
    zimg = broadcast(part.zimg if part else np.zeros((rows, width), np.float32))
    return Embedded(zimg, tuple(json.loads(text.tobytes())))
