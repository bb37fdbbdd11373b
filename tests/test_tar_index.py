"""The index of tar shards: stored, found, completed, shared by hosts; headers walked remotely."""

import io
import json
import os
import pathlib
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import fsspec
import pytest

from flaxclip.data.index.make_index import make_index
from flaxclip.data.sources.corpus import CorpusConfig, open_corpus
from flaxclip.data.sources.tars import remote_headers
from flaxclip.data.sources.tars.index import index_sharing, shard_scans, shard_versions, tar_index
from flaxclip.data.sources.tars.index.index_folder import IndexFolder
from flaxclip.data.sources.tars.index.index_sharing import IndexSharing
from flaxclip.data.sources.tars.index.index_table import Table
from flaxclip.data.sources.tars.index.shard_versions import versions_of_all
from flaxclip.data.sources.tars.remote_headers import Link
from flaxclip.data.sources.tars.tar_scan import scan_shard
from flaxclip.data.sources.tars.webdataset import WebDatasetSource
from flaxclip.data.storage.file_systems import version_of
from flaxclip.data.storage.repeated_requests import StorageAwayError
from flaxclip.errors import InputError
from flaxclip.exit_codes import PreemptedError
from tests.helpers import counted_bucket
from tests.helpers.counted_bucket import CountedBucket, requests
from tests.helpers.image_tars import jpeg, write_shard

ROOT = pathlib.Path(__file__).parents[1]
SHARDS, PAIRS = 6, 5


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> pathlib.Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("REQUESTS", str(tmp_path / "requests"))
    return tmp_path / "cache"


@pytest.fixture
def corpus(tmp_path) -> pathlib.Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for shard in range(SHARDS):
        write(folder / f"{shard}.tar", shard * PAIRS)
    return folder


def write(path, first, pairs=PAIRS):
    names = range(first, first + pairs)
    write_shard(path, {f"{name:03}": (jpeg(name), f"caption {name}") for name in names})


def names_and_captions(source):
    return [(source.name(n), *source[n].captions) for n in range(len(source))]


def expected(shards=range(SHARDS)):
    return [
        (f"{shard}.tar/{name:03}", f"caption {name}")
        for shard in shards
        for name in range(shard * PAIRS, shard * PAIRS + PAIRS)
    ]


@pytest.fixture
def scanned(monkeypatch) -> list[str]:
    """Names of the shards that are scanned in this process."""
    scanned = []

    def scan(path, version=None):
        scanned.append(os.path.basename(path))
        return scan_shard(path, version)

    monkeypatch.setattr(shard_scans, "scan_shard", scan)
    return scanned


def test_an_index_beside_the_shards_is_found_and_no_shard_is_scanned(corpus, scanned):
    made = make_index([f"{corpus}/*.tar"], None, workers=1)
    assert made == (f"{corpus}/flaxclip_index", SHARDS, SHARDS, SHARDS * PAIRS)
    assert "30 pairs in 6 shards, 6 of which were read" in made.summary()
    scanned.clear()
    source = WebDatasetSource(f"{corpus}/*.tar")
    assert names_and_captions(source) == expected()
    # Some of the shards, and others of another name.
    assert names_and_captions(WebDatasetSource(f"{corpus}/{{2,4}}.tar")) == expected([2, 4])
    assert scanned == []
    # It may be deleted while it is in use, as it may be while it is not.
    shutil.rmtree(corpus / "flaxclip_index")
    assert names_and_captions(pickle.loads(pickle.dumps(source))) == expected()


def test_an_index_in_object_storage_is_read_by_ranges(corpus, scanned, tmp_path, monkeypatch):
    pattern, out = f"counted://{corpus}/*.tar", f"counted://{tmp_path}/index"
    assert make_index([pattern], out, workers=1).folder == out
    scanned.clear()
    before = len(requests())
    monkeypatch.setattr("flaxclip.data.sources.tars.index.build_index._COPIED_BYTES", 0)
    monkeypatch.setattr(tar_index, "_BLOCK", 100)  # bytes, so that pairs lie in several
    source = open_corpus(CorpusConfig((pattern,), index=out), 16)
    assert len(requests()) == before  # no byte of the shards
    assert [source.name(n) for n in range(len(source))] == [name for name, _ in expected()]
    assert names_and_captions(pickle.loads(pickle.dumps(source))) == expected()
    assert scanned == []
    entries = source._index.entries(3, 17)
    assert entries["shard"].tolist() == [0] * 2 + [1] * 5 + [2] * 5 + [3] * 2
    assert entries.tolist() == [source._index.entry(n).tolist() for n in range(3, 17)]
    with pytest.raises(IndexError):
        source._index.entries(20, len(source) + 1)


