"""ArrayRecord shards in object storage: read by ranges, decoded by the library, never copied."""

import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from flaxclip.data.sources.array_records import parts
from flaxclip.data.sources.array_records.array_record import ArrayRecordSource, encode_record
from flaxclip.data.sources.array_records.layout import BLOCK, LayoutError, footer_start, read_footer
from flaxclip.data.sources.array_records.parts import (
    TAILS,
    Tails,
    count_remote_records,
    fetch_tail,
    read_record,
)
from flaxclip.data.sources.runs import RUN_BYTES
from flaxclip.data.sources.source import UnreadableExampleError, reads_remotely
from flaxclip.data.storage.file_systems import version_of
from flaxclip.data.storage.range_cache import RangeCache
from flaxclip.data.storage.ranged_reads import Extent, fetch
from flaxclip.errors import InputError
from tests.helpers.full_disk import files_no_larger_than
from tests.helpers.metered_bucket import MeteredBucket

OURS = "group_size:1,uncompressed"
TFDS = "group_size:1"  # zstd


@pytest.fixture(autouse=True)
def fresh():
    MeteredBucket.forget()
    TAILS.__init__()


def write(path, records, options=OURS):
    writer = ArrayRecordWriter(str(path), options)
    for record in records:
        writer.write(record)
    writer.close()
    return f"metered://{path}"


def examples(count, size=3000, seed=0):
    rng = np.random.default_rng(seed)
    return [
        encode_record(f"{n}", rng.bytes(int(rng.integers(2 * size))), {"txt": f"text {seed} {n}"})
        for n in range(count)
    ]


def write_corpus(folder, counts=(50, 0, 30, 7), options=OURS):
    for shard, count in enumerate(counts):
        write(folder / f"{shard}.array_record", examples(count, seed=shard), options)
    pattern = f"{folder}/*.array_record"
    local = ArrayRecordSource(pattern, allow_empty_shards=True)
    return local, ArrayRecordSource(f"metered://{pattern}", allow_empty_shards=True)


@pytest.mark.parametrize(
    ("options", "count", "size"),
    [
        (OURS, 1, 10),
        (OURS, 300, 5000),
        (OURS, 5, 200_000),  # chunks of several blocks
        (OURS, 17_000, 20),  # a footer longer than what is read of it for the count
        (TFDS, 300, 5000),
        (TFDS, 2000, 20),
        ("group_size:3,uncompressed", 301, 3000),
        ("group_size:7,brotli:1", 300, 500),
        ("group_size:100,snappy", 33, 100),
        ("group_size:4,transpose,zstd:1", 301, 1000),
        ("group_size:1,uncompressed,pad_to_block_boundary:true", 20, 100),
    ],
)
def test_records_from_parts_are_those_of_the_file(tmp_path, options, count, size):
    rng = np.random.default_rng(1)
    records = [rng.bytes(int(rng.integers(2 * size))) for _ in range(count)]
    path = write(tmp_path / "a.array_record", records, options)
    version = version_of(path)
    assert count_remote_records(path, version) == count
    tail = fetch_tail(path, version, count)
    numbers = {0, count - 1, *rng.choice(count, min(count, 40), replace=False).tolist()}
    for number in numbers:
        chunk = fetch(Extent(path, *tail.footer.chunks(number, number + 1), version))
        assert read_record(tail, version.size, chunk, number) == records[number]
        # Those of a run hold each of its records'.
        last = min(number + 9, count)
        assert tail.footer.chunks(number, last) == (
            tail.footer.chunks(number, number + 1)[0],
            tail.footer.chunks(last - 1, last)[1],
        )


@pytest.mark.parametrize("options", [OURS, TFDS, "group_size:4,uncompressed"])
def test_a_source_in_a_bucket_is_that_on_disk(tmp_path, options):
    local, remote = write_corpus(tmp_path, options=options)
    assert (len(local), local.empty_shards) == (len(remote), remote.empty_shards) == (87, 1)
    for index in range(87):
        assert remote[index] == local[index]
        assert remote.fields(index) == local.fields(index)
        assert remote.name(index) == local.name(index)
    copy = pickle.loads(pickle.dumps(remote))
    assert copy[86] == local[86]
    assert [reads_remotely(source) for source in (local, remote)] == [False, True]


