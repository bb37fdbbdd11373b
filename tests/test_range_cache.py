"""The cache of ranges: bounded, shared by processes, whole after whatever kills them."""

import contextlib
import errno
import fcntl
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from flaxclip.data.sources.source import UnreadableExampleError
from flaxclip.data.storage import cached_file, range_cache
from flaxclip.data.storage.file_systems import version_of
from flaxclip.data.storage.range_cache import COUNTER, RangeCache
from flaxclip.data.storage.ranged_reads import Extent
from flaxclip.errors import InputError
from tests.helpers.full_disk import files_no_larger_than

SIZE, COUNT = 1000, 40
ONE = SIZE + cached_file.END_BYTES
DATA = np.random.default_rng(0).bytes(SIZE * COUNT)


@pytest.fixture
def extents(tmp_path):
    (tmp_path / "file").write_bytes(DATA)
    return extents_of(tmp_path / "file")


def extents_of(path):
    version = version_of(str(path))
    return [Extent(str(path), k * SIZE, (k + 1) * SIZE, version) for k in range(COUNT)]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def fetched(monkeypatch):
    """Extents that are downloaded."""
    seen, fetch = [], range_cache.fetch
    monkeypatch.setattr(
        range_cache, "fetch", lambda extent: (seen.append(extent), fetch(extent))[1]
    )
    return seen


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file() and path.name != "total"]


def used(folder):
    return sum(path.stat().st_size for path in files(folder))


def noted(folder):
    return int((folder / "total").read_text())


def reads_right(cache, extent):
    start, end = extent.start + 10, extent.end - 10
    return cache.read(extent, start, end) == DATA[start:end]


def test_an_extent_is_downloaded_once(extents, folder, fetched):
    cache, before = RangeCache(str(folder), 10 * ONE), COUNTER.snapshot()
    assert extents[0] not in cache
    assert cache.ensure(extents[0])
    assert not cache.ensure(extents[0])
    assert extents[0] in cache
    for extent in (extents[0], extents[1], extents[1]):
        assert reads_right(cache, extent)
    assert cache.read(extents[1], SIZE, SIZE) == b""
    assert fetched == extents[:2]
    after = COUNTER.snapshot()
    assert (after.hits - before.hits, after.misses - before.misses) == (3, 2)
    assert used(folder) == noted(folder) == 2 * ONE
    with pytest.raises(ValueError, match="bytes 0 to 10 of"):
        cache.read(extents[1], 0, 10)


def test_another_version_of_a_file_is_another_extent(extents, folder, tmp_path):
    cache = RangeCache(str(folder), 10 * ONE)
    cache.ensure(extents[0])
    other = b"x" * SIZE * COUNT
    (tmp_path / "file").write_bytes(other)
    os.utime(tmp_path / "file", ns=(1, 1))
    extent = extents_of(tmp_path / "file")[0]
    assert extent not in cache
    assert cache.read(extent, 0, SIZE) == other[:SIZE]
    with pytest.raises(UnreadableExampleError, match="has changed since"):
        cache.read(extents[1], SIZE, SIZE + 1)
    assert used(folder) == noted(folder) == 2 * ONE


def test_what_was_used_longest_ago_goes_first(extents, folder, monkeypatch):
    monkeypatch.setattr(cached_file, "_TOUCH_SECONDS", -1.0)
    cache = RangeCache(str(folder), 20 * ONE)
    for extent in extents[:20]:
        cache.ensure(extent)
    assert used(folder) == 20 * ONE
    assert reads_right(cache, extents[0])
    cache.ensure(extents[20])
    # To 95%, the new one included.
    held = [number for number, extent in enumerate(extents) if extent in cache]
    assert held == [0, *range(3, 21)]
    assert used(folder) == noted(folder) == 19 * ONE


def test_a_file_lost_between_look_up_and_read_is_fetched_again(extents, folder, fetched):
    cache = RangeCache(str(folder), 10 * ONE)
    cache.ensure(extents[0])
    for path in files(folder):
        path.unlink()
    assert reads_right(cache, extents[0])
    assert fetched == [extents[0]] * 2


def test_a_copy_needs_no_look_at_the_folder(extents, folder, fetched):
    cache = RangeCache(str(folder), 10 * ONE)
    cache.ensure(extents[0])
    copy = pickle.loads(pickle.dumps(cache))
    assert copy == cache
    assert reads_right(copy, extents[0])
    assert len(fetched) == 1


@pytest.mark.parametrize("damage", ["data", "end", "short", "empty"])
def test_a_file_that_did_not_reach_the_disk_before_power_failed(
    extents, folder, fetched, monkeypatch, damage
):
    cache = RangeCache(str(folder), 10 * ONE)
    cache.ensure(extents[0])
    [path] = files(folder)
    good = path.read_bytes()
    path.write_bytes(
        {
            "data": bytes(512) + good[512:],
            "end": good[:SIZE] + bytes(len(good) - SIZE),
            "short": good[:700],
            "empty": b"",
        }[damage]
    )
    monkeypatch.setattr(cached_file, "_BOOT", b"next one")
    before = COUNTER.snapshot()
    assert reads_right(cache, extents[0])
    assert COUNTER.snapshot().damaged - before.damaged == 1
    assert len(fetched) == 2