def test_an_index_that_is_named_must_be_there(corpus, tmp_path):
    with pytest.raises(InputError, match=r"no index of shards in .*/none: there is.*\nmake"):
        open_corpus(CorpusConfig((f"{corpus}/*.tar",), index=f"{tmp_path}/none"), 16)
    with pytest.raises(InputError, match=r"data.index is of tars, and scenes is none"):
        open_corpus(CorpusConfig(index="x"), 16)


def test_an_index_that_cannot_be_written_is_told(corpus, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"cannot write the index to .*file/x.*\n.*--out"):
        make_index([f"{corpus}/*.tar"], f"{tmp_path}/file/x", workers=1)


def test_a_changed_shard_alone_is_scanned_again_and_named(corpus, scanned, caplog):
    make_index([f"{corpus}/*.tar"], None, workers=1)
    write(corpus / "3.tar", 15)
    os.utime(corpus / "3.tar", ns=(1, 1))  # as many bytes, another time
    scanned.clear()
    assert names_and_captions(WebDatasetSource(f"{corpus}/*.tar")) == expected()
    assert scanned == ["3.tar"]
    assert "1 of 6 shards are not in the state that they were indexed in: first" in caplog.text
    assert "3.tar" in caplog.text
    assert make_index([f"{corpus}/*.tar"], None, workers=1).scanned == 1
    write(corpus / "6.tar", 30)
    assert make_index([f"{corpus}/6.tar"], None, workers=1)[1:] == (1, 1, PAIRS)
    # Those that were not named are still known.
    assert make_index([f"{corpus}/*.tar"], None, workers=1)[1:] == (7, 0, 7 * PAIRS)


def test_a_copied_corpus_is_scanned_again_unless_it_is_said_to_be_a_copy(corpus, tmp_path, scanned):
    make_index([f"{corpus}/*.tar"], None, workers=1)
    copy = tmp_path / "copy"
    shutil.copytree(corpus, copy, copy_function=shutil.copyfile)  # without times
    scanned.clear()
    assert names_and_captions(WebDatasetSource(f"{copy}/*.tar")) == expected()
    assert len(scanned) == SHARDS
    damaged = (copy / "2.tar").read_bytes()
    write(copy / "2.tar", 12)  # other keys
    assert len((copy / "2.tar").read_bytes()) == len(damaged)
    scanned.clear()
    assert make_index([f"{copy}/*.tar"], None, workers=1, copied=True).scanned == 1
    assert scanned == ["2.tar"]
    shutil.rmtree(tmp_path / "cache")
    scanned.clear()
    source = WebDatasetSource(f"{copy}/*.tar")
    assert source.name(10) == "2.tar/012"
    assert names_and_captions(source)[:10] == expected([0, 1])
    assert scanned == []


def test_a_corpus_that_moves_with_times_takes_its_index_along(corpus, tmp_path, scanned):
    make_index([f"{corpus}/*.tar"], None, workers=1)
    corpus.rename(tmp_path / "elsewhere")
    scanned.clear()
    assert names_and_captions(WebDatasetSource(f"{tmp_path}/elsewhere/*.tar")) == expected()
    assert make_index([f"{tmp_path}/elsewhere/*.tar"], None, workers=1).scanned == 0
    assert scanned == []


