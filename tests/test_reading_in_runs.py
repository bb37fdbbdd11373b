"""Corpora in object storage, read in runs through a cache: the same batches, by few requests."""

import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from flaxclip.data.examples import ExampleLoader
from flaxclip.data.images.eval_transform import SizedTransform
from flaxclip.data.images.train_transform import AugmentConfig
from flaxclip.data.order import HostRows, OrderConfig, draw_order
from flaxclip.data.prefetch import Prefetch
from flaxclip.data.remote_reading import read_through_cache
from flaxclip.data.sources.mixture import MixtureSource
from flaxclip.data.sources.runs import RUN_BYTES, count_run_length
from flaxclip.data.sources.tars.webdataset import WebDatasetSource
from flaxclip.data.tokenizers.load import load_tokenizer
from flaxclip.data.workers.batch_shapes import BatchShape
from flaxclip.data.workers.pool import WorkerPool
from flaxclip.data.workers.stalls import WorkerError
from flaxclip.errors import InputError
from flaxclip.models.inputs import TokenizerConfig
from tests.helpers.image_tars import jpeg, write_shard
from tests.helpers.slow_bucket import BucketTars, SlowBucket

BATCH = 8
BY_RUNS = OrderConfig()


class ShortRuns(BucketTars):
    """As if its examples were so large that a run has four of them."""

    run_length = 4


@pytest.fixture
def shards(tmp_path):
    for shard in range(3):
        names = range(50 * shard, 50 * shard + 50)
        pairs = {f"{name:03}": (jpeg(name), f"shade {name}") for name in names}
        write_shard(tmp_path / f"{shard}.tar", pairs)
    SlowBucket.forget(tmp_path)
    return tmp_path


def loader(source, order=BY_RUNS, batch_size=BATCH):
    return ExampleLoader(
        source,
        draw_order(source, order, 0, batch_size),
        load_tokenizer(TokenizerConfig(), 20),
        SizedTransform(32),
        AugmentConfig(crop_scale=(0.5, 1.0)),
        0,
    )


def through_cache(source, folder, *, order=BY_RUNS, gib=None, hosts=1, host=0):
    rows = HostRows(BATCH, host, hosts)
    return read_through_cache(source, order, rows, str(folder / "cache"), gib)


def in_runs(shards):
    return ShortRuns(f"slow://{shards}/*.tar")


def alone(shards):
    """The same examples in the same order, read one by one from disk."""

    class OnDisk(WebDatasetSource):
        run_length, reads_remotely = 4, True

    return OnDisk(f"{shards}/*.tar")


def assert_same(rows, expected):
    for row, other in zip(rows, expected, strict=True):
        np.testing.assert_array_equal(row.image, other.image)
        np.testing.assert_array_equal(row.tokens, other.tokens)
        assert row.replaced == other.replaced


def rows_of(load, positions):
    return load(positions, lambda position: None)


def test_an_epoch_takes_one_request_a_run(shards, tmp_path):
    source = in_runs(shards)
    through_cache(source, tmp_path)
    load, expected = loader(source), loader(alone(shards))
    assert load.order.storage is not None
    SlowBucket.forget()
    assert_same(rows_of(load, range(150)), rows_of(expected, range(150)))
    # 38 runs, one of which lies in two shards.
    assert SlowBucket.requests == 39


def test_a_corpus_that_fits_is_fetched_once(shards, tmp_path):
    source = in_runs(shards)
    through_cache(source, tmp_path)
    load = loader(source)
    rows_of(load, range(150))
    SlowBucket.forget()
    second_epoch = rows_of(load, range(150, 300))
    again = in_runs(shards)  # another run, later
    through_cache(again, tmp_path)
    assert_same(rows_of(loader(again), range(150, 300)), second_epoch)
    assert SlowBucket.requests == 0


def test_without_the_storage_order_only_what_fits_is_fetched_in_runs(shards, tmp_path):
    whole = OrderConfig(window=None)
    assert through_cache(in_runs(shards), tmp_path, order=whole) is None
    for gib, requests in ((1.0, 39), (1e-3, 150)):
        source = in_runs(shards)
        reading = through_cache(source, tmp_path / f"{gib}", order=whole, gib=gib)
        assert reading is not None
        assert reading.steps_ahead == 0
        load = loader(source, whole)
        SlowBucket.forget()
        rows = rows_of(load, range(150))
        assert SlowBucket.requests == requests
        assert_same(rows, rows_of(loader(alone(shards), whole), range(150)))


def test_a_cache_that_is_smaller_than_the_windows_is_refused(shards, tmp_path):
    with pytest.raises(InputError, match=r"data.cache_gib is 0.1\n.*drawn from 0.2 GiB at a"):
        through_cache(in_runs(shards), tmp_path, gib=0.1)
    # The windows of a larger corpus would need gigabytes: no more is asked for than it has.
    assert through_cache(in_runs(shards), tmp_path, gib=0.2) is not None


def test_files_on_disk_are_read_without_a_cache(shards, tmp_path):
    source = WebDatasetSource(f"{shards}/*.tar")
    assert through_cache(source, tmp_path, gib=1.0) is None
    assert source.run_length is None
    assert source.extents_of(0) == ()