def test_files_of_another_boot_are_compared_with_their_checksums_once(
    extents, folder, fetched, monkeypatch
):
    cache = RangeCache(str(folder), 10 * ONE)
    cache.ensure(extents[0])
    monkeypatch.setattr(cached_file, "_BOOT", b"next one")
    compared, crc32 = [], cached_file.zlib.crc32
    counting = type(
        "zlib", (), {"crc32": staticmethod(lambda d: (compared.append(1), crc32(d))[1])}
    )
    monkeypatch.setattr(cached_file, "zlib", counting)
    for _ in range(3):
        assert reads_right(cache, extents[0])
    assert compared == [1]
    assert len(fetched) == 1


def test_many_threads_download_an_extent_once(extents, folder, fetched, monkeypatch):
    cache, slow = RangeCache(str(folder), 10 * ONE), range_cache.fetch
    monkeypatch.setattr(range_cache, "fetch", lambda extent: (time.sleep(0.1), slow(extent))[1])
    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(lambda k: reads_right(cache, extents[k % 2]), range(16)))
    assert sorted(fetched) == extents[:2]


def test_who_waits_for_a_download_that_fails_tries_too(extents, folder, monkeypatch):
    cache, fetch, begun = RangeCache(str(folder), 10 * ONE), range_cache.fetch, []

    def fails_once(extent):
        begun.append(extent)
        if len(begun) == 1:
            time.sleep(0.2)
            raise UnreadableExampleError("refused")
        return fetch(extent)

    monkeypatch.setattr(range_cache, "fetch", fails_once)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(cache.ensure, extents[0])
        while not begun:
            time.sleep(0.01)
        others = [pool.submit(reads_right, cache, extents[0]) for _ in range(3)]
        with pytest.raises(UnreadableExampleError, match="refused"):
            first.result()
        assert all(other.result() for other in others)
    assert len(begun) == 2
    assert used(folder) == noted(folder) == ONE


def test_extents_that_do_not_fit_are_read_past_the_cache(extents, folder, fetched):
    cache, before = RangeCache(str(folder), ONE - 1), COUNTER.snapshot()
    assert not cache.ensure(extents[0])
    assert not fetched
    assert reads_right(cache, extents[0])
    assert fetched == [extents[0]._replace(start=10, end=SIZE - 10)]
    assert COUNTER.snapshot().not_stored - before.not_stored == 1
    assert files(folder) == []
    assert noted(folder) == 0


def test_a_disk_that_is_full_at_the_start(folder):
    with files_no_larger_than(1000), pytest.raises(InputError) as caught:
        RangeCache(str(folder), 10 * ONE)
    assert str(caught.value).startswith(f"cannot write into the cache {folder}: File too large\n")
    assert "make some there" in str(caught.value)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write into the cache .*/file/cache: Not a dir"):
        RangeCache(str(tmp_path / "file" / "cache"), 10 * ONE)
    with pytest.raises(InputError, match="a cache of 0 bytes"):
        RangeCache(str(tmp_path), 0)


@pytest.fixture
def no_pause():
    yield
    range_cache._paused.clear()


def test_a_disk_that_is_full_later(extents, folder, fetched, caplog, no_pause, monkeypatch):
    cache, before = RangeCache(str(folder), 10 * ONE), COUNTER.snapshot()
    cache.ensure(extents[0])
    with files_no_larger_than(500):
        assert all(reads_right(cache, extent) for extent in extents[:4])
        assert not cache.ensure(extents[5])
    # What needs no room goes on; nothing is tried for a while, and the rest is asked for alone.
    assert [extent.size for extent in fetched] == [SIZE] + [SIZE - 20] * 3
    assert COUNTER.snapshot().not_stored - before.not_stored == 3
    [warning] = [r.message for r in caplog.records if r.name == range_cache.__name__]
    assert warning.startswith(f"cannot write into the cache {folder}: File too large")
    assert used(folder) == noted(folder) == ONE
    monkeypatch.setattr(range_cache, "_paused", dict.fromkeys(range_cache._paused, 0.0))
    assert cache.ensure(extents[5])


def test_a_disk_that_fills_up_while_an_extent_is_written(
    extents, folder, fetched, caplog, no_pause, monkeypatch
):
    cache, replace = RangeCache(str(folder), 10 * ONE), os.rename

    def no_space(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "rename", no_space)
    assert reads_right(cache, extents[0])
    monkeypatch.setattr(os, "rename", replace)
    assert fetched == extents[:1]
    assert [r.message for r in caplog.records if "No space left" in r.message]
    assert files(folder) == []
    assert noted(folder) == 0


def test_a_folder_that_is_removed_meanwhile(extents, folder, no_pause):
    cache = RangeCache(str(folder), 10 * ONE)
    cache.ensure(extents[0])
    subprocess.run(["rm", "-r", str(folder)], check=True)
    assert all(reads_right(cache, extent) for extent in extents)


