"""Reading from object storage: many requests at once, and the rows of reading one by one."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import cloudpickle
import fsspec
import numpy as np
import pytest

from flaxclip.data.examples import ExampleLoader
from flaxclip.data.images.eval_transform import SizedTransform
from flaxclip.data.images.train_transform import AugmentConfig
from flaxclip.data.order import OrderConfig, draw_order
from flaxclip.data.sources.folder import FolderSource
from flaxclip.data.sources.mixture import MixtureSource
from flaxclip.data.sources.scenes import ScenesSource
from flaxclip.data.sources.source import UnreadableExampleError, reads_remotely
from flaxclip.data.sources.tables.table import TableSource
from flaxclip.data.sources.tars.webdataset import WebDatasetSource
from flaxclip.data.storage.file_systems import REQUESTS_AT_ONCE, Version, file_system, version_of
from flaxclip.data.storage.ranged_reads import Extent, fetch
from flaxclip.data.tokenizers.load import load_tokenizer
from flaxclip.data.workers import reading_threads
from flaxclip.data.workers.batch_shapes import BatchShape
from flaxclip.data.workers.pool import WorkerPool
from flaxclip.data.workers.reading_threads import call_in_thread
from flaxclip.data.workers.stalls import WorkerError
from flaxclip.errors import InputError
from flaxclip.models.inputs import TokenizerConfig
from tests.helpers.image_tars import jpeg, write_shard
from tests.helpers.slow_bucket import BucketTars, SlowBucket


@pytest.fixture
def shards(tmp_path):
    for shard in range(2):
        names = range(20 * shard, 20 * shard + 20)
        pairs = {f"{name:03}": (jpeg(6 * name), f"shade {name}") for name in names}
        write_shard(tmp_path / f"{shard}.tar", pairs)
    SlowBucket.forget(tmp_path)
    return tmp_path


def in_bucket(folder):
    return BucketTars(f"slow://{folder}/*.tar")


def on_disk(folder):
    return WebDatasetSource(f"{folder}/*.tar")


def loader(source):
    return ExampleLoader(
        source,
        draw_order(source, OrderConfig(window=None), 0, batch_size=16),
        load_tokenizer(TokenizerConfig(), 20),
        SizedTransform(32),
        AugmentConfig(crop_scale=(0.5, 1.0)),
        0,
    )


def load(source, positions, begin=lambda position: None):
    return loader(source)(positions, begin)


def assert_same(rows, expected):
    for row, other in zip(rows, expected, strict=True):
        np.testing.assert_array_equal(row.image, other.image)
        np.testing.assert_array_equal(row.tokens, other.tokens)
        assert row.replaced == other.replaced


def test_rows_from_a_bucket_are_those_from_disk_and_their_reads_overlap(shards):
    source, begun = in_bucket(shards), []
    load(source, range(1))  # the first read of a process is made alone
    SlowBucket.together = 16
    rows = load(source, range(16), begun.append)
    assert_same(rows, load(on_disk(shards), range(16)))
    assert begun[:16] == list(range(16))
    assert SlowBucket.most_in_flight == 16


def test_no_more_requests_are_in_flight_than_pay(shards):
    source = in_bucket(shards)
    load(source, range(1))
    SlowBucket.together = REQUESTS_AT_ONCE
    load(source, range(2 * REQUESTS_AT_ONCE))
    assert SlowBucket.most_in_flight == REQUESTS_AT_ONCE


def test_reads_that_were_begun_ahead_are_not_made_again(shards):
    load = loader(in_bucket(shards))
    later = load.read_ahead(range(16, 32))
    rows = load(range(16, 32), lambda position: None, later)
    assert_same(rows, loader(on_disk(shards))(range(16, 32), lambda position: None))
    # A copy of what has read already can be sent to a process.
    assert_same(cloudpickle.loads(cloudpickle.dumps(load))(range(16, 32), lambda _: None), rows)


def test_files_on_disk_are_read_by_the_thread_that_loads(shards):
    threads = set()

    class Noting(WebDatasetSource):
        def __getitem__(self, index):
            threads.add(threading.current_thread())
            return super().__getitem__(index)

    load(Noting(f"{shards}/*.tar"), range(16))
    assert threads == {threading.current_thread()}


def test_unreadable_examples_of_a_bucket_are_replaced_as_on_disk(shards):
    pairs = {f"{name:03}": (jpeg(name), f"shade {name}") for name in range(20)}
    pairs["007"] = b"not an image", "broken"
    write_shard(shards / "0.tar", pairs)
    rows = load(in_bucket(shards), range(40))
    assert_same(rows, load(on_disk(shards), range(40)))
    (replaced,) = [reason for row in rows for reason in row.replaced]
    assert replaced.startswith("0.tar/007: ")


def test_a_bucket_that_is_broken_at_large_stops_the_run(shards):
    source = in_bucket(shards)
    for path in shards.glob("*.tar"):
        path.unlink()
    with pytest.raises(InputError, match=r"16 examples in a row are unreadable(?s:.*)No such file"):
        load(source, range(16))


def test_a_shard_that_has_changed_is_noticed_by_every_read_of_it(shards):
    source = in_bucket(shards)
    write_shard(shards / "1.tar", {"new": (jpeg(1), "another")})
    rows = load(source, range(40))  # an epoch
    replaced = [reason for row in rows for reason in row.replaced]
    changed = {reason.split(":")[0] for reason in replaced if "has changed since" in reason}
    assert changed == {f"1.tar/{name:03}" for name in range(20, 40)}


def test_the_version_of_a_shard_is_asked_for_once_whoever_reads(shards):
    path = f"slow://{shards}/0.tar"
    version = version_of(path)
    SlowBucket.forget()
    with ThreadPoolExecutor(16) as pool:
        parts = list(pool.map(lambda _: fetch(Extent(path, 0, 512, version)), range(16)))
    assert set(parts) == {(shards / "0.tar").read_bytes()[:512]}
    assert SlowBucket.versions_asked == 1


def test_a_version_that_cannot_be_had_is_asked_for_again(shards):
    path = f"slow://{shards}/2.tar"
    with pytest.raises(UnreadableExampleError, match="No such file"):
        fetch(Extent(path, 0, 512, Version(0, 0)))
    os.rename(shards / "0.tar", shards / "2.tar")
    assert len(fetch(Extent(path, 0, 512, version_of(path)))) == 512


def pool(source, steps, *, stall_seconds=60.0, rows=40, workers=1):
    load = loader(source)
    return WorkerPool(
        load,
        load.name,
        BatchShape(rows, (32, 32, 3), 20),
        range(steps),
        lambda step: range(step * rows, step * rows + rows),
        workers=workers,
        slots=2,
        stall_seconds=stall_seconds,
        read_ahead=load.read_ahead,
    )


def test_worker_processes_that_read_ahead_make_the_same_batches(shards):
    expected = iter(load(on_disk(shards), range(120)))
    batches = pool(in_bucket(shards), steps=3, workers=2)
    for batch in batches:
        for image, tokens in zip(batch.images, batch.tokens, strict=True):
            row = next(expected)
            np.testing.assert_array_equal(image, row.image)
            np.testing.assert_array_equal(tokens, row.tokens)
    assert next(expected, None) is None
    batches.close()


def test_a_request_that_hangs_is_named_and_ends_the_run(shards, capfd):
    write_shard(shards / "2.tar", {"040": (jpeg(40), "never")})
    source = in_bucket(shards)
    (shards / "2.tar.hangs").touch()
    order = loader(source).order
    assert order[0].example != 40  # others are waited for before
    batches = pool(source, steps=2, stall_seconds=5.0, rows=41)
    with pytest.raises(WorkerError, match=r"has been at example 2.tar/040 for \d+ s"):
        list(batches)
    batches.close()
    assert "in cat_file" in capfd.readouterr().err


def test_the_first_read_of_a_process_is_made_alone():
    reading_threads._threads.cache_clear()
    begun, answered, seen = threading.Event(), threading.Event(), []
    first = call_in_thread(lambda: (begun.set(), answered.wait(60)))
    others = [call_in_thread(lambda: seen.append(first.done())) for _ in range(8)]
    assert begun.wait(60)
    with pytest.raises(TimeoutError):
        others[0].result(0.1)
    answered.set()
    for other in others:
        other.result(60)
    assert seen == [True] * 8


HANGING = """
import sys, threading
from flaxclip.data.workers.reading_threads import call_in_thread