@pytest.mark.parametrize("file", ["table", "piece", "piece's table"])
@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "flipped", "other"])
def test_a_damaged_index_never_gives_wrong_pairs(corpus, cache, file, damage):
    make_index([f"{corpus}/*.tar"], None, workers=1)
    pieces = list((corpus / "flaxclip_index/pieces").iterdir())
    tables = [path for path in pieces if path.suffix == ".table"]
    (piece,) = set(pieces) - set(tables)
    path = {"table": corpus / "flaxclip_index/table", "piece": piece, "piece's table": tables[0]}[
        file
    ]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    changed = {"cut": data[:-1], "empty": b"", "flipped": data, "other": b"x" * len(data)}
    path.unlink() if damage == "gone" else path.write_bytes(changed[damage])
    if file == "piece" and damage in ("flipped", "other"):
        with pytest.raises(InputError, match=r"index of the shards is damaged: .*pieces.*\ndelete"):
            WebDatasetSource(f"{corpus}/*.tar")
        path.unlink()
    assert names_and_captions(WebDatasetSource(f"{corpus}/*.tar")) == expected()
    make_index([f"{corpus}/*.tar"], None, workers=1)
    shutil.rmtree(cache)
    assert names_and_captions(WebDatasetSource(f"{corpus}/*.tar")) == expected()


def test_entries_that_cannot_be_are_refused(corpus, cache):
    source = WebDatasetSource(f"{corpus}/*.tar")
    (piece,) = (p for p in cache.rglob("pieces/*") if p.suffix != ".table")
    data = bytearray(piece.read_bytes())
    data[4 + 7] = 1  # the highest byte of an offset
    piece.write_bytes(data)
    with pytest.raises(InputError, match="index of the shards is damaged"):
        source[0]
    assert source[1].captions == ("caption 1",)


def test_an_index_of_an_earlier_build_is_not_read(corpus, cache):
    table = IndexFolder(str(corpus / "flaxclip_index"))
    make_index([f"{corpus}/*.tar"], None, workers=1)
    path = pathlib.Path(table.place("table"))
    path.write_bytes(path.read_bytes().replace(b"tars 003", b"tars 002", 1))
    with pytest.raises(ValueError, match="another version of flaxclip"):
        Table.from_bytes(path.read_bytes())
    assert names_and_captions(WebDatasetSource(f"{corpus}/*.tar")) == expected()


def command(*args, setup="", **env):
    program = (
        "import sys\n"
        "from flaxclip.data.index.__main__ import main\n"
        "from flaxclip.data.sources.tars.index import shard_scans\n"
        "import tests.helpers.counted_bucket\n"
        f"{setup}\n"
        "main()\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
    )


def test_an_indexing_that_is_killed_goes_on_where_it_was(corpus, tmp_path):
    shard = corpus / "4.tar"
    whole = shard.read_bytes()
    shard.unlink()
    os.mkfifo(shard)  # reading it takes for ever
    process = command(f"{corpus}/*.tar", setup="shard_scans._PIECE_SECONDS = 0")
    pieces = corpus / "flaxclip_index/pieces"
    deadline = time.monotonic() + 300
    while len(list(pieces.glob("*.table"))) < 4:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (corpus / "flaxclip_index/table").exists()
    shard.unlink()
    shard.write_bytes(whole)
    stdout, stderr = command(f"{corpus}/*.tar").communicate()
    assert (stdout, stderr) == (
        f"30 pairs in 6 shards, 2 of which were read: {corpus}/flaxclip_index\n",
        "",
    )
    assert names_and_captions(WebDatasetSource(f"{corpus}/*.tar")) == expected()


def test_the_command_names_what_is_wrong(corpus, tmp_path):
    (corpus / "2.tar").write_bytes(b"no tar")
    process = command(f"{corpus}/*.tar")
    assert "flaxclip.data.index: not a tar: " in process.communicate()[1]
    assert process.returncode == 2


HOST = """
import sys
from flaxclip.data.sources.tars.index import index_sharing
from flaxclip.data.sources.tars.index.index_sharing import IndexSharing
from flaxclip.data.sources.tars.webdataset import WebDatasetSource
from flaxclip.exit_codes import PreemptedError
import tests.helpers.counted_bucket
index_sharing._SECONDS_BETWEEN_LOOKS = 0.05
index_sharing._SECONDS_BETWEEN_NOTES = 0.2
pattern, folder, host, hosts, silence, old_error = sys.argv[1:]
index_sharing._SILENCE, index_sharing._OLD_ERROR = float(silence), float(old_error)
sharing = IndexSharing(folder, int(host), int(hosts))
try:
    source = WebDatasetSource(pattern, sharing=sharing)
except ValueError as error:
    print(error)
except PreemptedError as error:
    print("preempted:", error)
else:
    print([source.name(n) for n in range(len(source))])
"""


