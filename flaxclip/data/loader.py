"""(seed, step) -> global batch -> `jax.Array` on the mesh.

A batch is a pure function of the configuration, the seed and the step: the pipeline has no state
to save, resuming is exact, and the same run continues on another number of hosts with the same
examples in the same order.
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import absl.flags
import grain
import jax
import numpy as np
from jax.sharding import Mesh

from flaxclip.data.scenes import ScenesSource
from flaxclip.data.source import Batch, Source, UnreadableRecordError
from flaxclip.data.tokenizers import Tokenizer, load_tokenizer
from flaxclip.data.transforms import ImageTransform, preprocess, random_resized_crop
from flaxclip.data.webdataset import WebDatasetSource
from flaxclip.errors import InputError
from flaxclip.models.clip import CLIPConfig
from flaxclip.sharding import batch_sharding

MAX_REPLACEMENTS = 16
"""Records tried in place of an unreadable one. At 10% broken, all fail once in 10^16 examples."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which pairs, and how a picture is cropped."""

    path: tuple[str, ...] = ("scenes",)
    """`scenes` for the built-in data, or webdataset tar shards as img2dataset writes them: files,
    globs, or brace patterns such as 'gs://bucket/{00000..01242}.tar'."""
    heldout: tuple[str, ...] = ()
    """Shards that are never trained on: the benchmark's default retrieval task."""
    crop_scale: tuple[float, float] | None = (0.9, 1.0)
    """Area of the random crop over the picture's. None: the centre crop of evaluation."""
    workers: int = 1
    """Processes a host that read, decode and tokenise. 0: the training process itself."""

    def __post_init__(self) -> None:
        if not self.path:
            raise InputError("data.path is empty\nname shards, or 'scenes' for the built-in data")
        if self.workers < 0:
            raise InputError(f"data.workers is {self.workers}\nit must not be negative")


def open_source(config: DataConfig, image_size: int) -> Source:
    """The corpus that `config.path` names.

    Raises:
        InputError: shards that are missing, empty, cut off, or hold no pairs.
    """
    if config.path == ("scenes",):
        return ScenesSource("train", image_size)
    return WebDatasetSource(config.path)


class LoadedBatch(NamedTuple):
    """A batch on the mesh, with what there is to say about how it was loaded on this host."""

    batch: Batch
    truncated: int
    """Captions that lost their end to the context length."""
    replaced: tuple[str, ...]
    """Names of unreadable records, and why, for each of which another one stands in the batch."""
    wait_seconds: float
    """How long the training loop had to wait for this batch."""


def load_batches(
    config: DataConfig,
    model: CLIPConfig,
    source: Source,
    mesh: Mesh,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    stop_step: int,
) -> Iterator[LoadedBatch]:
    """Global batches of steps `start_step` up to `stop_step`, two ahead on the devices.

    Each host loads its own rows of every global batch. Reading, decoding and tokenising happen in
    worker processes; the transfer to devices in a thread, while the previous step runs.
    """
    rows = HostRows(batch_size, stop_step, jax.process_index(), jax.process_count())
    examples = ExampleLoader(
        source=source,
        order=record_order(len(source), seed),
        tokenizer=load_tokenizer(model.tokenizer, model.text.context_length, model.tokenizer_file),
        transform=ImageTransform(model.vision.image_size, model.resize, model.interpolation),
        crop_scale=config.crop_scale,
        seed=seed,
    )
    host_batches = (
        grain.MapDataset.source(rows)
        .map(examples)
        .batch(rows.local_batch_size, batch_fn=_stack)[start_step:]
        # One reading thread a process: the work is CPU-bound, and more would only contend.
        .to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
    )
    if config.workers:
        # Grain's process options are absl flags, which nobody parses outside absl's own main().
        absl.flags.FLAGS.mark_as_parsed()
        host_batches = host_batches.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=config.workers, per_worker_buffer_size=2)
        )
    sharding = batch_sharding(mesh)

    def to_mesh(host_batch: dict[str, Any]) -> LoadedBatch:
        # Copied and cleared, because the arrays are shared memory that a worker process lent us:
        # JAX on a CPU keeps an aligned array rather than copy it, and Grain keeps the last batch,
        # either until after the process has looked for what was not given back.
        local = jax.tree.map(np.array, host_batch)
        host_batch.clear()
        images, tokens = (
            jax.make_array_from_process_local_data(sharding, local[name])
            for name in ("images", "tokens")
        )
        replaced = tuple(local["replaced"].tobytes().decode().splitlines())
        return LoadedBatch(Batch(images, tokens), int(local["truncated"]), replaced, 0.0)

    device_batches = iter(
        grain.experimental.ThreadPrefetchIterDataset(
            host_batches.map(to_mesh), prefetch_buffer_size=2
        )
    )
    try:
        while True:
            start = time.perf_counter()
            loaded = next(device_batches, None)
            if loaded is None:
                return
            yield loaded._replace(wait_seconds=time.perf_counter() - start)
    finally:
        # Ends the worker processes and frees the shared memory of batches that nobody took.
        device_batches.close()


