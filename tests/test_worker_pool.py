import faulthandler
import os
import pathlib
import re
import resource
import signal
import threading
import time

import numpy as np
import pytest

from flaxclip.data.workers.batch_shapes import BatchShape, Row
from flaxclip.data.workers.host_batches import LocalLoading
from flaxclip.data.workers.pool import WorkerPool
from flaxclip.data.workers.shared_batches import count_slots
from flaxclip.data.workers.stalls import WorkerError
from flaxclip.errors import InputError
from tests.helpers.left_open import nothing_left_open

SHAPE = BatchShape(rows=40, image=(4, 4, 3), context_length=3)


def name(position):
    return f"shard.tar/{position:03}"


def positions(step):
    return range(step * 40, step * 40 + 40)


def loading(before=lambda position: None):
    """A function that is sent to workers by value: they need not import this module."""

    def load(positions, begin):
        return [make(position, begin) for position in positions]

    def make(position, begin):
        begin(position)
        before(position)
        image = np.full((4, 4, 3), position % 251, np.uint8)
        replaced = (f"{position}: broken",) if position % 17 == 0 else ()
        return Row(image, np.full(3, position, np.int32), position % 5 == 0, replaced)

    return load


def pool(load, *, steps=3, workers=2, slots=2, stall_seconds=60.0, read_ahead=None):
    return WorkerPool(
        load,
        name,
        SHAPE,
        range(steps),
        positions,
        workers=workers,
        slots=slots,
        stall_seconds=stall_seconds,
        read_ahead=read_ahead,
    )


def copies(batches):
    return [
        batch._replace(images=batch.images.copy(), tokens=batch.tokens.copy()) for batch in batches
    ]


def blocking_at(position, file):
    """Leave word of the process in `file`, and hang."""

    def before(here):
        if here == position:
            pathlib.Path(file).write_text(str(os.getpid()))
            time.sleep(1000)

    return before


def wait_for(file):
    while not (file.exists() and file.read_text()):
        time.sleep(0.02)
    return int(file.read_text())


def is_alive(process):
    try:
        return pathlib.Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_any_number_of_workers_makes_the_batches_that_none_makes():
    expected = copies(LocalLoading(loading(), SHAPE, range(3), positions))
    for workers in (1, 3):
        batches = pool(loading(), workers=workers)
        for batch, other in zip(copies(batches), expected, strict=True):
            np.testing.assert_array_equal(batch.images, other.images)
            np.testing.assert_array_equal(batch.tokens, other.tokens)
            assert (batch.truncated, batch.replaced) == (other.truncated, other.replaced)
        batches.close()


def test_a_killed_worker_ends_the_iteration_with_the_name_of_its_example(tmp_path):
    batches = pool(loading(blocking_at(57, str(tmp_path / "process"))))
    threading.Thread(
        target=lambda: os.kill(wait_for(tmp_path / "process"), signal.SIGKILL), daemon=True
    ).start()
    with pytest.raises(WorkerError, match=r"killed by SIGKILL, at example shard.tar/057\n.*memory"):
        list(batches)
    batches.close()


def test_a_worker_that_crashes_is_named_with_its_example():
    batches = pool(loading(lambda position: faulthandler._sigsegv() if position == 5 else None))
    with pytest.raises(WorkerError, match=r"killed by SIGSEGV, at example shard.tar/005"):
        next(iter(batches))
    batches.close()


def test_a_stalled_worker_is_reported_in_time_with_its_stack(tmp_path, caplog, capfd):
    batches = pool(loading(blocking_at(57, str(tmp_path / "process"))), stall_seconds=4.0)
    with pytest.raises(WorkerError) as caught:
        list(batches)
    # Looked at every second; the worker itself would be there for 1000 s.
    found = re.search(r"has been at example shard.tar/057 for (\d+) s", str(caught.value))
    assert 4 <= int(found[1]) <= 6
    assert time.time() - (tmp_path / "process").stat().st_mtime < 60
    assert "at example shard.tar/057" in caplog.text
    assert "in before" in capfd.readouterr().err  # the worker's own stack
    process = wait_for(tmp_path / "process")
    batches.close()
    assert not is_alive(process)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_arrives_though_its_worker_has_ended_when_the_next_task_is_sent(
    workers, monkeypatch
):
    def refuse(position):
        raise InputError(f"this corpus is broken at {position // 16}")

    def send_late(batches, worker, task, send=WorkerPool._send):
        if worker.tasks:
            worker.process.wait(60)
        send(batches, worker, task)

    monkeypatch.setattr(WorkerPool, "_send", send_late)
    batches = pool(loading(refuse), workers=workers)
    with pytest.raises(InputError, match=r"^this corpus is broken at \d$"):
        list(batches)
    batches.close()


def test_errors_in_workers_arrive_with_their_kind():
    def refuse(position):
        if position == 50:
            raise InputError("this corpus is broken at large")

    def stumble(position):
        return 1 / (position - 50)

    for before, kind, message in (
        (refuse, InputError, "^this corpus is broken at large$"),
        (stumble, WorkerError, r"(?s)failed over example shard.tar/050\n.*ZeroDivisionError"),
    ):
        batches = pool(loading(before))
        with pytest.raises(kind, match=message):
            list(batches)
        batches.close()


