"""Ranged reads over HTTP from a store in which everything goes wrong, each fault counted."""

import contextlib
import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from flaxclip.data.examples import ExampleLoader
from flaxclip.data.images.eval_transform import SizedTransform
from flaxclip.data.images.train_transform import AugmentConfig
from flaxclip.data.order import OrderConfig, draw_order
from flaxclip.data.sources.source import UnreadableExampleError
from flaxclip.data.sources.tars.webdataset import WebDatasetSource
from flaxclip.data.storage import file_systems, hedged_requests, ranged_reads, repeated_requests
from flaxclip.data.storage.file_systems import version_of
from flaxclip.data.storage.files import is_folder, open_to_read, read_file
from flaxclip.data.storage.ranged_reads import Extent, fetch
from flaxclip.data.storage.repeated_requests import COUNTER, StorageAwayError, request
from flaxclip.data.tokenizers.load import load_tokenizer
from flaxclip.errors import InputError
from flaxclip.exit_codes import PreemptedError
from flaxclip.models.inputs import TokenizerConfig
from tests.helpers.faulty_store import FaultyStore
from tests.helpers.image_tars import jpeg, write_shard

pytest.importorskip("aiohttp")

DATA = np.random.default_rng(0).bytes(100_000)


@pytest.fixture
def store(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(DATA)
    with FaultyStore(str(tmp_path)) as store:
        yield store


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(repeated_requests, "_FIRST_WAIT", 0.01)
    # What other tests have asked for tells nothing of these.
    monkeypatch.setattr(hedged_requests, "_RECENT", hedged_requests._Recent())


def extent(store, start=1000, end=5000, name="a"):
    url = store.url(name)
    return Extent(url, start, end, version_of(url))


@contextlib.contextmanager
def when(condition, act):
    """Within the block, do something as soon as something else has happened, not at some time."""
    left = threading.Event()

    def watch():
        while not left.wait(0.01):
            if condition():
                act()
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        left.set()
        watcher.join()


class counted:
    """What is asked for within the block."""

    def __enter__(self):
        self._before = COUNTER.snapshot()
        return self

    def __exit__(self, *_):
        after = COUNTER.snapshot()
        for name in after._fields:
            setattr(self, name, getattr(after, name) - getattr(self._before, name))


def test_an_extent_is_one_request_after_one_for_the_version(store, tmp_path):
    asked = extent(store)
    store.forget()
    with counted() as counts:
        assert fetch(asked) == DATA[1000:5000]
        assert fetch(asked._replace(start=0, end=100_000)) == DATA
        assert fetch(asked._replace(start=7, end=7)) == b""
    assert (store.asked("HEAD"), store.asked("GET")) == (1, 2)
    assert (counts.requests, counts.bytes, counts.retries) == (3, 104_000, 0)
    assert counts.seconds > 0
    local = Extent(str(tmp_path / "a"), 1000, 5000, version_of(str(tmp_path / "a")))
    with counted() as counts:
        assert fetch(local) == DATA[1000:5000]
    assert counts.requests == 0


@pytest.mark.parametrize("fault", [408, 429, 500, 503, "reset", "short"])
def test_what_may_pass_is_asked_again(store, fault):
    asked = extent(store)
    fetch(asked)
    store.forget()
    store.next_faults.extend([fault] * 2)
    with counted() as counts:
        assert fetch(asked) == DATA[1000:5000]
    assert store.answers["GET", fault] == 2
    assert store.answers["GET", 206] == 1
    # Whether a body that claims to be complete is all that there is takes a look at the file.
    looks = 2 if fault == "short" else 0
    assert store.asked("HEAD") == looks
    assert (counts.requests, counts.retries) == (3 + looks, 2)
    assert counts.bytes == 4000 + (looks * 2000)


def test_a_twentieth_refused_and_a_hundredth_reset(store, monkeypatch):
    # On a busy machine some are slow by the standard of the others, and would be made twice.
    monkeypatch.setattr(hedged_requests, "_LEAST_SECONDS", 60.0)
    asked = extent(store)
    store.refused, store.reset = 0.05, 0.01
    places = range(0, 100_000, 250)
    with counted() as counts, ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda at: fetch(asked._replace(start=at, end=at + 250)), places))
    assert b"".join(parts) == DATA
    failed = store.answers["GET", 503] + store.answers["GET", "reset"]
    assert store.answers["GET", 503] > 5
    assert store.answers["GET", "reset"] > 0
    assert counts.retries == failed
    assert counts.requests == 401 + failed
    assert counts.hedged == 0


