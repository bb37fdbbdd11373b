"""Tars in object storage whose numbers of pairs are stated: trained on before they are indexed."""

import concurrent.futures
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from flaxclip.data.config import DataConfig
from flaxclip.data.counted_shards import IndexingAhead, counted_corpora, index_before_start
from flaxclip.data.examples import ExampleLoader
from flaxclip.data.images.eval_transform import SizedTransform
from flaxclip.data.images.train_transform import AugmentConfig
from flaxclip.data.index.make_index import make_index
from flaxclip.data.order import Draw, HostRows, OrderConfig, draw_order
from flaxclip.data.prefetch import Prefetch
from flaxclip.data.remote_reading import read_through_cache
from flaxclip.data.sources.corpus import CorpusConfig, MixtureCorpus, open_corpus
from flaxclip.data.sources.mixture import MixtureSource
from flaxclip.data.sources.source import UnreadableExampleError
from flaxclip.data.sources.tars.index import kept_scans
from flaxclip.data.sources.tars.index.index_sharing import IndexSharing
from flaxclip.data.sources.tars.scan_processes import Scanner
from flaxclip.data.sources.tars.webdataset import WebDatasetSource
from flaxclip.data.storage import hedged_requests
from flaxclip.data.storage.repeated_requests import StorageAwayError
from flaxclip.data.tokenizers.load import load_tokenizer
from flaxclip.data.workers.batch_shapes import BatchShape
from flaxclip.data.workers.pool import WorkerPool
from flaxclip.errors import InputError
from flaxclip.models.inputs import TokenizerConfig
from flaxclip.run.provenance import data_fingerprint
from flaxclip.run.workdir import check_same_data
from tests.helpers import counted_bucket  # noqa: F401
from tests.helpers.faulty_store import FaultyStore
from tests.helpers.image_tars import jpeg, write_shard

SHARDS, PAIRS, BATCH = 6, 10, 4


class ShortRuns(WebDatasetSource):
    """As if its examples were so large that a run has four of them."""

    run_length = 4


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> pathlib.Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("REQUESTS", str(tmp_path / "requests"))
    monkeypatch.setattr(hedged_requests, "_LEAST_SECONDS", 600.0)  # each request is counted
    return tmp_path / "cache"