def test_workers_are_no_further_ahead_than_the_slots(tmp_path):
    def note(position):
        with open(tmp_path / "loaded", "a") as file:
            file.write(f"{position}\n")

    batches = pool(loading(note), steps=20, slots=3)
    made = iter(batches)
    next(made)
    loaded = lambda: (tmp_path / "loaded").read_text().splitlines()  # noqa: E731
    while len(loaded()) < 3 * 40:
        time.sleep(0.02)
    time.sleep(1.0)  # long enough for workers to overrun, if they could
    assert sorted(map(int, loaded())) == list(range(3 * 40))
    batches.close()


def test_workers_are_told_of_tasks_ahead_and_given_what_that_returned(tmp_path):
    def read_ahead(positions):
        return [f"{os.getpid()}: {position}" for position in positions]

    def load(positions, begin, ahead):
        (tmp_path / str(positions[0])).write_text(ahead[0])
        return loading()(positions, begin)

    # A batch is three tasks, and a worker that reads ahead could hold them all.
    batches = pool(load, steps=1, workers=3, read_ahead=read_ahead)
    list(batches)
    batches.close()
    words = [(tmp_path / str(first)).read_text().split(": ") for first in (0, 16, 32)]
    assert [first for _, first in words] == ["0", "16", "32"]
    assert len({process for process, _ in words}) == 3


def test_a_worker_that_cannot_read_ahead_ends_the_iteration(capfd):
    batches = pool(loading(), read_ahead=lambda positions: 1 / 0)
    with pytest.raises(WorkerError, match=r"ended with exit code 1; its own message is above"):
        list(batches)
    batches.close()
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_a_pool_leaves_no_descriptor_open_however_it_ends():
    lock = threading.Lock()
    with nothing_left_open(), pytest.raises(TypeError, match="cannot pickle"):
        pool(lambda positions, begin: lock)
    for taken in (0, 1, 3):
        with nothing_left_open():
            batches = pool(loading())
            made = iter(batches)
            for _ in range(taken):
                next(made)
            batches.close()
            batches.close()
            assert list(made) == []
            del batches, made  # with them goes the memory


def test_workers_that_cannot_all_be_started_leave_none():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = os.listdir("/proc/self/fd")
    free = [number for number in range(1000) if str(number) not in taken]
    with nothing_left_open():
        try:
            # Enough for the memory and some workers' connections.
            resource.setrlimit(resource.RLIMIT_NOFILE, (free[8], hard))
            with pytest.raises(OSError, match="Too many open files"):
                pool(loading(), workers=6)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_prefetching_is_bounded_in_bytes():
    batch = BatchShape(rows=256, image=(224, 224, 3), context_length=77).nbytes
    assert batch == 256 * (224 * 224 * 3 + 77 * 4)
    assert count_slots(batch, 5 * batch + 1) == 5
    assert count_slots(2 * batch, None) == 2**30 // (2 * batch)
    assert count_slots(2**30, None) == 2
    assert count_slots(1000, None) == 16
    with pytest.raises(InputError, match=r"data.prefetch_bytes is 1,999, less than two batches"):
        count_slots(1000, 1999)


def test_workers_end_with_the_training_process_and_ignore_signals_to_its_group(tmp_path):
    batches = pool(loading(blocking_at(57, str(tmp_path / "process"))))
    next(iter(batches))
    process = wait_for(tmp_path / "process")
    os.kill(process, signal.SIGTERM)
    os.kill(process, signal.SIGINT)
    time.sleep(0.3)
    assert is_alive(process)
    batches.close()
    assert not is_alive(process)


def test_further_arrays_of_a_row_are_those_of_loading_without_workers():
    extra = (("teacher_0/images", (2, 2, 3), "uint8"), ("teacher_0/zimg", (3,), "float32"))
    plain = loading()

    def load(positions, begin):
        return [
            row._replace(
                extra={
                    "teacher_0/images": np.full((2, 2, 3), position % 251, np.uint8),
                    "teacher_0/zimg": np.full(3, position / 8, np.float32),
                }
            )
            for position, row in zip(positions, plain(positions, begin), strict=True)
        ]

    shape = BatchShape(rows=40, image=(4, 4, 3), context_length=3, extra=extra)
    assert shape.nbytes == 40 * (48 + 12 + 12 + 12)
    by_pool = WorkerPool(
        load, name, shape, range(3), positions, workers=2, slots=2, stall_seconds=60.0
    )
    local = LocalLoading(load, shape, range(3), positions)
    steps = 0
    for ours, theirs in zip(by_pool, local, strict=True):
        steps += 1
        assert set(ours.extra) == {"teacher_0/images", "teacher_0/zimg"}
        for array, expected in theirs.extra.items():
            np.testing.assert_array_equal(ours.extra[array], expected)
            assert ours.extra[array].dtype == expected.dtype
        np.testing.assert_array_equal(ours.images, theirs.images)
    assert steps == 3
    by_pool.close()