@dataclasses.dataclass(frozen=True)
class HostRows:
    """Positions in the endless stream of examples that one host loads, step after step.

    Row r of the global batch at step s has position `s * batch_size + r`, whoever loads it.
    """

    batch_size: int
    steps: int
    process_index: int
    process_count: int

    @property
    def local_batch_size(self) -> int:
        return self.batch_size // self.process_count

    def __len__(self) -> int:
        return self.steps * self.local_batch_size

    def __getitem__(self, index: int) -> int:
        step, row = divmod(index, self.local_batch_size)
        return step * self.batch_size + self.process_index * self.local_batch_size + row


def record_order(records: int, seed: int) -> grain.MapDataset[int]:
    """Position in the stream -> record, without end: every epoch is another permutation."""
    return grain.MapDataset.range(records).seed(seed).shuffle().repeat()


def batch_records(source: Source, seed: int, batch_size: int, step: int) -> list[str]:
    """Names of the records that the global batch of the `step`-th update holds, row by row.

    An unreadable record has its own name here, though another one stands in for it.
    """
    order, first = record_order(len(source), seed), (step - 1) * batch_size
    return [source.name(int(order[first + row])) for row in range(batch_size)]


class Example(NamedTuple):
    """One row of a batch, and what is to be said about it."""

    image: np.ndarray
    tokens: np.ndarray
    truncated: bool
    replaced: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class ExampleLoader:
    """Position in the stream -> example, as a pure function; runs in worker processes."""

    source: Source
    order: grain.MapDataset[int]
    tokenizer: Tokenizer
    transform: ImageTransform
    crop_scale: tuple[float, float] | None
    seed: int

    def __call__(self, position: int) -> Example:
        """The example at `position`; in place of an unreadable record, another one.

        Raises:
            InputError: `MAX_REPLACEMENTS` records in a row are unreadable.
        """
        epoch, record = position // len(self.source), int(self.order[position])
        replaced: list[str] = []
        for attempt in range(MAX_REPLACEMENTS):
            try:
                return self._load(record, epoch, tuple(replaced))
            except UnreadableRecordError as error:
                replaced.append(f"{self.source.name(record)}: {error}".replace("\n", " "))
                # A function of the broken record's number alone, so that every host and every
                # restart agrees on the stand-in.
                stand_ins = np.random.Generator(np.random.Philox(key=[record, attempt]))
                record = int(stand_ins.integers(len(self.source)))
        raise InputError(
            f"{MAX_REPLACEMENTS} records in a row are unreadable; the first: {replaced[0]}\n"
            "a few broken records are replaced by others, but this corpus is broken at large"
        )

    def _load(self, record: int, epoch: int, replaced: tuple[str, ...]) -> Example:
        image, caption = self.source[record]
        if self.crop_scale is None:
            pixels = preprocess(image, self.transform)
        else:
            rng = np.random.Generator(np.random.Philox(key=[self.seed, epoch], counter=record))
            pixels = random_resized_crop(image, self.transform.size, rng, self.crop_scale)
        tokens, truncated = self.tokenizer.encode([caption])
        return Example(pixels, tokens[0], bool(truncated[0]), replaced)


def _stack(examples: Sequence[Example]) -> dict[str, np.ndarray]:
    # Arrays alone travel through shared memory, so the names of replaced records go as bytes.
    names = [name for example in examples for name in example.replaced]
    return {
        "images": np.stack([example.image for example in examples]),
        "tokens": np.stack([example.tokens for example in examples]),
        "truncated": np.array(sum(example.truncated for example in examples)),
        "replaced": np.frombuffer("\n".join(names).encode(), np.uint8),
    }