def test_of_a_mixture_the_remote_corpora_are_read_through_the_cache(shards, tmp_path):
    def mixture(remote):
        return MixtureSource([remote, WebDatasetSource(f"{shards}/0.tar")], [3, 1])

    source = mixture(in_runs(shards))
    through_cache(source, tmp_path)
    load = loader(source)
    SlowBucket.forget()
    assert_same(rows_of(load, range(160)), rows_of(loader(mixture(alone(shards))), range(160)))
    assert 0 < SlowBucket.requests <= 39


def pool(source, reading, steps, *, prefetching=True, workers=2):
    load, rows = loader(source), HostRows(BATCH, 0, 1)
    steps = range(steps)
    prefetch = Prefetch(source, load.order, reading.cache, steps, rows.of_step, reading.steps_ahead)
    return WorkerPool(
        load,
        load.name,
        BatchShape(BATCH, (32, 32, 3), 20),
        steps,
        rows.of_step,
        workers=workers,
        slots=2,
        stall_seconds=60.0,
        read_ahead=load.read_ahead,
        ahead=[prefetch] if prefetching else [],
    )


def test_workers_find_what_the_prefetching_process_has_fetched(shards, tmp_path):
    source = in_runs(shards)
    batches = pool(source, through_cache(source, tmp_path), steps=18)
    expected, reads = loader(alone(shards)), None
    for step, batch in enumerate(batches):
        rows = rows_of(expected, range(BATCH * step, BATCH * step + BATCH))
        np.testing.assert_array_equal(batch.images, [row.image for row in rows])
        np.testing.assert_array_equal(batch.tokens, [row.tokens for row in rows])
        reads = batch.reads
    batches.close()
    assert reads is not None
    assert reads.bytes / 1000 >= 30  # of all runs, once
    # Runs, and the version of each shard in each process.
    assert reads.requests <= 39 + 3 * 3
    assert reads.retries == 0


def test_a_prefetching_process_that_is_killed_is_named(shards, tmp_path):
    source = in_runs(shards)
    batches = pool(source, through_cache(source, tmp_path), steps=10**6)
    next(iter(batches))
    os.kill(batches._prefetchers[0].process.pid, signal.SIGKILL)
    with pytest.raises(WorkerError, match=r"the prefetching process \(\d+\) was killed by SIGKILL"):
        list(batches)
    batches.close()


def test_the_prefetching_process_looks_no_further_ahead_than_the_cache_holds(shards, tmp_path):
    source = in_runs(shards)
    reading = through_cache(source, tmp_path)
    order = draw_order(source, BY_RUNS, 0, BATCH)
    rows, asked = HostRows(BATCH, 0, 1), []

    def needed():
        asked.append(len(list((tmp_path / "cache").rglob("*"))))
        return 0 if len(asked) < 5 else 10**6

    Prefetch(source, order, reading.cache, range(18), rows.of_step, 2).run(needed, lambda: None)
    early = asked[4]
    assert early < len(list((tmp_path / "cache").rglob("*")))


def test_the_prefetching_process_looks_for_many_runs_at_once(shards, tmp_path):
    met = threading.Barrier(BATCH)  # in object storage, each look at the index is a request

    class Waiting(ShortRuns):
        def extents(self, first, last):
            met.wait(timeout=60)
            return super().extents(first, last)

    source = Waiting(f"slow://{shards}/*.tar")
    reading = through_cache(source, tmp_path)
    order = draw_order(source, BY_RUNS, 0, BATCH)
    rows, fetched = HostRows(BATCH, 0, 1), []
    prefetch = Prefetch(source, order, reading.cache, range(1), rows.of_step, 10**6)
    assert len({source.run_of(order[row].example) for row in range(BATCH)}) == BATCH
    prefetch.run(lambda: 0, lambda: fetched.append(1))
    assert not met.broken
    assert len(fetched) == BATCH


def test_what_loads_in_the_order_for_object_storage_is_free_of_jax(shards):
    code = f"""
import sys
from flaxclip.data import examples, prefetch
from flaxclip.data.order import OrderConfig, draw_order
from flaxclip.data.tokenizers import load
from tests.helpers.slow_bucket import BucketTars
source = BucketTars("slow://{shards}/*.tar")
assert draw_order(source, OrderConfig(), 0, 8)[10**6].visit == 6666
print([name for name in ("jax", "grain", "orbax") if name in sys.modules])
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


def test_what_a_process_has_read_of_is_read_without_another_thread(shards, tmp_path):
    threads = []

    class Noting(ShortRuns):
        def __getitem__(self, index):
            threads.append(threading.current_thread() is threading.main_thread())
            return super().__getitem__(index)

    source = Noting(f"slow://{shards}/*.tar")
    through_cache(source, tmp_path)
    load, expected = loader(source), loader(alone(shards))
    assert_same(rows_of(load, range(150)), rows_of(expected, range(150)))
    assert not any(threads)  # all were asked for before the first was read
    threads.clear()
    assert_same(rows_of(load, range(150, 300)), rows_of(expected, range(150, 300)))
    assert all(threads)


def test_runs_have_four_mebibytes_on_average():
    assert count_run_length(10**9, 25_000) == 132  # pairs of 40 kB
    assert RUN_BYTES <= 132 * 40_000
    assert count_run_length(10**12, 1000) == 4
    assert count_run_length(0, 0) % 4 == 0