@pytest.mark.parametrize("status", [403, 404, 410, 501])
def test_what_will_not_pass_is_an_unreadable_example_at_once(store, status):
    asked = extent(store)
    fetch(asked)
    store.forget()
    store.next_faults.extend([status])
    with pytest.raises(UnreadableExampleError, match=r"http://127.0.0.1:\d+/a"):
        fetch(asked)
    assert store.asked() == 1


def test_a_server_that_ignores_ranges_is_named(store, monkeypatch):
    asked = extent(store)
    store.ignores_range = True
    with pytest.raises(InputError, match=r"ignores ranges: 4,000 bytes of http.*/a.* 100,000 came"):
        fetch(asked)
    assert fetch(asked._replace(start=0, end=100_000)) == DATA
    # As long as the file, but not where the file is.
    with pytest.raises(UnreadableExampleError, match="has changed since"):
        fetch(asked._replace(start=1000, end=101_000))
    monkeypatch.setattr(ranged_reads, "_READ_AHEAD", 10_000)
    with open_to_read(store.url("b")) as file, pytest.raises(InputError, match="ignores ranges"):
        file.read(10)


def test_a_server_that_does_not_say_how_large_files_are_is_named(store):
    store.sends_length = False
    for read in (version_of, open_to_read, lambda url: read_file(url, 10**6)):
        with pytest.raises(InputError, match=r"does not say how large http.*/a is(?s:.*)Length"):
            read(store.url("a"))


def test_answers_may_be_without_length_once_it_is_known(store):
    asked = extent(store)
    fetch(asked)
    store.sends_length = False
    assert fetch(asked) == DATA[1000:5000]


@pytest.mark.parametrize("ignores_match", [False, True])
@pytest.mark.parametrize("size", [4000, 100_000])
def test_a_file_that_is_replaced_meanwhile(store, size, ignores_match, tmp_path):
    asked = extent(store)
    fetch(asked)
    store.ignores_match = ignores_match
    (tmp_path / "a").write_bytes(bytes(size))
    if size < 5000 or not ignores_match:
        for _ in range(2):
            with pytest.raises(UnreadableExampleError, match=r"/a has changed since it was index"):
                fetch(asked)
    # What is indexed anew in the same process is read.
    assert fetch(extent(store, 0, 4000)) == bytes(4000)


def test_a_server_that_refuses_its_own_tags(store):
    asked = extent(store)
    ranged_reads._STATES.remember(asked.path, asked.version, {"headers": {"If-Match": '"other"'}})
    with counted() as counts:
        assert fetch(asked) == DATA[1000:5000]
        assert fetch(asked) == DATA[1000:5000]
    assert store.answers["GET", 412] == 1
    assert counts.retries == 1


def test_a_store_that_is_away_for_a_while(store, monkeypatch, caplog):
    asked = extent(store)
    fetch(asked)
    monkeypatch.setattr(repeated_requests, "_warned", -100.0)
    store.away, seconds_away = True, []
    drops = lambda: store.answers["GET", "drop"]  # noqa: E731

    def come_back_later():
        first = time.monotonic()
        while drops() < 4:
            time.sleep(0.01)
        seconds_away.append(time.monotonic() - first)
        store.away = False

    begin = time.monotonic()
    with when(drops, come_back_later), counted() as counts:
        assert fetch(asked) == DATA[1000:5000]
    assert counts.retries >= 2
    assert seconds_away[0] <= counts.seconds <= time.monotonic() - begin
    [warning] = [r.message for r in caplog.records if "asked again" in r.message]
    assert "/a: " in warning


