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

from flaxclip.data.captions import CaptionConfig, draw_caption
from flaxclip.data.corpus import CorpusConfig, MixtureCorpus, open_corpus, open_mixture
from flaxclip.data.order import Draw, HostRows, OrderConfig, draw_order, example_rng, stand_in
from flaxclip.data.source import Batch, Source, UnreadableRecordError
from flaxclip.data.tokenizers import Tokenizer, load_tokenizer
from flaxclip.data.transforms import ImageTransform, preprocess, random_resized_crop
from flaxclip.errors import InputError
from flaxclip.models.clip import CLIPConfig
from flaxclip.sharding import batch_sharding

MAX_REPLACEMENTS = 16
"""Records tried in place of an unreadable one. At 10% broken, all fail once in 10^16 examples."""


@dataclasses.dataclass(frozen=True)
class DataConfig(CorpusConfig):
    """Which pairs, in which order, and how a picture is cropped."""

    mixture: tuple[MixtureCorpus, ...] = ()
    """Several corpora, each with captions of its own, in place of `path` and `captions`."""
    heldout: tuple[str, ...] = ()
    """Shards that are never trained on: the benchmark's default retrieval task."""
    order: OrderConfig = OrderConfig()
    crop_scale: tuple[float, float] | None = (0.9, 1.0)
    """Area of the random crop over the picture's. None: the centre crop of evaluation."""
    workers: int = 1
    """Processes a host that read, decode and tokenise. 0: the training process itself."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers < 0:
            raise InputError(f"data.workers is {self.workers}\nit must not be negative")
        if self.mixture and (self.path, self.captions) != (CorpusConfig.path, CaptionConfig()):
            raise InputError(
                "data.mixture and data.path, or data.captions, are both given\n"
                "name every corpus in the mixture, each with its own captions"
            )

    @property
    def corpora(self) -> str:
        """What is trained on, in words."""
        if self.mixture:
            return " + ".join(f"{corpus.weight:g} x {corpus.path[0]}" for corpus in self.mixture)
        return " ".join(self.path)


def open_source(config: DataConfig, image_size: int) -> Source:
    """The corpus, or mixture of corpora, that `config` names.

    Raises:
        InputError: see `open_corpus`.
    """
    if config.mixture:
        return open_mixture(config.mixture, image_size)
    return open_corpus(config, image_size)


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
        order=draw_order(source, config.order, seed),
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
    order: grain.MapDataset[Draw]
    tokenizer: Tokenizer
    transform: ImageTransform
    crop_scale: tuple[float, float] | None
    seed: int

    def __call__(self, position: int) -> Example:
        """The example at `position`; in place of an unreadable record, another one.

        Raises:
            InputError: `MAX_REPLACEMENTS` records in a row are unreadable.
        """
        draw = self.order[position]
        replaced: list[str] = []
        for attempt in range(MAX_REPLACEMENTS):
            try:
                return self._load(draw, tuple(replaced))
            except UnreadableRecordError as error:
                replaced.append(f"{self.source.name(draw.record)}: {error}".replace("\n", " "))
                draw = draw._replace(record=stand_in(self.source, draw.record, attempt))
        raise InputError(
            f"{MAX_REPLACEMENTS} records in a row are unreadable; the first: {replaced[0]}\n"
            "a few broken records are replaced by others, but this corpus is broken at large"
        )

    def _load(self, draw: Draw, replaced: tuple[str, ...]) -> Example:
        pair = self.source[draw.record]
        if self.crop_scale is None:
            pixels = preprocess(pair.image, self.transform)
        else:
            rng = example_rng(self.seed, draw, "image")
            pixels = random_resized_crop(pair.image, self.transform.size, rng, self.crop_scale)
        caption = draw_caption(pair, example_rng(self.seed, draw, "caption"))
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