def start_host(tmp_path, pattern, host, hosts, silence=60.0, old_error=60.0):
    arguments = (pattern, f"counted://{tmp_path}/shared", host, hosts, silence, old_error)
    return subprocess.Popen(
        [sys.executable, "-c", HOST, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": f"{tmp_path}/{host}"},
    )


def test_hosts_read_each_shard_once_together(corpus, tmp_path):
    pattern = f"counted://{corpus}/*.tar"
    names = str([name for name, _ in expected()]) + "\n"
    hosts = [start_host(tmp_path, pattern, host, 3) for host in range(3)]
    assert [host.communicate()[0] for host in hosts] == [names] * 3
    read = requests()
    assert sorted({(pid, name) for pid, _, name in read}) == sorted(
        (host.pid, f"{shard}.tar") for host in hosts for shard in range(hosts.index(host), 6, 3)
    )
    total = sum(path.stat().st_size for path in corpus.glob("*.tar"))
    for host in hosts:
        assert sum(size for pid, size, _ in read if pid == host.pid) <= 1.1 / 3 * total
    # Host 1 has lost what it had; the others have theirs, and there is a new folder.
    shutil.rmtree(tmp_path / "shared")
    shutil.rmtree(tmp_path / "1")
    hosts = [start_host(tmp_path, pattern, host, 3) for host in range(3)]
    assert [host.communicate()[0] for host in hosts] == [names] * 3
    assert {(pid, name) for pid, _, name in requests()[len(read) :]} == {
        (hosts[1].pid, "1.tar"),
        (hosts[1].pid, "4.tar"),
    }


def test_hosts_with_copies_of_their_own_do_not_wait_for_each_other(corpus, tmp_path):
    names = str([name for name, _ in expected()]) + "\n"
    assert start_host(tmp_path, f"{corpus}/*.tar", 1, 2).communicate()[0] == names


def test_versions_of_many_shards_come_from_a_listing(corpus, monkeypatch):
    for number in range(10, 80):
        (corpus / f"{number}.tar").write_bytes(b"x" * number)
    paths = [f"counted://{path}" for path in sorted(corpus.glob("*.tar"))]
    expected = [version_of(path) for path in paths]
    asked = []
    monkeypatch.setattr(
        shard_versions, "version_of", lambda path: asked.append(path) or version_of(path)
    )
    assert versions_of_all(paths) == expected
    assert asked == paths[:1]
    with pytest.raises(InputError, match=r"1 of 77 shards do not exist\nfirst: .*/none.tar"):
        versions_of_all([*paths, f"counted://{corpus}/none.tar"])


class ListedByParts(CountedBucket):
    """Lists files whose names begin with something, in all folders below, and keeps what it has."""

    protocol = "parts"
    listings: list[tuple[str, int]]
    forgotten = 0

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(os.fspath(path).removeprefix("parts://"))

    def find(self, path, maxdepth=None, withdirs=False, detail=False, prefix="", **kwargs):
        root = pathlib.Path(self._strip_protocol(path))
        found = [str(file) for file in root.rglob("*") if file.is_file()]
        found = [name for name in found if name.startswith(f"{root}/{prefix}")]
        self.listings.append((prefix, len(found)))
        return {name: self.info(name) for name in found}

    def ls(self, *args, **kwargs):
        raise AssertionError("a whole folder is listed")

    def invalidate_cache(self, path=None):
        ListedByParts.forgotten += 1


def test_many_shards_are_listed_by_parts_of_few(corpus, monkeypatch):
    fsspec.register_implementation("parts", ListedByParts, clobber=True)
    monkeypatch.setattr(shard_versions, "_IN_LISTING", 10)
    monkeypatch.setattr(ListedByParts, "listings", [], raising=False)
    for number in range(10, 80):
        (corpus / f"{number}.tar").write_bytes(b"x" * number)
    (corpus / "60").mkdir()
    (corpus / "60" / "2.tar").write_bytes(b"of the same name as another shard")
    paths = [f"parts://{path}" for path in sorted(corpus.glob("*.tar"))]
    expected = [version_of(path) for path in paths]
    before = ListedByParts.forgotten
    monkeypatch.setattr(shard_versions, "version_of", lambda path: expected[paths.index(path)])
    assert versions_of_all(paths) == expected
    prefixes, found = zip(*ListedByParts.listings, strict=True)
    assert {"0", "1.", "10", "19", "6", "7"} < set(prefixes)
    assert max(found) == 11  # 60.tar to 69.tar, and what is in the folder
    assert sum(found) == 77
    assert ListedByParts.forgotten > before


def test_a_host_that_dies_is_named_and_what_was_done_stays(corpus, tmp_path):
    pattern = f"counted://{corpus}/*.tar"
    first = start_host(tmp_path, pattern, 0, 2, silence=1.5)
    output = first.communicate()[0]
    assert output.startswith(
        "preempted: host 1 of 2 has not indexed its shards: host 1: no word yet, nothing heard"
    )
    done = len(requests())
    hosts = [start_host(tmp_path, pattern, host, 2) for host in range(2)]
    names = str([name for name, _ in expected()]) + "\n"
    assert [host.communicate()[0] for host in hosts] == [names] * 2
    assert {pid for pid, _, _ in requests()[done:]} == {hosts[1].pid}


def test_an_error_of_one_host_ends_all_and_is_withdrawn_by_its_next_start(corpus, tmp_path):
    pattern, whole = f"counted://{corpus}/*.tar", (corpus / "3.tar").read_bytes()
    os.utime(corpus / "3.tar", ns=(1, 1))
    (corpus / "3.tar").write_bytes(whole[:7000])
    hosts = [start_host(tmp_path, pattern, host, 2, old_error=0) for host in range(2)]
    other, own = (host.communicate()[0] for host in hosts)
    assert own.startswith("truncated or damaged tar: counted://")
    assert other.startswith("host 1 of 2 could not index its shards\ntruncated or damaged tar")
    (corpus / "3.tar").write_bytes(whole)
    hosts = [start_host(tmp_path, pattern, host, 2) for host in range(2)]
    names = str([name for name, _ in expected()]) + "\n"
    assert [host.communicate()[0] for host in hosts] == [names] * 2


@pytest.mark.parametrize(
    ("error", "others_raise"),
    [(StorageAwayError("away"), PreemptedError), (InputError("no tar"), InputError)],
)
def test_hosts_end_as_the_one_that_failed(corpus, tmp_path, monkeypatch, error, others_raise):
    monkeypatch.setattr(index_sharing, "_OLD_ERROR", -1.0)  # at once

    def fail(path, version=None):
        raise error

    monkeypatch.setattr(shard_scans, "scan_shard", fail)
    paths = [str(path) for path in sorted(corpus.glob("*.tar"))]
    versions = [version_of(path) for path in paths]
    own = IndexFolder(str(tmp_path / "own"))
    sharing = IndexSharing(str(tmp_path / "shared"), 1, 2)
    with pytest.raises(type(error)):
        index_sharing.share_table([], paths, versions, own, sharing)
    (shared,) = (tmp_path / "shared").iterdir()
    others = index_sharing._OtherHosts(IndexFolder(str(shared)))
    with pytest.raises(others_raise, match=rf"host 1 of 2 could not .*\n{error}"):
        others.check([1], sharing._replace(host=0))


class Clock:
    """In place of the module `time`: passes only where somebody sleeps."""

    def __init__(self):
        self._now = 0.0

    def monotonic(self):
        return self._now

    def sleep(self, seconds):
        self._now += seconds


def test_a_note_of_an_earlier_start_is_no_error_of_this_one(corpus, tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(index_sharing, "time", clock)
    folder = IndexFolder(str(tmp_path))
    (tmp_path / "hosts").mkdir()
    note = {"done": 1, "of": 2, "error": "no tar"}
    (tmp_path / "hosts/1.json").write_text(json.dumps(note))
    others, sharing = index_sharing._OtherHosts(folder), IndexSharing("", 0, 2)
    others.check([1], sharing)
    (tmp_path / "hosts/1.json").write_text(json.dumps({**note, "error": None}))
    others.check([1], sharing)
    assert others.describe(1) == "host 1: 1 of 2 shards"
    (tmp_path / "hosts/1.json").write_text(json.dumps({**note, "time": 2}))
    with pytest.raises(InputError, match=r"host 1 of 2 could not index its shards\nno tar"):
        others.check([1], sharing)
    later = index_sharing._OtherHosts(folder)
    later.check([1], sharing)
    clock.sleep(index_sharing._OLD_ERROR)
    later.check([1], sharing)
    clock.sleep(0.1)
    with pytest.raises(InputError, match="no tar"):  # nobody has withdrawn it
        later.check([1], sharing)


def big_tar(path, pairs, image_bytes):
    with tarfile.open(path, "w") as tar:
        for number in range(pairs):
            # The second name is too long for a header, and comes in one of its own.
            name = f"{number:09}" if number != 1 else "long" * 30
            for suffix, size in (("jpg", image_bytes), ("json", 300), ("txt", 40)):
                info = tarfile.TarInfo(f"{name}.{suffix}")
                info.size = size
                tar.addfile(info, io.BytesIO(b"x" * size))
    return path


@pytest.mark.parametrize(
    ("image_bytes", "bandwidth", "skips"),
    [(500_000, 4e6, True), (500_000, 2e9, False), (5_000, 4e6, False)],
)
def test_headers_are_walked_by_the_cheaper_way(
    tmp_path, monkeypatch, image_bytes, bandwidth, skips
):
    path = big_tar(tmp_path / "a.tar", 20 if image_bytes > 10**5 else 400, image_bytes)
    clock = Clock()
    monkeypatch.setattr(CountedBucket, "latency", 0.04)
    monkeypatch.setattr(CountedBucket, "bandwidth", bandwidth)
    monkeypatch.setattr(remote_headers, "LINK", Link())
    for module in (counted_bucket, remote_headers):
        monkeypatch.setattr(module, "time", clock)
    scan = scan_shard(f"counted://{path}")
    expected = scan_shard(str(path))
    assert (scan.entries == expected.entries).all()
    assert scan[1:] == expected[1:]
    read, size = sum(size for _, size, _ in requests()), path.stat().st_size
    if skips:
        assert read < 0.35 * size
        assert len(requests()) <= 20 + 3
    else:
        # Each byte at most once; a chunk may end in data, whose rest is left out.
        assert 0.9 * size < read <= size
        assert len(requests()) <= 2 + size / 2**20


def test_latency_and_bandwidth_are_measured():
    link = Link()
    assert not link.skips_pay(1e12)  # nothing is known
    link.measured(2**16, 0.05)
    link.measured(2**20, 0.05 + 2**20 / 1e8)
    assert link.latency == pytest.approx(0.05)
    assert link.bandwidth == pytest.approx(1e8)
    # 0.05 s and 16 KiB against the distance, at 100 MB/s.
    assert [link.skips_pay(distance) for distance in (5.0e6, 5.1e6)] == [False, True]
    assert link.chunk() == 2**25
    for _ in range(50):
        link.measured(2**14, 0.001)
    assert link.skips_pay(2e5)
    assert link.chunk() == 2**20


def test_a_server_that_ignores_ranges_is_told(corpus, monkeypatch):
    # Larger than what is read at first.
    write(corpus / "0.tar", 0, 200)
    monkeypatch.setattr(CountedBucket, "ignores_ranges", True)
    with pytest.raises(InputError, match=r"the server ignores ranges: 65,536 bytes of counted://"):
        WebDatasetSource(f"counted://{corpus}/0.tar")


def test_a_tar_that_is_cut_while_it_is_walked_is_told(corpus):
    path = f"counted://{corpus}/0.tar"
    version = version_of(path)
    with open(corpus / "0.tar", "r+b") as file:
        file.truncate(3000)
    assert "has changed since it was indexed" in str(scan_shard(path, version))