def test_what_opening_and_reading_a_shard_cost(tmp_path):
    path = write(tmp_path / "a.array_record", examples(2000))
    source = ArrayRecordSource(path)
    assert len(MeteredBucket.sizes) == 2
    assert sum(MeteredBucket.sizes) < 17_000
    MeteredBucket.forget()
    pairs = [source[0], source[1999]]
    tail, *each = MeteredBucket.sizes
    assert tail < 2 * BLOCK + 16 * 2000
    assert len(each) == 2
    assert sum(each) < sum(len(pair.image) for pair in pairs) + 500


def test_runs_of_neighbours_take_a_request_a_shard(tmp_path):
    local, remote = write_corpus(tmp_path)
    assert local.run_length is None
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert remote.run_length % 4 == 0
    assert RUN_BYTES <= remote.run_length * size / 87 < RUN_BYTES + 4 * size / 87
    for first, last, shards in ((0, 50, 1), (49, 51, 2), (3, 87, 3), (60, 61, 1)):
        assert len(remote.extents(first, last)) == shards
    remote.read_through(RangeCache(str(tmp_path / "cache"), 2**30), 20)
    MeteredBucket.forget()
    assert [remote[index] for index in range(87)] == [local[index] for index in range(87)]
    assert len(MeteredBucket.sizes) == 5 + 1  # runs, one of which lies in two shards
    with pytest.raises(IndexError):
        remote.extents(80, 88)


def flip(path, position):
    with open(path, "r+b") as file:
        file.seek(position)
        (byte,) = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ 1]))
    os.utime(path, (1, 1))  # as if nothing had been written


def test_a_flipped_bit_spoils_the_example_that_it_is_in(tmp_path):
    path = write(tmp_path / "a.array_record", examples(20))
    os.utime(tmp_path / "a.array_record", (1, 1))
    good = ArrayRecordSource(path).extents(7, 8)[0]
    flip(tmp_path / "a.array_record", (good.start + good.end) // 2)
    source = ArrayRecordSource(path)
    with pytest.raises(UnreadableExampleError, match=r"metered://.*/a.array_record: .*hash mism"):
        source[7]
    # Also if it is fetched with others.
    alone = {index: source[index] for index in range(20) if index != 7}
    source.read_through(RangeCache(str(tmp_path / "cache"), 2**30), 20)
    with pytest.raises(UnreadableExampleError, match=r"metered://.*/a.array_record: .*hash mism"):
        source[7]
    assert {index: source[index] for index in alone} == alone


def test_a_flipped_bit_of_the_footer_is_noticed(tmp_path):
    path = tmp_path / "a.array_record"
    write(path, examples(20, size=1000))
    data = path.read_bytes()
    start = footer_start(data[-BLOCK:], len(data))
    assert start < BLOCK - 500  # so that no block header, which nobody needs, is in it
    length = 40 + int.from_bytes(data[start + 8 : start + 16], "little")
    for position in range(start, start + length, 7):
        path.write_bytes(data)
        flip(path, position)
        TAILS.__init__()
        with pytest.raises((InputError, UnreadableExampleError), match=r"a\.array_record"):
            ArrayRecordSource(f"metered://{path}")[3]


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9, "unclosed", "junk", "small"])
def test_a_shard_that_is_not_whole_is_told(tmp_path, keep):
    path = tmp_path / "a.array_record"
    write(path, examples(100))
    data = path.read_bytes()
    match keep:
        case "unclosed":
            data = data[: footer_start(data[-BLOCK:], len(data))]
        case "junk":
            data = np.random.default_rng(0).bytes(len(data))
        case "small":
            data = data[:1000]
        case _:
            data = data[: int(keep * len(data))]
    path.write_bytes(data)
    expected = r"1 of 1 shards|empty" if keep == 0.0 else r"cannot read shard metered://.*cut off"
    with pytest.raises(InputError, match=expected):
        ArrayRecordSource(f"metered://{path}")
    with pytest.raises(InputError, match=r"cannot read shard metered://.*No such file"):
        ArrayRecordSource("metered:///none.array_record")


