"""Embeddings of images and texts: on all devices and hosts, kept on disk, resumed."""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from flaxclip.api import CLIPModel, as_input, encode_image, encode_text
from flaxclip.benchmark.between_hosts import check_hosts, gather_part, part_from_host_0
from flaxclip.benchmark.datasets import Images, batch_ranges, image_batches
from flaxclip.benchmark.kept_embeddings import (
    Embedded,
    check_finite,
    load_embedded,
    model_digest,
    save_embedded,
)
from flaxclip.data.images.native_size import PatchArrays
from flaxclip.errors import InputError
from flaxclip.models.text_transformer import needed_length
from flaxclip.sharding import MeshConfig, batch_sharding, make_mesh

CHUNK = 2048
"""Images or texts that are embedded before they are put on disk, about: what a killed run loses
at most."""

LENGTH_STEP = 16
"""Lengths of texts are rounded up to multiples of it: each is compiled once."""
MAX_UNREADABLE = 0.01
"""Share of a set's images that may count as black: what a score can lose by it at most."""
_NAMED = 5

_Begun = tuple[Float[jax.Array, "b d"], tuple[str, ...]]
"""A batch's embeddings, which the devices may still be computing, and its remarks."""


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
        # A row that fills up costs a processor as much as an image; accelerators have it in less
        # time than a second program takes to compile.
        is_cpu = jax.default_backend() == "cpu"
        self._last_batch_size = self._small_batch_size if is_cpu else None
        # Whole batches on every host, or filled-up rows would be computed for nothing.
        round_ = self.batch_size * jax.process_count()
        self._chunk = -(-CHUNK // round_) * round_
        self._sharding = batch_sharding(mesh)
        self._variables = jax.device_put(model.variables, jax.NamedSharding(mesh, jax.P()))
        # Hashing takes as long as reading: meanwhile, the first programs are compiled.
        self._digest = ThreadPoolExecutor(1).submit(model_digest, model)
        self._cache = cache
        self._last: tuple[tuple, Embedded] | None = None
        self._last_texts: dict[str, Float[np.ndarray, " d"]] = {}
        self.computed = 0
        """Images and texts embedded by this host, not found on disk."""

    @property
    def checkpoint(self) -> str:
        """What tells the model from others: see `model_digest`."""
        return self._digest.result()

    def compile_ahead(self, count: int) -> None:
        """Compile what the first batch of `count` images needs, while the weights are hashed."""
        if self._digest.done() or self.model.spec.preprocess.resize == "native":
            return
        (_, rows), *_ = batch_ranges(0, count, self.batch_size, self._last_batch_size)
        side = self.model.transform.size
        pixels = jax.ShapeDtypeStruct((rows, side, side, 3), np.uint8, sharding=self._sharding)
        # `encode_image` finds the program by the same arguments.
        encode_image.lower(self._variables, pixels, self.model.spec, self.model.compute).compile()

    def encode_pixels(
        self, pixels: UInt8[np.ndarray, "b h w 3"] | PatchArrays
    ) -> Float[jax.Array, "b d"]:
        """Unit embeddings of a batch, begun on the devices and not waited for."""
        placed = as_input(jax.device_put(pixels, self._sharding))
        return encode_image(self._variables, placed, self.model.spec, self.model.compute)

    def encode_tokens(self, tokens: Int[np.ndarray, "b l"]) -> Float[jax.Array, "b d"]:
        """Likewise of texts, without positions behind the longest that no embedding depends on."""
        needed = needed_length(self.model.config.text, tokens)
        length = min(-(-needed // LENGTH_STEP) * LENGTH_STEP, tokens.shape[1])
        placed = jax.device_put(tokens[:, :length], self._sharding)
        return encode_text(self._variables, placed, self.model.spec, self.model.compute)

    def encode_few_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """Unit embeddings of some texts, on this host alone; what was embedded last is known."""
        if all(text in self._last_texts for text in texts):
            return np.stack([self._last_texts[text] for text in texts])
        rows = self._small_batch_size
        parts = [self._tokens(texts[at : at + rows], rows)[0] for at in range(0, len(texts), rows)]
        return np.concatenate([np.asarray(self.encode_tokens(part)) for part in parts])[
            : len(texts)
        ]

    def _tokens(
        self, texts: Sequence[str], rows: int
    ) -> tuple[Int[np.ndarray, "rows l"], Bool[np.ndarray, " n"]]:
        """Ids of texts, filled up to `rows`, and which texts lost their end."""
        tokens, cut = self.model.tokenizer.encode(texts)
        padded = np.zeros((rows, tokens.shape[1]), tokens.dtype)
        # Rows that fill up repeat the first: one of zeros alone has no end marker.
        padded[:] = tokens[:1]
        padded[: len(tokens)] = tokens
        return padded, cut

    def embed_images(self, images: Images, limited: bool = True) -> Embedded:
        """Every image once; `remarks` are those that cannot be read or decoded.

        If not `limited`, any number of them is taken, by whoever calls `check_readable` later. The
        last set is kept in memory: a task asks for the same images several times.

        Raises:
            InputError: more images than the limit are unreadable, an embedding is not finite, or
                the cache cannot be written.
        """
        key = ("images", images.identity, repr(self.model.transform))

        def embed(start: int, stop: int) -> Iterator[_Begun]:
            workers = os.cpu_count() or 1
            for batch in image_batches(
                images, self.model.transform, self.batch_size, start, stop, workers,
                self._last_batch_size,
            ):  # fmt: skip
                yield self.encode_pixels(batch.images), batch.unreadable

        if self._last is None or self._last[0] != key:
            found = self._embed_all(key, len(images), embed, is_image=True, limited=limited)
            self._last = key, found
        elif limited:
            self.check_readable(self._last[1].remarks, len(images))
        return self._last[1]

    def embed_texts(self, texts: Sequence[str]) -> Embedded:
        """Every text once; `remarks` are those that lost their end.

        Raises:
            InputError: an embedding is not finite, or the cache cannot be written.
        """

        def embed(start: int, stop: int) -> Iterator[_Begun]:
            # Ten prompts are a small set's usual number: a whole batch would be filler.
            for at, rows in batch_ranges(start, stop, self.batch_size, self._small_batch_size):
                part = list(texts[at : min(at + rows, stop)])
                padded, cut = self._tokens(part, rows)
                yield self.encode_tokens(padded), tuple(np.array(part, object)[cut])

        found = self._embed_all(("texts", list(texts)), len(texts), embed, is_image=False)
        if len(texts) <= CHUNK:  # more would take as much memory as the images
            self._last_texts = dict(zip(texts, found.z, strict=True))
        return found

    def dtype_difference(self, images: Images, count: int = 256) -> dict[str, float]:
        """What the activations' type changes: cosine distance from float32 on the first images.

        Returns:
            `examples`, and `mean` and `max` of 1 - cosine similarity.
        """
        stop = min(count, len(images))
        batch = next(image_batches(images, self.model.transform, self.batch_size, 0, stop))
        pixels = as_input(jax.device_put(batch.images, self._sharding))
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
        embed: Callable[[int, int], Iterator[_Begun]],
        is_image: bool,
        limited: bool = False,
    ) -> Embedded:
        """`embed` yields the embeddings, and the remarks, of a range batch by batch."""
        kind = jax.devices()[0].device_kind  # their arithmetic differs
        parts = repr((self.checkpoint, kind, count, self._chunk, key))
        folder = self._cache / hashlib.sha256(parts.encode()).hexdigest()[:32]
        hosts, host = jax.process_count(), jax.process_index()
        width = self.model.config.embed_dim
        z = np.empty((0, width), np.float32)
        remarks: tuple[str, ...] = ()
        for number, start in enumerate(range(0, count, self._chunk)):
            stop = min(start + self._chunk, count)
            path = folder / f"{number}.npz"
            kept = load_embedded(path) if host == 0 else None
            if is_image and kept is not None and kept.remarks:
                kept = None  # what could not be read may be readable by now
            kept = part_from_host_0(kept, stop - start, width)
            chunk = kept
            if chunk is None:
                each = -(-(stop - start) // hosts)
                first, last = min(start + host * each, stop), min(start + (host + 1) * each, stop)
                mine = self._collect(embed(first, last), last - first)
                chunk = gather_part(mine, each, stop - start)
            check_finite(chunk.z, key[0])
            remarks += chunk.remarks
            if limited:  # at the first chunk after which no other can help
                self.check_readable(remarks, count, stop)
            if number == 0:
                # In place: parts to be put together would take the memory of all once more. Not
                # before there is one: of a set that cannot be read that is said, whatever its size.
                z = np.empty((count, width), np.float32)
            z[start:stop] = chunk.z
            if kept is None and host == 0 and not (is_image and chunk.remarks):
                save_embedded(path, chunk)
        # What one host alone kept in memory, it would not come to embed with the others.
        check_hosts()
        return Embedded(z, remarks)

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

    def _collect(self, batches: Iterator[_Begun], count: int) -> Embedded:
        """The first `count` rows of `batches`, of which the last is filled up."""
        z: list[np.ndarray] = [np.zeros((0, self.model.config.embed_dim), np.float32)]
        remarks: list[str] = []
        pending = None
        for zbatch, of_batch in batches:
            # The previous batch is fetched while this one is being computed.
            if pending is not None:
                z.append(np.asarray(pending))
            pending = zbatch
            remarks.extend(of_batch)
        if pending is not None:
            z.append(np.asarray(pending))
        self.computed += count
        return Embedded(np.concatenate(z)[:count], tuple(remarks))


def check_share(max_unreadable: float) -> None:
    """Raise `InputError` unless it is a share."""
    if not 0 <= max_unreadable <= 1:
        raise InputError(f"--max-unreadable is {max_unreadable}\nit is a share: from 0 to 1")
