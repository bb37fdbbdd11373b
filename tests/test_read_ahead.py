"""Inspecting, preparing and scoring a corpus in a bucket: many requests at once, same results."""

import filecmp
import threading

import numpy as np
import pytest

from flaxclip.benchmark.datasets import image_batches
from flaxclip.benchmark.readers import open_test
from flaxclip.benchmark.tasks import find_tasks
from flaxclip.data.images.eval_transform import SizedTransform
from flaxclip.data.inspect.inspection import inspect_source
from flaxclip.data.prepare.filters import PairFilters
from flaxclip.data.prepare.scan import Recipe, scan_examples
from flaxclip.data.prepare.write_shards import write_shard
from flaxclip.data.read_ahead import read_ahead
from flaxclip.data.sources.corpus import CorpusConfig
from flaxclip.data.sources.source import UnreadableExampleError
from flaxclip.data.sources.tars.webdataset import WebDatasetSource
from flaxclip.data.storage.file_systems import REQUESTS_AT_ONCE
from flaxclip.data.workers.reading_threads import call_in_thread
from tests.helpers import pair_shards
from tests.helpers.image_tars import write_shard as write_tar
from tests.helpers.slow_bucket import BucketTars, SlowBucket

AT_ONCE = 24


@pytest.fixture
def corpus(tmp_path):
    """Good and broken examples, on disk and in a bucket that answers only `AT_ONCE` requests."""
    folder = tmp_path / "in"
    pair_shards.write_shards(folder)
    on_disk = WebDatasetSource(f"{folder}/*.tar")
    in_bucket = BucketTars(f"slow://{folder}/*.tar")
    SlowBucket.forget(tmp_path)
    call_in_thread(in_bucket.__getitem__, 0).result()  # the first read of a process is made alone
    SlowBucket.together = AT_ONCE
    yield on_disk, in_bucket
    SlowBucket.forget()


@pytest.mark.parametrize("remotely", [False, True])
def test_results_and_errors_come_in_order(remotely):
    def read(number):
        if number % 7 == 3:
            raise UnreadableExampleError(f"broken {number}")
        return number

    found = []
    for take in read_ahead(read, range(200), remotely):
        try:
            found.append(take())
        except UnreadableExampleError as error:
            found.append(str(error))
    assert found == [f"broken {n}" if n % 7 == 3 else n for n in range(200)]


def test_no_more_is_read_ahead_than_pays():
    begun, answer = [], threading.Event()
    call_in_thread(int).result()
    takes = read_ahead(lambda number: (begun.append(number), answer.wait(60)), range(500), True)
    take = next(takes)
    answer.set()
    take()
    next(takes)()
    assert max(begun) <= REQUESTS_AT_ONCE + 1
    assert list(read_ahead(str, [], True)) == []


def test_what_is_on_disk_is_read_when_it_is_taken():
    read = []
    for number, take in enumerate(read_ahead(read.append, range(3), False)):
        assert read == list(range(number))
        take()


@pytest.mark.parametrize("sample", [40, 73])
def test_an_inspection_of_a_bucket_is_that_of_the_disk(corpus, sample):
    on_disk, in_bucket = corpus
    expected = inspect_source(on_disk, sample, 5, seed=1)
    found = inspect_source(in_bucket, sample, 5, seed=1)
    assert found.broken
    assert found == expected
    assert SlowBucket.most_in_flight >= AT_ONCE


@pytest.mark.parametrize("deduplicate", ["pair", "none"])
def test_a_bucket_is_prepared_as_the_disk_is(corpus, tmp_path, deduplicate):
    filters = PairFilters(min_side=20, min_words=2, score_key="similarity", min_score=0.5)
    recipe = Recipe(CorpusConfig(("in",)), filters, deduplicate=deduplicate)
    scans, reports, shards = [], [], []
    for number, source in enumerate(corpus):
        SlowBucket.most_in_flight = 0
        scans.append(scan_examples(source, recipe, range(len(source))))
        assert SlowBucket.most_in_flight >= AT_ONCE * number
        SlowBucket.most_in_flight = 0
        shards.append(tmp_path / f"{number}.array_record")
        reports.append(write_shard(source, recipe, scans[-1].rows, shards[-1]))
        assert SlowBucket.most_in_flight >= AT_ONCE * number
    (rows, *rest), (other_rows, *others) = scans
    np.testing.assert_array_equal(rows, other_rows)
    assert rest == others
    assert reports[0] == reports[1]
    assert filecmp.cmp(*shards, shallow=False)


def test_duplicates_are_not_read_to_be_dropped(corpus, tmp_path):
    class Noting(WebDatasetSource):
        reads_remotely = True

        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    read = []
    source = Noting(f"{tmp_path}/in/*.tar")
    recipe = Recipe(CorpusConfig(("in",)))
    rows = scan_examples(source, recipe, range(len(source))).rows
    read.clear()
    report = write_shard(source, recipe, rows, tmp_path / "a.array_record")
    (duplicates,) = {one.reason for one in report.dropped if one.reason != "unreadable"}
    assert duplicates == "duplicate"
    assert len(read) == len(rows) - sum(one.reason == "duplicate" for one in report.dropped)


def test_scores_of_pairs_in_a_bucket_are_read_as_from_the_disk(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pairs = {f"{n:02}": (pair_shards.image(n), f"example {n}") for n in range(40)}
    pairs["30"] = b"no image", "broken"
    write_tar(tmp_path / "pairs.tar", pairs)
    SlowBucket.together = 1
    BucketTars(f"slow://{tmp_path}/pairs.tar")  # is indexed
    SlowBucket.together = AT_ONCE
    found = []
    for number, path in enumerate((tmp_path, f"slow://{tmp_path}")):
        (task,) = find_tasks([f"retrieval:{path}/pairs.tar"])
        SlowBucket.most_in_flight = 0
        _, data = open_test(task, tmp_path, 16)
        assert SlowBucket.most_in_flight >= AT_ONCE * number
        SlowBucket.most_in_flight = 0
        found.append((data, list(image_batches(data.images, SizedTransform(16), 16))))
        assert SlowBucket.most_in_flight >= AT_ONCE * number
    assert sum(len(batch.unreadable) for batch in found[0][1]) == 1
    (data, batches), (other, others) = found
    assert (data.captions, data.left_out) == (other.captions, other.left_out)
    for batch, same in zip(batches, others, strict=True):
        np.testing.assert_array_equal(batch.images, same.images)
        assert batch.unreadable == same.unreadable