def test_random_footers_are_refused():
    rng = np.random.default_rng(0)
    head = bytes(16) + b"\x40" + bytes(7) + b"r" + bytes(15)
    for length in (0, 3, 30, 300, 3000):
        for data in (rng.bytes(length), head + rng.bytes(length), head + bytes(length)):
            with pytest.raises(LayoutError):
                read_footer(data, 100)
            with pytest.raises(LayoutError):
                footer_start(data, 2**20)


def test_a_shard_that_is_replaced_is_never_taken_for_what_was_counted(tmp_path):
    path = tmp_path / "a.array_record"
    url = write(path, [bytes(2)] * 20)
    os.utime(path, (1, 1))
    source, before = ArrayRecordSource(url), version_of(url)
    write(path, [b""] * 21)
    os.utime(path, (1, 1))
    assert version_of(url) == before
    with pytest.raises(UnreadableExampleError, match="has changed since its records were counted"):
        source[3]


def test_the_end_of_a_shard_is_fetched_once_whoever_asks(tmp_path):
    source = ArrayRecordSource(write(tmp_path / "a.array_record", examples(64)))
    MeteredBucket.forget()
    with ThreadPoolExecutor(32) as pool:
        pairs = list(pool.map(source.__getitem__, range(64)))
    assert pairs == [source[index] for index in range(64)]
    assert sum(size > BLOCK for size in MeteredBucket.sizes) == 1


def test_the_end_of_a_shard_is_fetched_once_for_all_processes_of_a_host(tmp_path):
    _, remote = write_corpus(tmp_path)
    remote.read_through(RangeCache(str(tmp_path / "cache"), 2**25), 10)
    expected = [remote[n] for n in range(len(remote))]
    copy = pickle.loads(pickle.dumps(remote))
    TAILS.__init__()  # as in another process
    MeteredBucket.forget()
    assert [copy[n] for n in range(len(copy))] == expected
    assert MeteredBucket.sizes == []


def test_the_end_of_a_shard_that_cannot_be_had_is_asked_for_again(tmp_path):
    path = write(tmp_path / "fails.array_record", examples(3))
    with pytest.raises(InputError, match=r"fails.array_record: refused by the bucket"):
        ArrayRecordSource(path)
    source = ArrayRecordSource(path)
    MeteredBucket.forget()
    with pytest.raises(UnreadableExampleError, match="refused by the bucket"):
        source[0]
    assert source[0].captions == ("text 0 0",)


def test_few_ends_of_shards_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "_KEPT_FOOTERS", 2)
    paths = [write(tmp_path / f"{n}.array_record", examples(2)) for n in range(3)]
    tails = Tails()

    def fetched(number):
        MeteredBucket.forget()
        tails.of(paths[number], version_of(paths[number]), 2)
        return len(MeteredBucket.sizes)

    assert [fetched(number) for number in (0, 1, 0, 2, 0, 1)] == [1, 1, 0, 1, 0, 1]


def test_a_footer_that_is_longer_than_expected_takes_another_request(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "_FOOTER_BYTES", 0)
    local, remote = write_corpus(tmp_path, (9000,))
    assert remote[8999] == local[8999]


def test_without_files_in_memory_the_disk_holds_the_parts(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    local, remote = write_corpus(tmp_path)
    assert remote[60] == local[60]


def test_no_room_for_the_parts_ends_the_run(tmp_path):
    source = ArrayRecordSource(write(tmp_path / "a.array_record", examples(3)))
    with files_no_larger_than(100_000), pytest.raises(InputError, match="no room for parts"):
        source[0]
