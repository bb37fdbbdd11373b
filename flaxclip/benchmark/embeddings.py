"""Embeddings of images and texts: on all devices and hosts, kept on disk, resumed."""

import dataclasses
import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float

from flaxclip.api import CLIPModel, encode_image, encode_text
from flaxclip.benchmark.datasets import Images, image_batches
from flaxclip.errors import InputError
from flaxclip.sharding import MeshConfig, batch_sharding, make_mesh

CHUNK = 2048
"""Images or texts that are embedded before they are put on disk, about: what a killed run loses
at most."""


MAX_UNREADABLE = 0.01
"""Share of a set's images that may count as black: what a score can lose by it at most."""
_NAMED = 5


class Embedded(NamedTuple):
    """Unit embeddings in order, and what is to be said about some of them."""

    z: Float[np.ndarray, "n d"]
    remarks: tuple[str, ...]
    """Of images: those that could not be decoded, and why. Of texts: those that were too long for
    the model and lost their end."""


class Embedder:
    """A model on all devices of all hosts, with embeddings that earlier runs left on disk.

    Each chunk is divided over hosts, and every host then has all of it. Only process 0's disk is
    read and written: nothing depends on a file system that hosts share.
    """

    def __init__(
        self,
        model: CLIPModel,
        batch_size: int,
        cache: Path,
        max_unreadable: float = MAX_UNREADABLE,
    ):
        """`batch_size` is rounded up to a multiple of this host's devices.

        `max_unreadable` is the share of a set's images that may be unreadable.
        """
        self.model = model
        self._max_unreadable = max_unreadable
        mesh = make_mesh(MeshConfig(), jax.local_devices())
        self.batch_size = -(-batch_size // mesh.size) * mesh.size
        self._small_batch_size = -(-batch_size // 8 // mesh.size) * mesh.size
        # Whole batches on every host, or filled-up rows would be computed for nothing.
        round_ = self.batch_size * jax.process_count()
        self._chunk = -(-CHUNK // round_) * round_
        self._sharding = batch_sharding(mesh)
        self._variables = jax.device_put(model.variables, jax.NamedSharding(mesh, jax.P()))
        self.checkpoint = model_digest(model)
        self._cache = cache
        self.computed = 0
        """Images and texts embedded by this host, not found on disk."""

    def embed_images(self, images: Images, limited: bool = True) -> Embedded:
        """Every image once; `remarks` are those that cannot be read or decoded.

        If not `limited`, any number of them is taken, by whoever calls `check_readable` later.

        Raises:
            InputError: more images than the limit are unreadable, or the cache cannot be written.
        """
        key = ("images", images.identity, repr(self.model.transform))

        def embed(start: int, stop: int) -> Iterator[Embedded]:
            workers = os.cpu_count() or 1
            for batch in image_batches(
                images, self.model.transform, self.batch_size, start, stop, workers
            ):
                pixels = jax.device_put(batch.images, self._sharding)
                zimg = encode_image(self._variables, pixels, self.model.spec, self.model.compute)
                yield Embedded(zimg, batch.unreadable)

        return self._embed_all(key, len(images), embed, is_image=True, limited=limited)

    def embed_texts(self, texts: Sequence[str]) -> Embedded:
        """Every text once; `remarks` are those that lost their end.

        Raises:
            InputError: the cache cannot be written.
        """

        def embed(start: int, stop: int) -> Iterator[Embedded]:
            while start < stop:
                # Ten prompts are a small set's usual number: a whole batch would be filler.
                few = stop - start <= self.batch_size - self._small_batch_size
                rows = self._small_batch_size if few else self.batch_size
                part = list(texts[start : min(start + rows, stop)])
                tokens, cut = self.model.tokenizer.encode(part)
                padded = np.zeros((rows, tokens.shape[1]), tokens.dtype)
                # Rows that fill up repeat the first: one of zeros alone has no end marker.
                padded[:] = tokens[:1]
                padded[: len(tokens)] = tokens
                ztxt = encode_text(
                    self._variables,
                    jax.device_put(padded, self._sharding),
                    self.model.spec,
                    self.model.compute,
                )
                yield Embedded(ztxt, tuple(np.array(part, object)[cut]))
                start += len(part)

        return self._embed_all(("texts", list(texts)), len(texts), embed, is_image=False)

    def dtype_difference(self, images: Images, count: int = 256) -> dict[str, float]:
        """What the activations' type changes: cosine distance from float32 on the first images.

        Returns:
            `examples`, and `mean` and `max` of 1 - cosine similarity.
        """
        stop = min(count, len(images))
        batch = next(image_batches(images, self.model.transform, self.batch_size, 0, stop))
        pixels = jax.device_put(batch.images, self._sharding)
        exact = dataclasses.replace(self.model.compute, dtype="float32")
        pair = [
            encode_image(self._variables, pixels, self.model.spec, compute)
            for compute in (self.model.compute, exact)
        ]
        distance = 1 - np.asarray(jnp.sum(pair[0] * pair[1], axis=1))[batch.is_real]
        return {
            "examples": len(distance), "mean": float(distance.mean()), "max": float(distance.max())
        }  # fmt: skip

    def _embed_all(
        self,
        key: tuple,
        count: int,
        embed: Callable[[int, int], Iterator[Embedded]],
        is_image: bool,
        limited: bool = False,
    ) -> Embedded:
        """`embed` yields the embeddings, and the remarks, of a range batch by batch."""
        kind = jax.devices()[0].device_kind  # their arithmetic differs
        parts = repr((self.checkpoint, kind, count, self._chunk, key))
        folder = self._cache / hashlib.sha256(parts.encode()).hexdigest()[:32]
        hosts, host = jax.process_count(), jax.process_index()
        chunks: list[Embedded] = []
        remarks: tuple[str, ...] = ()
        for number, start in enumerate(range(0, count, self._chunk)):
            stop = min(start + self._chunk, count)
            path = folder / f"{number}.npz"
            kept = _load(path) if host == 0 else None
            if is_image and kept is not None and kept.remarks:
                kept = None  # what could not be read may be readable by now
            kept = _from_host_0(kept, stop - start, self.model.config.embed_dim)
            if kept is not None:
                chunks.append(kept)
                remarks += kept.remarks
                continue
            each = -(-(stop - start) // hosts)
            first, last = min(start + host * each, stop), min(start + (host + 1) * each, stop)
            mine = self._collect(embed(first, last), last - first)
            chunks.append(_gather(mine, each, stop - start))
            remarks += chunks[-1].remarks
            if limited:  # at the first chunk after which no other can help
                self.check_readable(remarks, count, stop)
            if host == 0 and not (is_image and chunks[-1].remarks):
                _save(path, chunks[-1])
        return Embedded(np.concatenate([chunk.z for chunk in chunks]), remarks)

    def check_readable(
        self, unreadable: Sequence[str], count: int, read: int | None = None
    ) -> None:
        """Refuse a set of `count` images, `read` of which have been read, that lacks too many.

        Raises:
            InputError: the share of unreadable ones is above the limit.
        """
        if len(unreadable) / count <= self._max_unreadable:
            return
        seen = f"{count:,}" if read in (None, count) else f"the first {read:,} of {count:,}"
        more = [f"and {len(unreadable) - _NAMED:,} more"] if len(unreadable) > _NAMED else []
        raise InputError(
            "\n".join(
                [
                    f"{len(unreadable):,} of {seen} images cannot be read",
                    *unreadable[:_NAMED],
                    *more,
                    f"at most {100 * self._max_unreadable:g}% may count as black: give them back, "
                    "fix them or take them out of the set, or raise --max-unreadable",
                ]
            )
        )

    def _collect(self, batches: Iterator[Embedded], count: int) -> Embedded:
        """The first `count` rows of `batches`, of which the last is filled up."""
        z: list[np.ndarray] = [np.zeros((0, self.model.config.embed_dim), np.float32)]
        remarks: list[str] = []
        pending = None
        for batch in batches:
            # The previous batch is fetched while this one is being computed.
            if pending is not None:
                z.append(np.asarray(pending))
            pending = batch.z
            remarks.extend(batch.remarks)
        if pending is not None:
            z.append(np.asarray(pending))
        self.computed += count
        return Embedded(np.concatenate(z)[:count], tuple(remarks))


def model_digest(model: CLIPModel) -> str:
    """A hash of the parameters, the architecture and the type of activations."""
    digest = hashlib.sha256(repr((model.spec, model.compute.dtype)).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(model.variables):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def _load(path: Path) -> Embedded | None:
    try:
        with np.load(path) as arrays:
            return Embedded(arrays["z"], tuple(json.loads(str(arrays["remarks"]))))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(
            f"embeddings in {path} are damaged: {error}\ndelete the file; they are made again"
        ) from None


def _save(path: Path, part: Embedded) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Whole or not at all: a run may be killed while it writes.
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as file:
            np.savez(file, z=part.z, remarks=json.dumps(part.remarks))
        os.replace(file.name, path)
    except OSError as error:
        raise InputError(
            f"cannot keep embeddings in {path.parent}: {error.strerror}\n"
            "name another folder with --cache"
        ) from None


def broadcast_from_host_0(flag: bool) -> bool:
    """The flag of process 0, on every host: hosts need not share a file system."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.broadcast_one_to_all(np.array(flag)))


def _from_host_0(part: Embedded | None, rows: int, width: int) -> Embedded | None:
    """The part that process 0 has, on every host; None on all where it has none."""
    if jax.process_count() == 1:
        return part
    if not broadcast_from_host_0(part is not None):
        return None
    z = np.zeros((rows, width), np.float32) if part is None else part.z
    z = np.asarray(multihost_utils.broadcast_one_to_all(z))
    return Embedded(z, _gather_texts(() if part is None else part.remarks))


def _gather(mine: Embedded, rows_each: int, rows: int) -> Embedded:
    """Every host's part, in order; hosts have `rows_each` rows, the last ones perhaps fewer."""
    if jax.process_count() == 1:
        return mine
    padded = np.zeros((rows_each, mine.z.shape[1]), np.float32)
    padded[: len(mine.z)] = mine.z
    z = np.asarray(multihost_utils.process_allgather(padded)).reshape(-1, padded.shape[1])
    return Embedded(z[:rows], _gather_texts(mine.remarks))


def _gather_texts(mine: tuple[str, ...]) -> tuple[str, ...]:
    text = json.dumps(mine).encode()
    longest = int(np.max(multihost_utils.process_allgather(np.array(len(text)))))
    padded = np.frombuffer(text.ljust(longest), np.uint8)
    gathered = np.asarray(multihost_utils.process_allgather(padded))
    return tuple(line for row in gathered for line in json.loads(row.tobytes()))