begun = threading.Event()
call_in_thread(lambda: (begun.set(), threading.Event().wait()))
begun.wait()
"""


def test_a_request_that_hangs_does_not_keep_a_process_from_ending():
    subprocess.run([sys.executable, "-c", HANGING], check=True, timeout=120)


def test_errors_of_reading_arrive_with_their_kind(shards):
    class Refusing(BucketTars):
        def __getitem__(self, index):
            raise InputError(f"no package for {self.name(index)}")

    with pytest.raises(InputError, match=r"^no package for 0.tar/"):
        load(Refusing(f"slow://{shards}/0.tar"), range(16))


def test_sources_say_whether_reading_them_means_waiting(shards, tmp_path):
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "cat" / "1.jpg").write_bytes(jpeg(1))
    local, remote = on_disk(shards), in_bucket(shards)
    assert [reads_remotely(source) for source in (local, remote)] == [False, True]
    assert not reads_remotely(FolderSource(str(tmp_path / "photos")))
    bucket = fsspec.filesystem("memory")
    bucket.pipe_file("memory://photos/cat/1.jpg", jpeg(1))
    assert reads_remotely(FolderSource("memory://photos"))
    assert not reads_remotely(ScenesSource("train", 32))
    assert not reads_remotely(MixtureSource([local, local], [1, 1]))
    assert reads_remotely(MixtureSource([local, remote], [1, 1]))
    for image, remotely in (("1.jpg", False), ("memory://photos/cat/1.jpg", True)):
        table = tmp_path / "rows.csv"
        table.write_text(f"filepath,caption\n{image},a cat\n")
        assert reads_remotely(TableSource(str(table))) is remotely


def test_s3_has_a_connection_for_every_request_unless_the_user_says_otherwise(monkeypatch):
    pytest.importorskip("s3fs")
    for settings, connections in (({}, REQUESTS_AT_ONCE), ({"max_pool_connections": 7}, 7)):
        monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": settings})
        file_system.cache_clear()
        assert file_system("s3").config_kwargs["max_pool_connections"] == connections
    file_system.cache_clear()