PROGRAM = """
import pickle, sys, time
from flaxclip.data.storage import range_cache

cache, extents, numbers, seconds = pickle.load(sys.stdin.buffer)
data = open(extents[0].path, "rb").read()
fetch = range_cache.fetch

def slow(extent):
    print("fetching", flush=True)
    time.sleep(seconds)
    return fetch(extent)

range_cache.fetch = slow
for number in numbers:
    extent = extents[number]
    start, end = extent.start + 10, extent.end - 10
    assert cache.read(extent, start, end) == data[start:end], extent
print(range_cache.COUNTER.snapshot(), flush=True)
"""


def start(cache, extents, numbers, seconds=0.0):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    pickle.dump((cache, extents, list(numbers), seconds), process.stdin)
    process.stdin.close()
    return process


def test_a_process_killed_during_a_download(extents, folder):
    cache = RangeCache(str(folder), 10 * ONE)
    cache.ensure(extents[1])
    with start(cache, extents, [0], 100.0) as process:
        assert process.stdout.readline() == b"fetching\n"
        assert used(folder) == noted(folder) == 2 * ONE  # its room is reserved
        waiting = threading.Thread(target=cache.ensure, args=(extents[0],))
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        process.send_signal(signal.SIGKILL)
        waiting.join(60)
    assert reads_right(cache, extents[0])
    assert used(folder) == noted(folder) == 2 * ONE


def test_what_killed_processes_have_left_is_removed(extents, folder):
    cache = RangeCache(str(folder), 10 * ONE)
    with contextlib.ExitStack() as stack:
        for number in (0, 1):
            process = stack.enter_context(start(cache, extents, [number], 100.0))
            process.stdout.readline()
            process.kill()
            process.wait()
        alive = stack.enter_context(start(cache, extents, [2], 100.0))
        alive.stdout.readline()
        assert used(folder) == 3 * ONE
        RangeCache(str(folder), 10 * ONE)
        assert [path.suffix for path in files(folder)] == [".partial"]  # of the one that is alive
        assert used(folder) == noted(folder) == ONE
        alive.kill()
        alive.wait()
    # Or where room is needed.
    for extent in extents:
        cache.ensure(extent)
    assert not [path for path in files(folder) if path.suffix]
    assert used(folder) == noted(folder) <= 10 * ONE


def test_a_total_that_makes_no_sense_is_counted_anew(extents, folder):
    cache = RangeCache(str(folder), 10 * ONE)
    cache.ensure(extents[0])
    for text in ("", "garbage", "9" * 20):
        (folder / "total").write_text(text)
        cache.ensure(extents[1])
        cache.ensure(extents[2])
        assert used(folder) <= noted(folder) <= 10 * ONE or text == "9" * 20
        (path,) = [p for p in files(folder) if p.name == os.path.basename(cache._path(extents[2]))]
        path.unlink()
    RangeCache(str(folder), 10 * ONE)
    assert used(folder) == noted(folder)


def test_many_processes_stay_within_the_bound_and_read_right(extents, folder):
    cache, bound = RangeCache(str(folder), 12 * ONE), 12 * ONE
    rng, most = np.random.default_rng(0), 0
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(start(cache, extents, rng.integers(0, COUNT, 120), 0.001))
            for _ in range(8)
        ]
        killed = processes.pop()
        readers = [
            stack.enter_context(ThreadPoolExecutor(1)).submit(process.stdout.read)
            for process in processes
        ]
        while any(process.poll() is None for process in processes):
            with open(folder / "total") as lock:  # nothing is being moved meanwhile
                fcntl.flock(lock, fcntl.LOCK_EX)
                most = max(most, used(folder))
            if killed.poll() is None and most > 6 * ONE:
                killed.kill()
            time.sleep(0.005)
        assert [process.returncode for process in processes] == [0] * 7
        assert all(b"CacheCounts(hits=" in reader.result() for reader in readers)
    assert 8 * ONE < most <= bound
    assert used(folder) <= noted(folder) <= bound
    RangeCache(str(folder), bound)
    assert used(folder) == noted(folder) <= bound


def test_a_process_downloads_few_large_extents_at_once_to_read_of_them(
    extents, folder, monkeypatch
):
    monkeypatch.setattr(range_cache, "_LARGE", SIZE - 1)
    change, counts = threading.Condition(), {"now": 0, "most": 0}

    def fetch(extent):
        with change:
            counts["now"] += 1
            counts["most"] = max(counts["most"], counts["now"])
            change.notify_all()
            assert change.wait_for(lambda: counts["most"] >= 16, timeout=60)
        time.sleep(0.02)
        with change:
            counts["now"] -= 1
        return DATA[extent.start : extent.end]

    monkeypatch.setattr(range_cache, "fetch", fetch)
    cache = RangeCache(str(folder), 10**6)
    with ThreadPoolExecutor(COUNT) as pool:
        read = pool.map(lambda extent: cache.read(extent, extent.start, extent.end), extents)
        assert b"".join(read) == DATA
    assert counts["most"] == 16