@pytest.fixture
def store(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for shard in range(SHARDS):
        names = range(shard * PAIRS, (shard + 1) * PAIRS)
        pairs = {f"{name:03}": (jpeg(name), f"caption {name}") for name in names}
        write_shard(folder / f"{shard}.tar", pairs)
    write_sizes(folder)
    with FaultyStore(str(folder)) as store:
        yield store


def write_sizes(folder, **changes):
    sizes = {f"{shard}.tar": PAIRS for shard in range(SHARDS)}
    (pathlib.Path(folder) / "sizes.json").write_text(json.dumps(sizes | changes))


def pattern(store):
    return store.url(f"{{0..{SHARDS - 1}}}.tar")


def opened(store, counts="auto", kind=ShortRuns, sharing=None):
    return kind(pattern(store), counts=counts, sharing=sharing)


def on_disk(store):
    return WebDatasetSource(f"{store.folder}/*.tar")


def everything(source):
    return [(source.name(n).rpartition("/")[2], source[n]) for n in range(len(source))]


def scanned(cache):
    """Number of shards whose scans are kept."""
    return len([path for path in cache.rglob("shards/*/*") if path.suffix != ".lock"])


def as_sizes(folder):
    return "auto"


def as_statistics(folder):
    (folder / "sizes.json").unlink()
    for shard in range(SHARDS):
        # As img2dataset writes them.
        stats = {"count": PAIRS + 3, "successes": PAIRS, "failed_to_download": 3, "duration": 1.5}
        (folder / f"{shard}_stats.json").write_text(json.dumps(stats))
    return "auto"


def as_a_file_elsewhere(folder):
    (folder / "sizes.json").rename(folder.parent / "numbers.json")
    return str(folder.parent / "numbers.json")


def as_an_index_of_wids(folder):
    (folder / "sizes.json").unlink()
    shards = [
        {"url": f"./{shard}.tar", "nsamples": PAIRS, "filesize": 1, "md5sum": ""}
        for shard in range(SHARDS)
    ]
    index = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": shards}
    (folder / "index.json").write_text(json.dumps(index))
    return str(folder / "index.json")


@pytest.mark.parametrize(
    "write", [as_sizes, as_statistics, as_a_file_elsewhere, as_an_index_of_wids]
)
def test_the_order_is_that_of_an_index_and_no_shard_is_read_for_it(store, cache, write):
    counts = write(pathlib.Path(store.folder))
    source = opened(store, counts, WebDatasetSource)
    read = store.bytes
    assert (len(source), scanned(cache)) == (SHARDS * PAIRS, 0)
    indexed = opened(store, None, WebDatasetSource)
    assert store.bytes > read
    assert source.run_length == indexed.run_length
    for window in ("auto", None, 32):
        config = OrderConfig(window=window)
        ours, theirs = (draw_order(part, config, 7, BATCH) for part in (source, indexed))
        assert (ours.storage is None) == (window != "auto")
        assert [ours[n] for n in range(3 * len(source))] == [theirs[n] for n in range(180)]
    assert scanned(cache) == 0
    assert everything(source) == everything(on_disk(store))
    assert scanned(cache) == SHARDS


def test_a_shard_is_scanned_when_it_is_read_and_once_for_all(store, cache):
    source = opened(store)
    copy = pickle.loads(pickle.dumps(source))
    assert source.name(PAIRS + 3).endswith("1.tar/013")
    assert scanned(cache) == 1
    asked = store.asked()
    assert copy[PAIRS + 3].captions == ("caption 13",)
    assert source.extents(PAIRS, PAIRS + 8)[0].path.endswith("/1.tar")
    assert store.asked() == asked + 1  # for the pair
    assert copy.counted.unknown == [0, 2, 3, 4, 5]
    # Across the borders of shards, and by a later start.
    later = opened(store)
    entries = later._index.entries(PAIRS - 2, 2 * PAIRS + 2)
    assert np.bincount(entries["shard"]).tolist() == [2, PAIRS, 2]
    assert scanned(cache) == 3


READ_ALL = """
import sys
from flaxclip.data.sources.tars import tar_scan
from flaxclip.data.sources.tars.index import counted_index
from flaxclip.data.sources.tars.webdataset import WebDatasetSource

def scan(path, version):
    print(path)
    return tar_scan.scan_shard(path, version)

counted_index.CountedIndex.find.__defaults__ = (scan,)
source = WebDatasetSource(sys.argv[1], counts="auto")
for number in range(len(source)):
    source.name(number)
"""


def test_of_the_processes_of_a_host_one_scans_a_shard(store):
    store.latency = 0.05
    command = [sys.executable, "-c", READ_ALL, pattern(store)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    read = [line for process in processes for line in process.communicate()[0].splitlines()]
    assert [process.returncode for process in processes] == [0] * 3
    assert sorted(read) == [store.url(f"{shard}.tar") for shard in range(SHARDS)]


def gone(path):
    raise UnreadableExampleError("is gone")


@pytest.mark.parametrize("scheme", ["", "counted://"])
def test_hosts_share_what_they_have_scanned(store, tmp_path, monkeypatch, scheme):
    sharing = IndexSharing(f"{scheme}{tmp_path}/shared", 0, 2)
    first = opened(store, sharing=sharing)
    assert everything(first) == everything(on_disk(store))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    second, asked = opened(store, sharing=sharing._replace(host=1)), store.asked()
    names = [first.name(n) for n in range(len(first))]
    assert [second.name(n) for n in range(len(second))] == names
    assert store.asked() == asked
    assert pickle.loads(pickle.dumps(second))[25] == first[25]
    # What cannot be read there is no example's fault, which another one would replace.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "third"))
    third = opened(store, sharing=sharing)
    monkeypatch.setattr(kept_scans, "version_of", gone)
    monkeypatch.setattr(kept_scans, "is_remote", lambda path: True)
    with pytest.raises(InputError, match=r"cannot share what is in .*/0.tar: is gone\nall hosts"):
        third.fields(0)


def loader(source):
    return ExampleLoader(
        source,
        draw_order(source, OrderConfig(), 0, BATCH),
        load_tokenizer(TokenizerConfig(), 20),
        SizedTransform(32),
        AugmentConfig(crop_scale=(0.5, 1.0)),
        0,
    )


def pool(source, tmp_path, steps):
    load, rows, steps = loader(source), HostRows(BATCH, 0, 1), range(steps)
    reading = read_through_cache(source, OrderConfig(), rows, str(tmp_path / "runs"), None)
    ahead = Prefetch(source, load.order, reading.cache, steps, rows.of_step, reading.steps_ahead)
    return WorkerPool(
        *(load, load.name, BatchShape(BATCH, (32, 32, 3), 20), steps, rows.of_step),
        workers=1,
        slots=2,
        stall_seconds=60.0,
        read_ahead=load.read_ahead,
        ahead=[ahead, IndexingAhead(source, 0, 1, first_step=0)],
    )


def test_batches_are_those_of_an_index_and_the_rest_is_indexed_meanwhile(store, tmp_path, cache):
    class OnDisk(WebDatasetSource):
        run_length, reads_remotely = 4, True

    expected = loader(OnDisk(f"{store.folder}/*.tar"))
    source = opened(store)
    first = [loader(source).order[position].example for position in range(BATCH)]
    index_before_start(source, first)
    assert scanned(cache) == len({example // PAIRS for example in first}) < SHARDS
    batches = pool(source, tmp_path, steps=8)
    for step, batch in enumerate(batches):
        positions = range(step * BATCH, (step + 1) * BATCH)
        rows = expected(positions, lambda position: None)
        np.testing.assert_array_equal(batch.images, [row.image for row in rows])
        np.testing.assert_array_equal(batch.tokens, [row.tokens for row in rows])
    deadline = time.monotonic() + 300
    while scanned(cache) < SHARDS:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    batches.close()
    index_before_start(source, None)
    assert source.counted.unknown == []


WRONG = (
    r"3.tar has 10 pairs, not 11 as in http://.*/sizes.json\nnothing was left out\n"
    r"the order .*start anew without --data.counts.*flaxclip.data.index"
)


def test_a_wrong_count_ends_all_that_meets_it(store, tmp_path):
    write_sizes(store.folder, **{"3.tar": PAIRS + 1})
    source = opened(store)
    assert source[0].captions == ("caption 0",)
    for meet in (
        lambda: source[3 * PAIRS],
        lambda: source.name(3 * PAIRS),
        lambda: source.extents(3 * PAIRS, 3 * PAIRS + 4),
        lambda: IndexingAhead(source, 1, 2, 0).run(lambda: 1, lambda: None),
        lambda: index_before_start(source, None),
    ):
        with pytest.raises(InputError, match=WRONG):
            meet()
    assert (
        IndexingAhead(source, 0, 2, 0).run(lambda: 1, lambda: None).startswith("all shards of this")
    )
    # What is kept is what was found: once the count is corrected, no shard is read again.
    write_sizes(store.folder)
    source, asked = opened(store), store.asked()
    source.name(3 * PAIRS)
    assert store.asked() == asked


def test_a_wrong_count_ends_a_run_before_its_shard_is_needed(store, tmp_path):
    write_sizes(store.folder, **{"3.tar": PAIRS + 1})
    source = opened(store)
    # An order that never comes to that shard.
    order = [draw for n in range(60) if (draw := loader(source).order[n]).example < 3 * PAIRS]
    load = loader(source)
    object.__setattr__(load, "order", order[:BATCH])
    batches = WorkerPool(
        *(load, load.name, BatchShape(BATCH, (32, 32, 3), 20), range(10**6)),
        lambda _: range(BATCH),
        workers=1,
        slots=2,
        stall_seconds=60.0,
        ahead=[IndexingAhead(source, 0, 1, first_step=0)],
    )
    with pytest.raises(InputError, match=WRONG):
        list(batches)
    batches.close()


def test_pairs_that_are_left_out_are_told_with_a_wrong_count(store):
    pairs = {f"{name:03}": (jpeg(name), "caption") for name in range(PAIRS - 1)}
    write_shard(pathlib.Path(store.folder) / "2.tar", pairs)
    with (pathlib.Path(store.folder) / "2.tar").open("r+b") as file:
        data = file.read().replace(b"003.txt", b"003.t_t")
        data = data.replace(b"003.jpg", b"003.jpg")
        header = data.index(b"003.t_t")
        # Its checksum, of 148 to 156 in the header, with one letter exchanged.
        old = int(data[header + 148 : header + 154], 8)
        new = b"%06o" % (old + ord("_") - ord("x"))
        data = data[: header + 148] + new + data[header + 154 :]
        file.seek(0)
        file.write(data)
    with pytest.raises(InputError, match=r"2.tar has 8 pairs, not 10 .*\nleft out: 1 images with"):
        opened(store).name(2 * PAIRS)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            '{"0.tar": 10}',
            r"5 of 6 shards are without a count of pairs: first .*/1.tar\nlooked for",
        ),
        ('{"0.tar": "20"}', r"0.tar is '20' in .*sizes.json\nexpected a number of samples"),
        ('{"0.tar": -1}', r"0.tar is -1 in"),
        ('{"0.tar": true}', r"0.tar is True in"),
        ("[20, 20]", r"no counts of shards in .*sizes.json\nexpected .*wids_version"),
        ('{"shardlist": [{"url": "0.tar"}]}', r"nsamples is None in .*sizes.json"),
        ('{"shardlist": 3}', r"no counts of shards in .*sizes.json"),
        ('{"0.tar": 2', r"cannot read counts of pairs from .*sizes.json: JSONDecodeError"),
    ],
)
def test_counts_that_cannot_be_used_are_told(store, sizes, message):
    (pathlib.Path(store.folder) / "sizes.json").write_text(sizes)
    with pytest.raises(InputError, match=message):
        opened(store)


def test_statistics_without_a_count_and_files_that_are_missing_are_told(store, tmp_path):
    folder = pathlib.Path(store.folder)
    as_statistics(folder)
    (folder / "4_stats.json").write_text('{"count": 20}')
    with pytest.raises(
        InputError, match=r"successes is None in .*/4_stats.json\nexpected a number"
    ):
        opened(store)
    with pytest.raises(InputError, match=r"no file of counts: .*/none.json\nexpected"):
        opened(store, f"{tmp_path}/none.json")


def test_an_index_is_used_in_place_of_counts(store, tmp_path, cache):
    make_index([pattern(store)], f"{tmp_path}/index", workers=1)
    (pathlib.Path(store.folder) / "sizes.json").unlink()
    config = CorpusConfig((pattern(store),), index=f"{tmp_path}/index", counts="auto")
    assert open_corpus(config, 16).counted is None
    # One that has some of the shards leaves the others to be counted.
    write_sizes(store.folder)
    shutil.rmtree(tmp_path / "index")
    shutil.rmtree(cache)
    make_index([store.url("{1,4}.tar")], f"{tmp_path}/index", workers=1)
    source = open_corpus(config, 16)
    assert source.counted.unknown == [0, 2, 3, 5]
    assert everything(source) == everything(on_disk(store))
    assert scanned(cache) == 4
    write_sizes(store.folder, **{"4.tar": 7})
    with pytest.raises(InputError, match=r"4.tar has 10 pairs, not 7 as in"):
        open_corpus(config, 16)


def test_what_this_host_has_indexed_counts_for_it_alone(store, tmp_path):
    opened(store, None)
    assert opened(store).counted is None
    write_sizes(store.folder, **{"4.tar": 7})
    with pytest.raises(InputError, match=r"4.tar has 10 pairs, not 7 as in"):
        opened(store, sharing=IndexSharing(str(tmp_path / "shared"), 0, 2))


def test_shards_on_disk_are_indexed_whatever_is_stated(store, cache):
    write_sizes(store.folder, **{"3.tar": PAIRS + 1})
    assert everything(WebDatasetSource(f"{store.folder}/*.tar", counts="auto")) == everything(
        on_disk(store)
    )
    assert scanned(cache) == 0


def test_empty_shards_are_refused_or_allowed_as_with_an_index(store):
    folder = pathlib.Path(store.folder)
    write_shard(folder / "5.tar", {})
    write_sizes(folder, **{"5.tar": 0})
    with pytest.raises(InputError, match="1 of 6 shards are empty"):
        opened(store)
    config = CorpusConfig((pattern(store),), allow_empty_shards=True, counts="auto")
    source = open_corpus(config, 16)
    index_before_start(source, None)
    assert (len(source), source.counted.unknown) == (5 * PAIRS, [])


def test_a_scan_that_has_not_reached_the_disk_is_made_again(store, cache):
    opened(store).name(0)
    (path,) = (path for path in cache.rglob("shards/*/*") if path.suffix != ".lock")
    whole = path.read_bytes()
    for damaged in (whole[:-1], bytes(len(whole)), b""):
        path.write_bytes(damaged)
        assert opened(store).name(0).endswith("/000")
        assert path.read_bytes() == whole
    # A process that was killed in the middle of a scan leaves its lock, which is free.
    path.rename(f"{path}.lock")
    assert opened(store).name(0).endswith("/000")


def test_threads_that_wait_for_a_shard_do_not_scan_it_too(store, monkeypatch):
    store.latency, source, scans = 0.05, opened(store), []
    find = kept_scans._to_bytes
    monkeypatch.setattr(kept_scans, "_to_bytes", lambda scan: scans.append(1) or find(scan))
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        list(threads.map(source.name, range(8)))
    assert len(scans) == 1


def test_naming_what_hangs_waits_for_nothing(store):
    source = opened(store)
    load, asked = loader(MixtureSource([on_disk(store), source], [1, 1])), store.asked()
    object.__setattr__(load, "order", [Draw(example, 0) for example in range(12 * PAIRS)])
    assert load.name(3) == "mixture.0/0.tar/003"
    assert load.name(7 * PAIRS + 3) == "mixture.1/1.tar/example 3 of it"
    assert store.asked() == asked
    opened(store).name(PAIRS)  # by another process
    assert load.name(7 * PAIRS + 3) == "mixture.1/1.tar/013"
    assert loader(source).name(0)


def test_corpora_of_a_mixture_are_counted_each(store, tmp_path):
    source = MixtureSource([on_disk(store), opened(store)], [1, 1])
    ((start, index),) = counted_corpora(source)
    assert start == SHARDS * PAIRS
    index_before_start(source, [0, start + PAIRS])
    assert index.unknown == [0, 2, 3, 4, 5]
    with pytest.raises(InputError, match=r"data.mixture and data.counts are both given"):
        DataConfig(mixture=(MixtureCorpus(("a.tar",)),), counts="auto")
    with pytest.raises(InputError, match=r"data.counts is of tars, and scenes is none"):
        open_corpus(CorpusConfig(counts="auto"), 16)


def test_a_run_goes_on_with_counts_where_it_had_an_index_and_the_other_way(store, cache):
    counted = data_fingerprint(opened(store))
    assert scanned(cache) == 0
    indexed = data_fingerprint(opened(store, None))
    check_same_data(counted, indexed, 5)
    check_same_data(indexed, counted, 5)
    check_same_data(counted, counted, 5)
    other = {**counted, "shards_sha256": "another"}
    for ours, theirs in ((other, counted), (other, indexed), (indexed, other)):
        with pytest.raises(InputError, match="in shards of other names or sizes"):
            check_same_data(ours, theirs, 5)
    # Sizes may be others where names and contents are the same.
    check_same_data({**indexed, "shards_sha256": "another"}, indexed, 5)


def test_indexing_says_that_counts_would_spare_it(store, caplog):
    caplog.set_level("INFO")
    opened(store, None)
    assert "training need not wait for this: --data.counts auto" in caplog.text


AWAY = """
from flaxclip.data.sources.tars import scan_processes
from flaxclip.data.storage.repeated_requests import StorageAwayError

def scan(path, version):
    raise StorageAwayError("does not answer")

scan_processes.scan_shard = scan
scan_processes.main()
"""


def test_storage_that_is_away_is_no_fault_of_a_shard():
    scanner = Scanner.__new__(Scanner)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    scanner.process = subprocess.Popen([sys.executable, "-c", AWAY], **pipes, env=os.environ)
    with pytest.raises(StorageAwayError, match="does not answer"):
        scanner.scan("x.tar")
    scanner.close()
