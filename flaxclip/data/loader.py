"""(seed, step) -> global batch -> `jax.Array` on the mesh.

A batch is a pure function of the configuration, the seed and the step: the pipeline has no state
to save, resuming is exact, and the same run continues on another number of hosts with the same
examples in the same order.
"""

import dataclasses

import jax
from jax.sharding import Mesh

from flaxclip.data.device_feed import DeviceFeed
from flaxclip.data.examples import ExampleLoader
from flaxclip.data.images.eval_transform import SizedTransform
from flaxclip.data.images.train_transform import AugmentConfig
from flaxclip.data.order import HostRows, OrderConfig, draw_order
from flaxclip.data.prefetch import Prefetch
from flaxclip.data.remote_reading import read_through_cache
from flaxclip.data.sources.captions import CaptionConfig
from flaxclip.data.sources.corpus import CorpusConfig, MixtureCorpus, open_corpus, open_mixture
from flaxclip.data.sources.source import Source, reads_remotely
from flaxclip.data.sources.tars.index.index_sharing import IndexSharing
from flaxclip.data.tokenizers.load import load_tokenizer
from flaxclip.data.workers.host_batches import LocalLoading
from flaxclip.data.workers.pool import WorkerPool, available_cores
from flaxclip.data.workers.shared_batches import BatchShape, count_slots
from flaxclip.errors import InputError
from flaxclip.models.variants import ModelSpec
from flaxclip.storage import is_remote


@dataclasses.dataclass(frozen=True)
class DataConfig(CorpusConfig):
    """Selection, order and cropping of the training pairs."""

    mixture: tuple[MixtureCorpus, ...] = ()
    """Several corpora, each with captions of its own, in place of `path` and `captions`."""
    heldout: tuple[str, ...] = ()
    """Shards that are never trained on: the benchmark's default retrieval task."""
    order: OrderConfig = OrderConfig()
    augment: AugmentConfig = AugmentConfig()
    workers: int | None = None
    """Processes a host that read, decode and tokenise. If None, one for each core that this process
    may use. If 0, the training process itself."""
    prefetch_bytes: int | None = None
    """Memory a host for batches on their way to the devices. If None, 1 GiB, or two batches if
    these are larger."""
    cache_dir: str | None = None
    """Folder on a disk of the host for what is fetched from object storage; its processes share it,
    and so may other runs. If None, one in `$XDG_CACHE_HOME` or `~/.cache`."""
    cache_gib: float | None = None
    """GiB in it at most; what was used least recently goes first. A corpus that fits is fetched
    once. If None, what the order of the examples needs, which is some GiB."""
    stall_seconds: float = 120.0
    """A worker that takes longer over one example ends the run, with the example's name."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers is not None and self.workers < 0:
            raise InputError(f"data.workers is {self.workers}\nit must not be negative")
        if self.cache_gib is not None and self.cache_gib <= 0:
            raise InputError(f"data.cache_gib is {self.cache_gib:g}\nit must be positive")
        if self.stall_seconds <= 0:
            raise InputError(f"data.stall_seconds is {self.stall_seconds}\nit must be positive")
        if self.mixture and (self.path, self.captions) != (CorpusConfig.path, CaptionConfig()):
            raise InputError(
                "data.mixture and data.path, or data.captions, are both given\n"
                "name every corpus in the mixture, each with its own captions"
            )
        if self.mixture and self.index is not None:
            raise InputError(
                "data.mixture and data.index are both given\n"
                "give each corpus of the mixture an index of its own"
            )

    @property
    def corpora(self) -> str:
        """A description of the corpora that the run trains on."""
        if self.mixture:
            return " + ".join(f"{corpus.weight:g} x {corpus.path[0]}" for corpus in self.mixture)
        return " ".join(self.path)

    def with_order_as_meant(self) -> "DataConfig":
        """The same, but for a window of None where "auto" means that: for corpora on disk."""
        corpora: tuple[CorpusConfig, ...] = self.mixture or (self,)
        remote = any(is_remote(path) for corpus in corpora for path in corpus.path)
        if remote or self.order.window != "auto":
            return self
        return dataclasses.replace(self, order=dataclasses.replace(self.order, window=None))


def open_source(config: DataConfig, image_size: int, sharing: IndexSharing | None = None) -> Source:
    """The corpus, or mixture of corpora, that `config` names.

    With `sharing`, must be called on every host: they index tars together.

    Raises:
        InputError: see `open_corpus`.
    """
    if config.mixture:
        return open_mixture(config.mixture, image_size, sharing)
    return open_corpus(config, image_size, sharing)


def load_batches(
    config: DataConfig,
    spec: ModelSpec,
    source: Source,
    mesh: Mesh,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    stop_step: int,
) -> DeviceFeed:
    """Global batches of steps `start_step` up to `stop_step`, two ahead on the devices.

    Each host loads its own rows of every global batch. Worker processes read, decode and tokenise;
    a thread transfers batches to the devices while the previous step runs.

    Raises:
        InputError: too little `prefetch_bytes`, or a corpus that is broken at large.
        WorkerError: a worker process was killed, crashed or stalled.
    """
    image_size, text = spec.model.vision.image_size, spec.model.text
    rows = HostRows(batch_size, jax.process_index(), jax.process_count())
    steps = range(start_step, stop_step)
    reading = read_through_cache(source, config.order, rows, config.cache_dir, config.cache_gib)
    order = draw_order(source, config.order, seed, batch_size)
    load = ExampleLoader(
        source=source,
        order=order,
        tokenizer=load_tokenizer(spec.tokenizer, text.context_length, text.vocab_size),
        transform=SizedTransform(image_size, spec.preprocess),
        augment=config.augment,
        seed=seed,
    )
    shape = BatchShape(rows.local_batch_size, image_size, text.context_length)
    workers = available_cores() if config.workers is None else config.workers
    prefetch = None
    if reading is not None and reading.steps_ahead:
        prefetch = Prefetch(source, order, reading.cache, steps, rows.of_step, reading.steps_ahead)
    host_batches: WorkerPool | LocalLoading
    if workers:
        host_batches = WorkerPool(
            load,
            load.name,
            shape,
            steps,
            rows.of_step,
            workers=workers,
            slots=count_slots(shape.nbytes, config.prefetch_bytes),
            stall_seconds=config.stall_seconds,
            read_ahead=load.read_ahead if reads_remotely(source) else None,
            prefetch=prefetch,
        )
    else:
        host_batches = LocalLoading(load, steps, rows.of_step)
    return DeviceFeed(host_batches, mesh)
