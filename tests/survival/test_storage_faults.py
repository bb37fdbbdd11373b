"""What the real clients of gs:// and s3:// make of storage that fails, and what is made of them.

Emulators answer, through a server that delays and spoils their answers.
"""

import contextlib
import re
import shutil
import socket
import subprocess
import threading
import time

import fsspec
import numpy as np
import pytest

from flaxclip.data.sources.source import UnreadableExampleError
from flaxclip.data.storage import hedged_requests, repeated_requests
from flaxclip.data.storage.file_systems import file_system, version_of
from flaxclip.data.storage.files import open_to_read
from flaxclip.data.storage.range_cache import RangeCache
from flaxclip.data.storage.ranged_reads import Extent, fetch
from flaxclip.data.storage.repeated_requests import COUNTER, StorageAwayError
from flaxclip.errors import InputError
from flaxclip.exit_codes import PREEMPTED
from tests.helpers.faulty_store import FaultyStore
from tests.helpers.free_port import free_port
from tests.helpers.image_tars import jpeg, write_shard
from tests.survival.jobs import Job, train_command

with pytest.MonkeyPatch.context() as patch:
    # Read at the import: it would ask Google for the bucket's layout, for 20 s and more.
    patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    pytest.importorskip("gcsfs")
pytest.importorskip("s3fs")

DATA = np.random.default_rng(0).bytes(300_000)
URLS = {"gs": "gs://bucket/folder/a", "s3": "s3://bucket/folder/a"}


@contextlib.contextmanager
def emulator(protocol, log):
    """Its port, as long as it runs; buckets are in its memory."""
    port = free_port()
    command = {
        "gs": ["gcp-storage-emulator", "start", "--in-memory", "--default-bucket", "bucket"],
        "s3": ["moto_server"],
    }[protocol]
    if not shutil.which(command[0]):
        pytest.skip(f"needs the command {command[0]}")
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as server:
        try:
            while not listens(port):
                assert server.poll() is None, log.read_text()
                time.sleep(0.1)
            yield port
        finally:
            server.kill()


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module", params=["gs", "s3"])
def bucket(request, tmp_path_factory):
    """The protocol, and the spoilt store that answers it."""
    folder = tmp_path_factory.mktemp(request.param)
    with (
        pytest.MonkeyPatch.context() as patch,
        emulator(request.param, folder / "log") as port,
        FaultyStore(behind=("127.0.0.1", port)) as store,
    ):
        patch.setenv("STORAGE_EMULATOR_HOST", store.address)
        patch.setenv("AWS_ENDPOINT_URL", store.address)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "any")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        file_system.cache_clear()
        fsspec.filesystem(request.param).clear_instance_cache()
        files = file_system(request.param)
        files.mkdirs("bucket", exist_ok=True)
        files.pipe_file("bucket/folder/a", DATA)
        files.pipe_file("bucket/folder/b", DATA)
        yield URLS[request.param], store
        file_system.cache_clear()


@pytest.fixture(autouse=True)
def nothing_is_slow(monkeypatch):
    """On a busy machine some requests would be made twice, which is not what is counted here."""
    monkeypatch.setattr(hedged_requests, "_LEAST_SECONDS", 600.0)


@pytest.fixture
def url(bucket):
    return bucket[0]


@pytest.fixture
def store(bucket):
    store = bucket[1]
    store.forget()
    yield store
    store.away, store.status, store.ignores_range, store.latency = False, None, False, 0.0
    store.refused = store.reset = 0.0
    store.next_faults.clear()


def extent(url, start=1000, end=101_000):
    return Extent(url, start, end, version_of(url))


def test_a_range_is_one_request_for_one_state_of_the_file(url, store):
    asked = extent(url)
    fetch(asked)
    store.forget()
    assert fetch(asked) == DATA[1000:101_000]
    assert store.asked() == 1
    assert store.bytes == 100_000
    with open_to_read(url) as file:
        assert file.read() == DATA


@pytest.mark.parametrize("fault", [429, 500, 503, "reset", "drop"])
def test_what_may_pass_is_asked_again(url, store, fault):
    asked = extent(url)
    fetch(asked)
    store.forget()
    store.next_faults.extend([fault] * 2)
    before = COUNTER.snapshot()
    assert fetch(asked) == DATA[1000:101_000]
    counts = COUNTER.snapshot().since(before)
    assert store.answers["GET", fault] == 2
    assert store.answers["GET", 206] == 1
    # A connection that was used before may have been closed meanwhile, which clients look after.
    assert 2 - (fault == "drop") <= counts.retries <= 2
    assert counts.requests == 1 + counts.retries