@pytest.mark.parametrize("how", ["away", "status"])
def test_a_store_that_stays_away_ends_the_run_with_a_name(store, monkeypatch, how):
    asked = extent(store)
    fetch(asked)
    monkeypatch.setattr(repeated_requests, "AWAY_SECONDS", 0.5)
    setattr(store, how, {"away": True, "status": 503}[how])
    begin = time.monotonic()
    with pytest.raises(StorageAwayError, match=r"http.*/a: \w+: .+\nasked \d+ times in") as caught:
        fetch(asked)
    assert time.monotonic() - begin < 60  # not 75
    assert isinstance(caught.value, PreemptedError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    if how == "status":
        assert "503" in str(caught.value)
    for read in (version_of, open_to_read):
        with pytest.raises(StorageAwayError, match="/b: "):
            read(store.url("b"))


def test_a_request_is_not_repeated_after_one_that_it_needs_was_given_up():
    given_up = StorageAwayError("does not answer")
    given_up.__cause__ = TimeoutError()

    def send(seconds):
        raise given_up

    with counted() as counts, pytest.raises(StorageAwayError) as caught:
        request("http://store/a", send)
    assert caught.value is given_up
    assert counts.retries == 0


def test_a_file_that_hangs_is_named_and_holds_up_no_other(store, monkeypatch):
    monkeypatch.setattr(file_systems, "STALL_SECONDS", 0.2)
    file_systems.file_system.cache_clear()
    asked, other = extent(store), extent(store, name="b")
    store.hanging.add("a")
    hangs = lambda: store.answers["GET", "hang"]  # noqa: E731
    give_up = lambda: monkeypatch.setattr(repeated_requests, "AWAY_SECONDS", 1.0)  # noqa: E731
    begin = time.monotonic()
    with ThreadPoolExecutor(1) as pool, when(lambda: hangs() >= 2, give_up):
        hanging = pool.submit(fetch, asked)
        assert fetch(other) == DATA[1000:5000]
        with pytest.raises(StorageAwayError, match=r"/a: \w*Timeout"):
            hanging.result(60)
    assert 2 <= hangs() <= 1 + (time.monotonic() - begin) / 0.2
    # One answer that does not come is no file that hangs.
    monkeypatch.setattr(repeated_requests, "AWAY_SECONDS", 75.0)
    before = hangs()
    with when(lambda: hangs() > before, store.hanging.clear):
        assert fetch(asked) == DATA[1000:5000]
    assert hangs() > before
    file_systems.file_system.cache_clear()


def test_credentials_that_expire(store, monkeypatch):
    asked = extent(store)
    fetch(asked)
    store.next_faults.extend([401, 401])  # until the client has others
    with counted() as counts:
        assert fetch(asked) == DATA[1000:5000]
    assert counts.retries == 2
    monkeypatch.setattr(repeated_requests, "AWAY_SECONDS", 0.3)
    store.status = 401
    with pytest.raises(StorageAwayError, match=r"/a: .*401(?s:.*)credentials have expired"):
        fetch(asked)


def test_credentials_that_were_never_accepted(store):
    version = extent(store).version
    repeated_requests._accepted.clear()
    store.forget()
    store.status = 401
    with counted() as counts, pytest.raises(UnreadableExampleError, match=r"/b: "):
        fetch(Extent(store.url("b"), 0, 10, version))
    assert counts.retries == 0


def test_states_of_more_files_than_are_noted_are_asked_for_again(store, monkeypatch):
    asked, other = extent(store), extent(store, name="b")
    store.forget()
    for one in (asked, asked, other, other):
        assert fetch(one) == DATA[1000:5000]
    assert store.asked("HEAD") == 2
    monkeypatch.setattr(ranged_reads, "_KNOWN_STATES", 1)
    ranged_reads._STATES._known.clear()
    for one in (asked, other, asked):
        assert fetch(one) == DATA[1000:5000]
    assert store.asked("HEAD") == 5


def test_a_shard_is_not_downloaded_to_see_whether_it_is_a_folder(store):
    assert not is_folder(store.url("a"))
    assert is_folder(store.url("folder/"))
    assert store.asked() == 0


def test_files_are_opened_as_on_disk(store, monkeypatch):
    monkeypatch.setattr(ranged_reads, "_READ_AHEAD", 30_000)
    with counted() as counts, open_to_read(store.url("a")) as file:
        assert file.seek(0, os.SEEK_END) == len(DATA)
        file.seek(0)
        parts = [file.read(7), file.read(512)]
        file.seek(25_000)
        parts += [file.read(10_000), file.read()]
        assert file.read() == b""
        assert b"".join(parts) == DATA[:519] + DATA[25_000:]
        file.seek(-5, os.SEEK_END)
        assert file.read(10) == DATA[-5:]
    assert counts.requests <= 6
    assert read_file(store.url("a"), len(DATA)) == DATA
    with pytest.raises(UnreadableExampleError, match="more than 99,999 bytes"):
        read_file(store.url("a"), len(DATA) - 1)


def test_a_file_that_is_replaced_while_it_is_open(store, monkeypatch, tmp_path):
    monkeypatch.setattr(ranged_reads, "_READ_AHEAD", 30_000)
    with open_to_read(store.url("a")) as file:
        assert file.read(10) == DATA[:10]
        (tmp_path / "a").write_bytes(bytes(100_000))
        with pytest.raises(OSError, match="/a has changed since"):
            file.read(90_000)


@pytest.fixture
def shards(tmp_path):
    for shard in range(2):
        names = range(20 * shard, 20 * shard + 20)
        pairs = {f"{name:03}": (jpeg(6 * name), f"shade {name}") for name in names}
        write_shard(tmp_path / f"{shard}.tar", pairs)
    return tmp_path


def load(source, positions):
    loader = ExampleLoader(
        source,
        draw_order(source, OrderConfig(window=None), 0, batch_size=16),
        load_tokenizer(TokenizerConfig(), 20),
        SizedTransform(32),
        AugmentConfig(crop_scale=(0.5, 1.0)),
        0,
    )
    return loader(positions, lambda position: None)


def test_rows_from_a_faulty_store_are_those_from_disk(store, shards):
    store.refused, store.reset = 0.05, 0.01
    remote = WebDatasetSource(store.url("{0..1}.tar"))
    rows = load(remote, range(80))
    for row, other in zip(rows, load(WebDatasetSource(f"{shards}/*.tar"), range(80)), strict=True):
        np.testing.assert_array_equal(row.image, other.image)
        np.testing.assert_array_equal(row.tokens, other.tokens)
        assert row.replaced == other.replaced == ()


def test_no_example_is_replaced_because_storage_is_away(store, shards, monkeypatch):
    source = WebDatasetSource(store.url("{0..1}.tar"))
    monkeypatch.setattr(repeated_requests, "AWAY_SECONDS", 0.3)
    store.away = True
    with pytest.raises(StorageAwayError, match=r"/[01].tar: "):
        load(source, range(4))


@pytest.fixture
def known(store, monkeypatch):
    """A range that has been asked for so often that it is known how long its answers take."""
    asked = extent(store)
    with monkeypatch.context() as patch:
        # On a busy machine some of them would be made twice, after which no more may be.
        patch.setattr(hedged_requests, "_LEAST_SECONDS", 60.0)
        for _ in range(40):
            fetch(asked)
    store.forget()
    return asked


def test_a_slow_request_is_made_a_second_time(store, known):
    store.held.append(threading.Event())  # that nobody sets
    with counted() as counts:
        assert fetch(known) == DATA[1000:5000]
    assert counts.hedged == 1
    assert store.answers["GET", 206] == 1  # of the second one


def test_a_slow_request_is_waited_for_if_the_second_one_fails(store, known):
    answered = threading.Event()
    store.held.append(answered)
    store.next_faults.extend([None, 404])
    with when(lambda: store.answers["GET", 404], answered.set), counted() as counts:
        assert fetch(known) == DATA[1000:5000]
    assert counts.hedged == 1
    assert store.answers["GET", 404] == store.answers["GET", 206] == 1


def test_of_a_store_that_is_slow_altogether_few_requests_are_made_twice(store):
    asked = extent(store)
    with counted() as counts:
        for _ in range(60):
            fetch(asked)
        store.latency = 2.5 * hedged_requests._RECENT.patience(4000)  # 0.5 s
        with ThreadPoolExecutor(32) as pool:
            assert set(pool.map(fetch, [asked] * 32)) == {DATA[1000:5000]}
    assert 1 <= counts.hedged <= 0.05 * 92
    assert 92 <= store.asked() <= 92 + counts.hedged
