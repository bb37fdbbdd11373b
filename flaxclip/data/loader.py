"""(seed, step) -> global batch -> `jax.Array` on the mesh.

A batch is a pure function of the configuration, the seed and the step: the pipeline has no state
to save, resuming is exact, and the same run continues on another number of hosts with the same
examples in the same order.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from flaxclip.data.batch import abstract_view
from flaxclip.data.config import DataConfig
from flaxclip.data.counted_shards import IndexingAhead, counted_corpora, index_before_start
from flaxclip.data.device_feed import DeviceFeed
from flaxclip.data.examples import ExampleLoader
from flaxclip.data.images.eval_transform import NativeTransform, SizedTransform, Transform
from flaxclip.data.order import HostRows, draw_order
from flaxclip.data.prefetch import Prefetch
from flaxclip.data.reinforced.visits import row_arrays, stored_teachers
from flaxclip.data.remote_reading import read_through_cache
from flaxclip.data.sequence_lengths import LengthSchedule
from flaxclip.data.sources.corpus import open_corpus, open_mixture
from flaxclip.data.sources.source import Source, reads_remotely
from flaxclip.data.sources.tars.index.index_sharing import IndexSharing
from flaxclip.data.teacher_arrays import VIEWS, extra_name
from flaxclip.data.tokenizers.base import Tokenizer
from flaxclip.data.tokenizers.load import load_tokenizer
from flaxclip.data.workers.available_cores import available_cores
from flaxclip.data.workers.batch_shapes import BatchShape, LengthShapes, StepShapes
from flaxclip.data.workers.host_batches import LocalLoading
from flaxclip.data.workers.pool import WorkerPool
from flaxclip.data.workers.prefetcher import FetchesAhead
from flaxclip.data.workers.shared_batches import count_slots
from flaxclip.errors import InputError
from flaxclip.models.spec import ModelSpec
from flaxclip.sharding import count_shards


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
    teachers: Sequence[ModelSpec] = (),
    lengths: LengthSchedule | None = None,
) -> DeviceFeed:
    """Global batches of steps `start_step` up to `stop_step`, two ahead on the devices.

    Each host loads its own rows of every global batch. Worker processes read, decode and tokenise;
    a thread transfers batches to the devices while the previous step runs.

    `teachers` see the same part of an image as the model of `spec`, and the same caption, each by
    its own preprocessing and tokenizer.

    With `lengths`, images keep their aspect ratio, and are `ImagePatches`: those of a step have at
    most the patches that it says, and the step has the pairs that it says, not `batch_size`.

    Shards that are only counted, those of the first batch, are indexed before the call returns.

    Raises:
        InputError: too little `prefetch_bytes`, a corpus that is broken at large, or a shard with
            another number of pairs than is stated. With `lengths`, a model of squares, teachers, or
            a length whose pairs the mesh does not divide.
        WorkerError: a worker process was killed, crashed or stalled.
    """
    vision, text = spec.model.vision, spec.model.text
    transform: Transform = SizedTransform(vision.image_size, spec.preprocess)
    if lengths is not None:
        _check_lengths(lengths, spec, mesh, config, teachers)
        batch_size = lengths.usual_pairs
        transform = NativeTransform(vision.patch_size, lengths.lengths[-1], spec.preprocess)
    rows = HostRows(batch_size, jax.process_index(), jax.process_count(), lengths)
    steps = range(start_step, stop_step)
    reading = read_through_cache(source, config.order, rows, config.cache_dir, config.cache_gib)
    order = draw_order(source, config.order, seed, batch_size, lengths)
    stored = stored_teachers(source) if config.teacher_vectors else ()
    views = teacher_views(spec, teachers)
    load = ExampleLoader(
        source=source,
        order=order,
        tokenizer=load_tokenizer(spec.tokenizer, text.context_length, text.vocab_size),
        transform=transform,
        augment=config.augment,
        seed=seed,
        transforms=views.transforms,
        tokenizers=views.tokenizers,
        stored=stored,
        lengths=lengths,
    )
    shapes: StepShapes = BatchShape(
        rows.local_batch_size,
        (vision.image_size, vision.image_size, 3),
        text.context_length,
        (*views.arrays, *row_arrays(stored)),
    )
    if lengths is not None:
        shapes = LengthShapes(lengths, rows.process_count, vision.patch_size, text.context_length)
    workers = available_cores() if config.workers is None else config.workers
    ahead: list[FetchesAhead] = []  # by processes, if there are workers
    if reading is not None and reading.steps_ahead:
        ahead.append(
            Prefetch(source, order, reading.cache, steps, rows.of_step, reading.steps_ahead)
        )
    if counted_corpora(source):
        host, hosts = rows.process_index, rows.process_count
        ahead.append(IndexingAhead(source, host, hosts, start_step))
        first = [order[position].example for position in rows.of_step(start_step)]
        index_before_start(source, first if workers else None)
    host_batches: WorkerPool | LocalLoading
    if workers:
        host_batches = WorkerPool(
            load,
            load.name,
            shapes,
            steps,
            rows.of_step,
            workers=workers,
            slots=count_slots(shapes.nbytes, config.prefetch_bytes),
            stall_seconds=config.stall_seconds,
            read_ahead=load.read_ahead if reads_remotely(source) else None,
            ahead=ahead,
        )
    else:
        host_batches = LocalLoading(load, shapes, steps, rows.of_step)
    return DeviceFeed(host_batches, mesh, len(teachers))


def _check_lengths(
    lengths: LengthSchedule,
    spec: ModelSpec,
    mesh: Mesh,
    config: DataConfig,
    teachers: Sequence[ModelSpec],
) -> None:
    if spec.preprocess.resize != "native":
        raise InputError(
            f"data.sequence_lengths are given, and preprocess.resize is {spec.preprocess.resize}\n"
            "a length is of images at their own aspect ratio: set preprocess.resize to native"
        )
    if teachers or config.teacher_vectors:
        raise InputError(
            "a model that sees images at their own aspect ratio cannot learn from teachers\n"
            "they see, or have seen, squares of the same part: leave out the teachers, or train on "
            "squares"
        )
    parts = count_shards("batch", mesh)
    for patches, pairs in zip(lengths.lengths, lengths.pairs, strict=True):
        if pairs % parts:
            raise InputError(
                f"a step of {patches:,} patches an image has {pairs:,} pairs\n"
                f"the mesh divides a batch into {parts:,} parts: expected a multiple of that"
            )


class TeacherViews(NamedTuple):
    """What rows need for teachers whose views are not the student's."""

    transforms: dict[str, SizedTransform]
    tokenizers: dict[str, Tokenizer]
    arrays: tuple[tuple[str, tuple[int, ...], str], ...]
    """See `BatchShape.extra`."""


def teacher_views(student: ModelSpec, teachers: Sequence[ModelSpec]) -> TeacherViews:
    """The views that `teachers` need beside that of `student`.

    Raises:
        InputError: a teacher's vocabulary is missing, or is not that of its text tower.
    """
    views = TeacherViews({}, {}, ())
    for number, teacher in enumerate(teachers):
        text = teacher.model.text
        found = abstract_view(student, teacher, 1)
        for name, array in zip(VIEWS, found, strict=True):
            if array is None:
                continue
            key = extra_name(number, name)
            if name == "images":
                size = teacher.model.vision.image_size
                views.transforms[key] = SizedTransform(size, teacher.preprocess)
            else:
                views.tokenizers[key] = load_tokenizer(
                    teacher.tokenizer, text.context_length, text.vocab_size
                )
            described = key, array.shape[1:], str(array.dtype)
            views = views._replace(arrays=(*views.arrays, described))
    return views