def test_a_body_that_ends_early(url, store):
    asked = extent(url)
    fetch(asked)
    store.forget()
    store.next_faults.append("short")
    before = COUNTER.snapshot()
    assert fetch(asked) == DATA[1000:101_000]
    assert COUNTER.snapshot().retries - before.retries == 1


def test_a_twentieth_refused_and_a_hundredth_reset_by_way_of_the_cache(url, store, tmp_path):
    store.refused, store.reset = 0.05, 0.01
    version, cache = version_of(url), RangeCache(str(tmp_path), 2**20)
    extents = [Extent(url, at, at + 3000, version) for at in range(0, len(DATA), 3000)]
    data = b"".join(cache.read(one, one.start, one.end) for one in extents)
    assert data == DATA
    assert store.answers["GET", 206] == len(extents)
    assert store.answers["GET", 503] > 0


def test_a_server_that_ignores_ranges_is_named(url, store):
    asked = extent(url)
    fetch(asked)
    # As if the request had no such header, which the emulator then answers with the whole file.
    store.ignores_range = True
    with pytest.raises(InputError, match=r"ignores ranges: 100,000 bytes of .*/a .* 300,000 came"):
        fetch(asked)


def test_a_store_that_is_away_for_a_while(url, store):
    asked = extent(url)
    fetch(asked)
    store.away = True
    threading.Timer(1.0, lambda: setattr(store, "away", False)).start()
    assert fetch(asked) == DATA[1000:101_000]


@pytest.mark.parametrize("how", ["away", "status"])
def test_a_store_that_stays_away_ends_the_run_with_a_name(url, store, monkeypatch, how):
    asked = extent(url)
    fetch(asked)
    monkeypatch.setattr(repeated_requests, "AWAY_SECONDS", 2.0)
    setattr(store, how, {"away": True, "status": 503}[how])
    begin = time.monotonic()
    with pytest.raises(StorageAwayError, match=f"^{url}: "):
        fetch(asked)
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize("status", [403, 404])
def test_what_will_not_pass_is_an_unreadable_example_at_once(url, store, status):
    asked = extent(url)
    fetch(asked)
    store.forget()
    store.status = status
    before = COUNTER.snapshot()
    with pytest.raises(UnreadableExampleError, match=f"^{url}: "):
        fetch(asked)
    # With a look at whether the file is there, but not again and again, as clients would.
    assert 1 <= store.answers["GET", status] == store.asked() < 6
    assert COUNTER.snapshot().retries == before.retries


def test_credentials_that_expire(url, store, monkeypatch):
    asked = extent(url)
    fetch(asked)
    store.next_faults.extend([401, 401])
    assert fetch(asked) == DATA[1000:101_000]
    monkeypatch.setattr(repeated_requests, "AWAY_SECONDS", 1.0)
    store.status = 401
    with pytest.raises(StorageAwayError, match="credentials have expired"):
        fetch(asked)


@pytest.mark.parametrize(("code", "status"), [("ExpiredToken", 400), ("TokenRefreshRequired", 403)])
def test_tokens_that_s3_calls_expired(code, status):
    from botocore.exceptions import ClientError
    from s3fs.errors import translate_boto_error

    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error = translate_boto_error(ClientError(answer, "GetObject"))
    repeated_requests._accepted.add("s3://seen")
    assert repeated_requests._may_pass(error, "s3://seen/a")
    assert not repeated_requests._may_pass(error, "s3://never-seen/a")


def test_a_file_that_is_replaced_meanwhile(url, store):
    other = url[:-1] + "b"
    asked = extent(other)
    fetch(asked)
    file_system(url[:2]).pipe_file(other, DATA[::-1][:50_000])
    with pytest.raises(UnreadableExampleError, match="/b has changed since it was indexed"):
        fetch(asked)
    assert fetch(extent(other, 0, 100)) == DATA[::-1][:100]
    file_system(url[:2]).pipe_file(other, DATA)


def test_a_store_that_stays_away_stops_a_run_which_is_saved(tmp_path):
    (tmp_path / "data").mkdir()
    write_shard(tmp_path / "data" / "0.tar", {f"{n}": (jpeg(n), f"shade {n}") for n in range(64)})
    with FaultyStore(tmp_path / "data") as store:
        # In whole epochs each example is a request, which no cache answers.
        order = ["--data.order.window", "None", "--checkpoint.every-steps", "100000"]
        shards = ["--data.path", store.url("0.tar"), "--data.workers", "1", "--steps", "100000"]
        job = Job(tmp_path, train_command(*shards, *order))
        job.wait_for_text("  loss ", times=3)
        store.away = True
        assert job.wait() == PREEMPTED, job.remarks()
    steps = [int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert len(steps) == 1
    assert re.search(rf"/0.tar: .*(?s:.*)given up(?s:.*)step {steps[0]} is saved", job.text())
