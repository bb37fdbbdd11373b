"""A corpus through a model's towers, shard by shard, on all devices of all hosts."""

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from flaxclip.benchmark.embed.layout import EmbeddingFolder, Manifest, Shard
from flaxclip.benchmark.embed.pairs import ImagesAlone, PairBatch, pair_batches
from flaxclip.benchmark.embeddings import Embedder
from flaxclip.benchmark.kept_embeddings import check_finite
from flaxclip.data.sources.source import Source

SAY_EVERY_SECONDS = 10.0


@dataclasses.dataclass
class _Progress:
    """What is said while it runs."""

    total: int
    say: Callable[[str], None]
    done: int = 0
    unreadable: int = 0
    cut: int = 0
    """Captions that lost their end."""
    started: float = dataclasses.field(default_factory=time.perf_counter)
    said: float = dataclasses.field(default_factory=time.perf_counter)

    def add(self, batch: PairBatch) -> None:
        self.done += len(batch.ids) + len(batch.unreadable)
        self.unreadable += len(batch.unreadable)
        now = time.perf_counter()
        if now - self.said >= SAY_EVERY_SECONDS or self.done == self.total:
            self.said = now
            rate = self.done / (now - self.started)
            left = (self.total - self.done) / rate / 60
            self.say(
                f"{self.done:,} of {self.total:,} images, {rate:,.1f} images/s, "
                f"{self.unreadable:,} unreadable, {left:,.0f} min left"
            )


def shards_of_host(shards: int, hosts: int, host: int) -> range:
    """Those that a host embeds: neighbours, so that what it reads are neighbours too."""
    return range(shards * host // hosts, shards * (host + 1) // hosts)


def embed_corpus(
    embedder: Embedder,
    source: Source | ImagesAlone,
    folder: EmbeddingFolder,
    numbers: Sequence[int],
    say: Callable[[str], None],
    check: Callable[[int, int], None],
) -> int:
    """Write the shards `numbers`, ascending; those before a failure or a kill stay.

    Args:
        embedder: the model on this host's devices; shards are whole batches of it.
        source: the corpus.
        folder: where the shards are written.
        numbers: of the shards.
        say: told of progress.
        check: called after each shard with how many examples were unreadable, of how many that
            were read; may raise.

    Returns:
        how many captions were too long for the model and lost their end.

    Raises:
        InputError: an embedding is not finite, or a shard cannot be written.
    """
    rows = folder.manifest.rows
    progress = _Progress(sum(len(rows(number)) for number in numbers), say)
    workers = os.cpu_count() or 1
    for run in _runs(numbers):
        batches = pair_batches(
            source, embedder.model.transform, embedder.batch_size,
            rows(run[0]).start, rows(run[-1]).stop, workers,
        )  # fmt: skip
        shards = _shards(embedder, source, folder, batches, progress)
        for number, shard in zip(run, shards, strict=True):
            folder.write(number, shard)
            check(progress.unreadable, progress.done)
    return progress.cut


class _Encoded(NamedTuple):
    """A batch that the devices work on."""

    batch: PairBatch
    zimg: jax.Array
    ztxt: jax.Array | None


def _shards(
    embedder: Embedder,
    source: Source | ImagesAlone,
    folder: EmbeddingFolder,
    batches: Iterator[PairBatch],
    progress: _Progress,
) -> Iterator[Shard]:
    """The shards that `batches` fill, in order."""
    manifest = folder.manifest
    done: list[PairBatch] = []
    zimg, ztxt = [], []
    for batch, image_rows, text_rows in _one_behind(_encode(embedder, batches, manifest, progress)):
        done.append(batch)
        zimg.append(np.asarray(image_rows)[: len(batch.ids)])
        check_finite(zimg[-1], "images")
        if text_rows is not None:
            ztxt.append(np.asarray(text_rows)[: len(batch.ids)])
            check_finite(ztxt[-1], "captions")
        progress.add(batch)
        if batch.stop % manifest.shard_size and batch.stop != manifest.examples:
            continue
        ids = [index for part in done for index in part.ids]
        captions = [caption for part in done for caption in part.captions]
        yield Shard(
            np.array(ids, np.int64),
            [source.name(index) for index in ids],
            None if isinstance(source, ImagesAlone) else captions,
            np.concatenate(zimg),
            np.concatenate(ztxt) if ztxt else None,
            [line for part in done for line in part.unreadable],
        )
        done, zimg, ztxt = [], [], []


def _encode(
    embedder: Embedder, batches: Iterator[PairBatch], manifest: Manifest, progress: _Progress
) -> Iterator[_Encoded]:
    for batch in batches:
        zimg, ztxt = embedder.encode_pixels(batch.pixels), None
        if manifest.texts:
            filled = batch.captions + [""] * (embedder.batch_size - len(batch.captions))
            tokens, cut = embedder.model.tokenizer.encode(filled)
            progress.cut += int(cut.sum())
            ztxt = embedder.encode_tokens(tokens)
        yield _Encoded(batch, zimg, ztxt)


def _one_behind(encoded: Iterator[_Encoded]) -> Iterator[_Encoded]:
    """Each once the next one has been given to the devices, which never wait for what follows."""
    previous = None
    for item in encoded:
        if previous is not None:
            yield previous
        previous = item
    if previous is not None:
        yield previous


def _runs(numbers: Sequence[int]) -> Iterator[list[int]]:
    """Numbers that follow upon each other, together: their examples are read in one go."""
    run: list[int] = []
    for number in numbers:
        if run and number != run[-1] + 1:
            yield run
            run = []
        run.append(number)
    if run:
        yield run
