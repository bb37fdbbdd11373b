import contextlib
import gzip
import io
import json
import logging
import multiprocessing
import os
import pathlib
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import PIL.Image
import pytest

from flaxclip.data.sources.source import Pair, UnreadableExampleError
from flaxclip.data.sources.tars import scan_processes
from flaxclip.data.sources.tars.index import shard_scans
from flaxclip.data.sources.tars.tar_scan import COUNTS
from flaxclip.data.sources.tars.webdataset import WebDatasetSource
from flaxclip.errors import InputError
from tests.helpers.left_open import nothing_left_open


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> pathlib.Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "flaxclip" / "tar_index"


def _image(number: int, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    colour = (number * 37 % 256, number * 91 % 256, 60)
    PIL.Image.new("RGB", (8, 6), colour).save(file, kind)
    return file.getvalue()


def _tar(path: pathlib.Path, members: list[tuple[str, bytes]], **options) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def _members(start: int, stop: int) -> list[tuple[str, bytes]]:
    """As img2dataset writes them: image, metadata, caption."""
    return [
        member
        for number in range(start, stop)
        for member in (
            (f"{number:09d}.jpg", _image(number)),
            (f"{number:09d}.json", json.dumps({"caption": f"json {number}"}).encode()),
            (f"{number:09d}.txt", f"caption {number}".encode()),
        )
    ]


@pytest.fixture
def shards(tmp_path) -> pathlib.Path:
    """Three shards of four examples."""
    for shard in range(3):
        _tar(tmp_path / f"shards/{shard:05d}.tar", _members(4 * shard, 4 * shard + 4))
    return tmp_path / "shards"


def _as_list(source: WebDatasetSource) -> list[tuple[str, bytes, str]]:
    return [
        (source.name(index), source[index].image, *source[index].captions)
        for index in range(len(source))
    ]


def test_examples_are_read_as_stored_in_the_order_of_shards_and_members(shards):
    source = WebDatasetSource(str(shards / "{00000..00002}.tar"))
    assert _as_list(source) == [
        (f"{n // 4:05d}.tar/{n:09d}", _image(n), f"caption {n}") for n in range(12)
    ]


def test_brace_pattern_glob_and_list_in_any_order_give_the_same_source(shards, monkeypatch):
    monkeypatch.chdir(shards)
    expected = _as_list(WebDatasetSource(str(shards / "{00000..00002}.tar")))
    for pattern in (
        "*.tar",
        "0000{2,0,1}.tar",
        [str(shards / f"{n:05d}.tar") for n in (2, 1, 0)],
        ["00001.tar", "0000[02].tar"],
    ):
        assert _as_list(WebDatasetSource(pattern)) == expected


def test_names_hold_the_folder_where_shards_are_in_several(tmp_path):
    for corpus in "ab":
        _tar(tmp_path / corpus / "00000.tar", _members(0, 1))
    source = WebDatasetSource(str(tmp_path / "*" / "*.tar"))
    assert [source.name(0), source.name(1)] == [
        "a/00000.tar/000000000",
        "b/00000.tar/000000000",
    ]


def test_every_image_extension_and_both_kinds_of_caption(tmp_path):
    kinds = {"jpg": "JPEG", "jpeg": "JPEG", "PNG": "PNG", "webp": "WEBP"}
    members = []
    for number, (extension, kind) in enumerate(kinds.items()):
        members += [(f"{number}.{extension}", _image(number, kind))]
        members += [(f"{number}.json", json.dumps({"caption": f"json {number} é"}).encode())]
    members += [("both.jpg", _image(9)), ("both.txt", "té".encode()), ("both.json", b"broken")]
    source = WebDatasetSource(str(_tar(tmp_path / "a.tar", members)))
    assert [source[n].captions[0] for n in range(4)] == [f"json {n} é" for n in range(4)]
    assert [source[n].image for n in range(4)] == [
        _image(n, kind) for n, kind in enumerate(kinds.values())
    ]
    assert source[4].captions[0] == "té"  # .txt wins, whatever the .json holds


def test_members_of_an_example_need_not_be_neighbours(tmp_path):
    members = sorted(_members(0, 5), key=lambda member: member[0].split(".")[1])
    source = WebDatasetSource(str(_tar(tmp_path / "a.tar", members)))
    assert [source[n].captions[0] for n in range(5)] == [f"caption {n}" for n in range(5)]


def test_keys_end_at_the_first_dot_of_the_base_name_as_in_webdataset(tmp_path):
    long = "folder.with.dots/" + "x" * 150
    members = [
        (f"{long}.jpg", _image(0)),
        (f"{long}.txt", b"long"),
        ("ключ.jpg", _image(1)),
        ("ключ.txt", b"not ASCII"),
        ("a.v2.jpg", _image(2)),  # extension v2.jpg: no image
        ("a.txt", b"lonely"),
        ("._mac.jpg", _image(3)),  # macOS' resource forks have no key
        ("._mac.txt", b"hidden"),
    ]
    for tar_format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        path = _tar(tmp_path / f"{tar_format}.tar", members, format=tar_format)
        source = WebDatasetSource(str(path))
        assert [source.name(n) for n in range(len(source))] == [
            f"{tar_format}.tar/{long}",
            f"{tar_format}.tar/ключ",
        ]
        assert source[0] == Pair(_image(0), ("long",))
        assert source[1] == Pair(_image(1), ("not ASCII",))
        assert source.shards["captions_without_image"].tolist() == [1]


def test_what_is_no_pair_is_counted_for_each_shard_and_logged(tmp_path, caplog):
    _tar(tmp_path / "0.tar", _members(0, 3))
    odd = [
        ("alone.jpg", _image(0)),
        ("mute.txt", b"no image"),
        ("deaf.json", b"{}"),
        ("two.jpg", _image(1)),
        ("two.png", _image(2, "PNG")),
        ("two.txt", b"two images"),
        ("again.jpg", _image(3)),
        ("again.txt", b"first"),
        ("again.jpg", _image(4)),
        ("again.txt", b"second"),
        ("label.cls", b"7"),
    ]
    _tar(tmp_path / "1.tar", odd)
    with caplog.at_level(logging.INFO, "flaxclip"):
        source = WebDatasetSource(str(tmp_path / "*.tar"))
    assert {name: source.shards[name].tolist() for name in COUNTS} == {
        "pairs": [3, 3],
        "images_without_caption": [0, 1],
        "captions_without_image": [0, 2],
        "extra_images": [0, 1],
        "repeated_keys": [0, 1],
    }
    assert [source[n] for n in (3, 4, 5)] == [
        Pair(_image(1), ("two images",)),
        Pair(_image(3), ("first",)),
        Pair(_image(4), ("second",)),
    ]
    assert caplog.messages[-1] == (
        "6 pairs in 2 shards; 1 images without caption, 2 captions without image, "
        "1 extra images, 1 repeated keys (most in 1.tar)"
    )
    assert caplog.records[-1].levelno == logging.WARNING


def test_members_that_are_no_part_of_a_pair_are_counted_by_reason(tmp_path, caplog):
    _tar(tmp_path / "0.tar", _members(0, 2))
    path = _tar(tmp_path / "1.tar", _members(2, 3))
    with tarfile.open(path, "a") as tar:
        for name, kind in (
            ("hard.jpg", tarfile.LNKTYPE),
            ("hard.txt", tarfile.LNKTYPE),
            ("soft.jpg", tarfile.SYMTYPE),
            ("folder.jpg", tarfile.DIRTYPE),
            ("images", tarfile.DIRTYPE),  # as in any tar of a folder: nothing to tell
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "000000002.jpg"
            tar.addfile(info)
        for name in (
            *("photo.v2.jpg", "photo.v2.txt", "photo.v2.json", "./2024.05.01-cat.jpg"),
            *("._a.jpg", "__MACOSX/._b.jpg", "__MACOSX/b.txt", "x/PaxHeaders.7/c.jpg", ".d.txt"),
            *("Makefile", "notes.v2.md", "jpg"),
        ):
            info = tarfile.TarInfo(name)
            info.size = 2
            tar.addfile(info, io.BytesIO(b"{}"))
    with caplog.at_level(logging.INFO, "flaxclip"):
        source = WebDatasetSource(str(tmp_path / "*.tar"))
    assert len(source) == 3
    assert source.left_out == {
        "leftovers_of_other_programs": 5,
        "names_with_further_dots": 2,  # an image and its texts are one
        "hard_links": 2,
        "symbolic_links": 1,
        "special_files": 1,
    }
    assert source.shards["names_with_further_dots"].tolist() == [0, 2]
    assert caplog.messages[-1] == (
        "3 pairs in 2 shards; 5 leftovers of other programs, 2 names with further dots, "
        "2 hard links, 1 symbolic links, 1 special files (most in 1.tar)"
    )
    assert caplog.records[-1].levelno == logging.WARNING


def test_sparse_members_whose_data_is_not_in_one_piece_are_left_out(tmp_path):
    path = _tar(tmp_path / "0.tar", _members(0, 1))
    with tarfile.open(path, "a") as tar:
        holes = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "4096"}
        info = tarfile.TarInfo("sparse.jpg")
        info.pax_headers = holes | {"GNU.sparse.name": "sparse.jpg"}
        data = b"1\n2048\n2048\n".ljust(512, b"\0") + b"x" * 2048
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
        info = tarfile.TarInfo("sparse.txt")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    source = WebDatasetSource(str(path))
    assert source.left_out == {"captions_without_image": 1, "special_files": 1}


@pytest.mark.parametrize(
    ("member", "data", "reason"),
    [
        ("0.txt", b"caf\xe9", "not UTF-8"),
        ("0.txt", b"", "empty caption"),
        ("0.txt", b" \n\t", "empty caption"),
        ("0.json", b'{"caption": "cut', "broken JSON"),
        ("0.json", b"\xff\xfe", "not UTF-8"),
        ("0.json", b"[" * 200_000, "broken JSON"),
        ("0.json", b'{"caption": ""}', "empty caption"),
        ("0.json", b'{"caption": null}', "empty caption"),
        ("0.json", b'{"caption": 7}', "'caption' holds int 7, not a text"),
        ("0.json", b'{"text": "a cat"}', "no text under 'txt' or 'caption'; it has: text"),
        ("0.json", b'["a cat"]', r"JSON holds list \['a cat'\], not an object"),
        ("0.json", b'{"caption": "\\ud83d"}', "surrogate"),
    ],
)
def test_a_bad_caption_makes_its_example_unreadable_and_no_other(tmp_path, member, data, reason):
    members = [("0.jpg", _image(0)), (member, data), ("1.jpg", _image(1)), ("1.txt", b"fine")]
    source = WebDatasetSource(str(_tar(tmp_path / "a.tar", members)))
    assert len(source) == 2
    with pytest.raises(UnreadableExampleError, match=reason):
        source[0]
    assert source[1].captions[0] == "fine"
    assert source.name(0) == "a.tar/0"


def test_positions_outside_the_source_are_index_errors(shards):
    source = WebDatasetSource(str(shards / "*.tar"))
    assert source[np.int64(11)].captions[0] == "caption 11"
    for index in (-1, 12):
        with pytest.raises(IndexError, match=f"example {index} of 12"):
            source[index]


def _cut(size: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:size]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut(512 + 100), "byte 612, after 0 members: in 0.png, which ends at 1,024"),
        (_cut(2048 + 100), "byte 2,048, after 2 members: no end-of-archive mark"),
        (_cut(4096), "byte 4,096, after 4 members: no end-of-archive mark"),
        (lambda data: data[:2048] + b"\x07" * 512 + data[2560:], "after 2 members: a bad header"),
        (lambda _: b"<!DOCTYPE html>" * 100, "not a tar: a.tar\n.*starts with b'<!DOCTYPE"),
        (lambda _: b"", r"the only shard is empty\na.tar \(0 bytes\)\nfetch"),
        (gzip.compress, "not a tar: a.tar\n.*compressed by gzip. Random access needs plain tars"),
        (lambda data: data + data, "data after the end of the archive in a.tar"),
    ],
    ids=["data", "end", "middle", "bad header", "HTML", "empty", "gzip", "concatenated"],
)
def test_a_broken_tar_is_refused_with_the_place(tmp_path, monkeypatch, damage, message):
    monkeypatch.chdir(tmp_path)
    small = [("0.png", _image(0, "PNG")), ("0.txt", b"0"), ("1.png", b"1"), ("1.txt", b"1")]
    path = _tar(tmp_path / "a.tar", small)  # a header and one block each
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=message):
        WebDatasetSource("a.tar")


def test_every_cut_of_a_tar_is_refused(tmp_path):
    path = _tar(tmp_path / "a.tar", _members(0, 2))
    whole = path.read_bytes()
    needed = len(whole.rstrip(b"\0")) // 512 * 512 + 1024  # members, and one block that ends them
    for size in range(0, needed, 128):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"truncated or damaged tar|not a tar|is empty"):
            WebDatasetSource(str(path))


def test_a_tar_without_pairs_is_refused_with_what_it_holds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _tar(tmp_path / "a.tar", [("README.md", b"hello"), ("0.jpg", _image(0)), ("1.txt", b"x")])
    with pytest.raises(InputError) as refused:
        WebDatasetSource("a.tar")
    assert str(refused.value).splitlines() == [
        "no image–caption pairs in a.tar",
        "3 members, none of .jpg .jpeg .png .webp with a .txt or .json of the same name",
        "first member: README.md. Expected the layout that img2dataset writes with "
        "--output_format webdataset",
    ]


@pytest.mark.parametrize("data", [bytes(10240), bytes(512), b""], ids=["tar", "mark", "file"])
def test_empty_shards_are_called_so_and_left_out_where_that_is_allowed(shards, caplog, data):
    expected = _as_list(WebDatasetSource(str(shards / "0000[02].tar")))
    (shards / "00001.tar").write_bytes(data)
    pattern = str(shards / "*.tar")
    for _ in range(2):  # the second time from the index
        with pytest.raises(
            InputError, match=rf"1 of 3 shards are empty\n.*1.tar \({len(data):,} b"
        ):
            WebDatasetSource(pattern)
    with caplog.at_level(logging.WARNING, "flaxclip"):
        source = WebDatasetSource(pattern, allow_empty_shards=True)
    assert "1 of 3 shards are empty: " in caplog.text
    assert source.empty_shards == 1
    assert _as_list(source) == expected
    assert _as_list(pickle.loads(pickle.dumps(source))) == expected
    for path in shards.iterdir():
        path.write_bytes(data)
    with pytest.raises(InputError, match="all 3 shards are empty"):
        WebDatasetSource(pattern, allow_empty_shards=True)


def test_a_tar_of_names_with_further_dots_alone_is_refused_with_the_reason(tmp_path):
    path = _tar(tmp_path / "a.tar", [("photo.v2.jpg", _image(0)), ("photo.v2.txt", b"x")])
    with pytest.raises(InputError) as refused:
        WebDatasetSource(str(path))
    assert "left out: 1 names with further dots\nnames end at their first dot: rename" in str(
        refused.value
    )


def test_all_broken_shards_are_named_at_once(shards):
    (shards / "00000.tar").write_bytes(b"x" * 600)
    _tar(shards / "00002.tar", [("README.md", b"hello")])
    with pytest.raises(InputError) as refused:
        WebDatasetSource(str(shards / "*.tar"))
    lines = str(refused.value).splitlines()
    assert lines[0] == "2 of 3 shards cannot be used"
    assert lines[1].startswith("not a tar: ")
    assert lines[2].startswith("no image–caption pairs in ")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{00000..00004}.tar", "2 of 5 shards do not exist\nfirst: .*00003.tar\ncheck the pattern"),
        ("*.tgz", r"no shard matches .*\*.tgz"),
        ("", r"is a folder\nexpected tar files: '.*\*\.tar'"),
        (["00000.tar", "0000{0,1}.tar"], "shard given twice: .*00000.tar"),
        ("{00000..00002.tar", "bad brace pattern"),
        ([], "no shards given"),
    ],
)
def test_a_pattern_that_cannot_be_meant_is_refused(shards, pattern, message):
    where = str(shards) + "/"
    patterns = where + pattern if isinstance(pattern, str) else [where + p for p in pattern]
    with pytest.raises(InputError, match=message):
        WebDatasetSource(patterns)


def test_shards_in_object_storage_are_indexed_and_read_by_range(shards, monkeypatch):
    bucket = fsspec.filesystem("memory")
    for path in shards.glob("*.tar"):
        bucket.pipe_file(f"memory://bucket/shards/{path.name}", path.read_bytes())
    local = WebDatasetSource(str(shards / "*.tar"))
    for pattern in ("memory://bucket/shards/*.tar", "memory://bucket/shards/{00000..00002}.tar"):
        assert _as_list(WebDatasetSource(pattern)) == _as_list(local)
    remote = WebDatasetSource("memory://bucket/shards/{00000..00002}.tar")
    requests = []
    cat_file = type(bucket).cat_file
    monkeypatch.setattr(
        type(bucket), "cat_file", lambda *a, **k: requests.append(a) or cat_file(*a, **k)
    )
    assert remote.fields(7) == {"caption": "json 7", "txt": "caption 7"}
    assert remote[7] == local[7]
    assert len(requests) == 2  # image, JSON and text lie together
    bucket.pipe_file("memory://bucket/shards/00001.tar", b"")
    with pytest.raises(UnreadableExampleError, match=r"00001.tar has changed since it was indexed"):
        remote[5]
    with pytest.raises(InputError, match=r"1 of 4 shards do not exist\nfirst: memory://bucket"):
        WebDatasetSource("memory://bucket/shards/{00000..00003}.tar")
    with pytest.raises(InputError, match=r"no shard matches memory://bucket/none/\*.tar"):
        WebDatasetSource("memory://bucket/none/*.tar")


def test_permission_denied_is_told(monkeypatch):
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to others
        os.chmod(folder, 0o755)
        path = _tar(pathlib.Path(folder) / "a.tar", _members(0, 1))
        path.chmod(0)
        is_root = os.geteuid() == 0
        if is_root:  # to whom nothing is denied
            cache = pathlib.Path(folder) / "cache"
            cache.mkdir()
            cache.chmod(0o777)
            monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
            os.seteuid(65534)
        try:
            with pytest.raises(InputError, match=r"cannot read shard .*a.tar: Permission denied"):
                WebDatasetSource(str(path))
        finally:
            if is_root:
                os.seteuid(0)


def test_a_second_opening_reads_no_tar(shards, monkeypatch):
    pattern = str(shards / "*.tar")
    first = WebDatasetSource(pattern)
    monkeypatch.setattr(shard_scans, "scan_shard", lambda path, _: pytest.fail(f"scanned {path}"))
    assert _as_list(WebDatasetSource(pattern)) == _as_list(first)


def test_a_changed_shard_is_indexed_anew(shards):
    pattern = str(shards / "*.tar")
    before = WebDatasetSource(pattern)
    assert before[5].captions[0] == "caption 5"
    _tar(shards / "00001.tar", _members(100, 102))
    after = WebDatasetSource(pattern)
    assert len(after) == 10
    assert after[5] == Pair(_image(101), ("caption 101",))
    with pytest.raises(UnreadableExampleError, match=r"00001.tar has changed since it was indexed"):
        before[5]
    assert before[11].captions[0] == "caption 11"


def test_a_changed_time_alone_is_a_change(shards):
    source = WebDatasetSource(str(shards / "*.tar"))
    os.utime(shards / "00000.tar", ns=(1, 1))
    with pytest.raises(UnreadableExampleError, match=r"00000.tar has changed"):
        source[0]


def test_a_deleted_shard_makes_its_examples_unreadable_and_no_other(shards):
    source = WebDatasetSource(str(shards / "*.tar"))
    (shards / "00001.tar").unlink()
    with pytest.raises(UnreadableExampleError, match=r"00001.tar: No such file"):
        source[4]
    assert source.name(4) == "00001.tar/000000004"
    assert source[0].captions[0] == "caption 0"


def test_a_damaged_index_is_built_again(shards, cache):
    pattern = str(shards / "*.tar")
    expected = _as_list(WebDatasetSource(pattern))
    (folder,) = cache.iterdir()
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) == 3  # the table, a piece, and its own table
    for path in files:
        whole = path.read_bytes()
        for damaged in (whole[:-5], b"", None):
            path.write_bytes(damaged) if damaged is not None else path.unlink()
            assert _as_list(WebDatasetSource(pattern)) == expected
        if path.suffix != ".table" or path.parent == folder:
            assert path.read_bytes() == whole
    assert list(cache.iterdir()) == [folder]


def test_a_cache_that_cannot_be_written_is_told(shards, monkeypatch, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match="set XDG_CACHE_HOME to a folder that can be written"):
        WebDatasetSource(str(shards / "*.tar"))


def _open_and_list(pattern: str) -> list[tuple[str, bytes, str]]:
    return _as_list(WebDatasetSource(pattern))


def test_processes_that_build_at_once_agree_and_leave_one_index(shards, cache):
    pattern = str(shards / "*.tar")
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        listed = pool.map(_open_and_list, [pattern] * 6, chunksize=1)
    assert listed == [_open_and_list(pattern)] * 6
    assert len(list(cache.iterdir())) == 1


def test_many_shards_are_indexed_in_parallel_with_the_same_result(tmp_path, cache, monkeypatch):
    for shard in range(shard_scans.PARALLEL_FROM):
        _tar(tmp_path / f"{shard}.tar", _members(10 * shard, 10 * shard + 2 + shard))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    parallel = WebDatasetSource(str(tmp_path / "*.tar"))
    expected = _as_list(parallel)
    entries = parallel._index.entries(0, len(parallel))
    shutil.rmtree(cache)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    sequential = WebDatasetSource(str(tmp_path / "*.tar"))
    assert (sequential._index.entries(0, len(sequential)) == entries).all()
    assert _as_list(sequential) == expected


def test_many_shards_are_indexed_whatever_the_main_program_is(tmp_path):
    for shard in range(shard_scans.PARALLEL_FROM):
        _tar(tmp_path / f"{shard}.tar", _members(10 * shard, 10 * shard + 2))
    program = (  # without `if __name__ == "__main__"`
        "import os\n"
        "os.cpu_count = lambda: 2\n"
        "from flaxclip.data.sources.tars.webdataset import WebDatasetSource\n"
        f"print(len(WebDatasetSource({str(tmp_path / '*.tar')!r})))\n"
    )
    (tmp_path / "script.py").write_text(program)
    for number, argument in enumerate(("-", tmp_path / "script.py")):
        run = subprocess.run(
            [sys.executable, argument],
            input=program,
            capture_output=True,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": str(pathlib.Path(__file__).parents[1]),
                "XDG_CACHE_HOME": str(tmp_path / f"cache{number}"),
            },
        )
        assert (run.returncode, run.stdout, run.stderr) == (0, "16\n", "")


def test_a_scanning_process_that_is_killed_is_told(tmp_path):
    os.mkfifo(tmp_path / "a.tar")  # opening it takes for ever
    scanner = scan_processes.Scanner()
    threading.Timer(0.3, scanner.process.kill).start()
    with pytest.raises(InputError, match=r"that indexed .*a.tar was killed by SIGKILL\n.*memory"):
        scanner.scan(str(tmp_path / "a.tar"))
    scanner.close()
    assert scanner.process.stdin.closed
    assert scanner.process.stdout.closed


def test_signals_to_all_processes_are_left_to_the_first_of_them(tmp_path):
    _tar(tmp_path / "0.tar", _members(0, 2))
    with contextlib.closing(scan_processes.Scanner()) as scanner:
        scanner.scan(str(tmp_path / "0.tar"))  # it has started
        for number in (signal.SIGINT, signal.SIGTERM):
            scanner.process.send_signal(number)
        assert len(scanner.scan(str(tmp_path / "0.tar")).entries) == 2


def test_a_scanning_process_ends_with_the_one_that_started_it(tmp_path):
    os.mkfifo(tmp_path / "a.tar")  # opening it takes for ever
    with contextlib.closing(scan_processes.Scanner()) as scanner:
        pickle.dump((str(tmp_path / "a.tar"), None), scanner.process.stdin)
        scanner.process.stdin.close()  # as the end of that process does
        assert scanner.process.wait(300) == 0


def test_scanning_that_ends_early_leaves_no_process_and_no_descriptor(tmp_path):
    _tar(tmp_path / "0.tar", _members(0, 2))
    os.mkfifo(tmp_path / "1.tar")  # opening it takes for ever
    with nothing_left_open():
        scans = scan_processes.scan_in_processes([str(tmp_path / f"{n}.tar") for n in range(2)], 2)
        assert len(next(scans).entries) == 2
        scans.close()


def _captions(source: WebDatasetSource) -> list[str]:
    return [source[index].captions[0] for index in range(len(source))]


def test_a_copy_in_another_process_reads_the_same_and_travels_light(shards, tmp_path):
    source = WebDatasetSource(str(shards / "*.tar"))
    source[0]  # files are open when it is sent
    assert len(pickle.dumps(source)) < 1000
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_captions, (source,)) == _captions(source)
    assert _as_list(pickle.loads(pickle.dumps(source))) == _as_list(source)


def test_an_index_takes_fewer_than_100_bytes_an_example(tmp_path, cache):
    source = WebDatasetSource(str(_tar(tmp_path / "a.tar", _members(0, 200))))
    files = [path for path in cache.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 100 * len(source)


def test_threads_share_a_bounded_number_of_open_shards(tmp_path):
    numbers = range(300)
    for shard in numbers:
        _tar(tmp_path / f"{shard:03d}.tar", _members(shard, shard + 1))
    source = WebDatasetSource(str(tmp_path / "*.tar"))
    order = np.random.default_rng(0).permutation(np.repeat(numbers, 10)).tolist()
    with ThreadPoolExecutor(8) as pool:
        captions = list(pool.map(lambda index: source[index].captions[0], order))
    assert captions == [f"caption {index}" for index in order]
    if os.path.isdir("/proc/self/fd"):
        targets = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
        assert (
            sum(target.startswith(str(tmp_path)) and ".tar" in target for target in targets) <= 128
        )


def test_a_header_that_claims_gigabytes_is_refused_unread(tmp_path):
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**40
    path = _tar(tmp_path / "a.tar", _members(0, 1))
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + path.read_bytes())
    with pytest.raises(InputError, match=r"header of 1,099,511,627,776 bytes"):
        WebDatasetSource(str(path))


def test_damaged_tars_never_raise_anything_but_input_and_example_errors(tmp_path):
    path = _tar(tmp_path / "a.tar", _members(0, 3))
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        headers = [member.offset for member in tar.getmembers()]
    rng = np.random.default_rng(0)
    opened = 0
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            field = rng.choice([0, 100, 124, 148, 156, 257])  # name, mode, size, sum, type, magic
            position = rng.choice(headers) + field
            damaged[position : position + 8] = rng.integers(0, 256, 8, dtype=np.uint8).tobytes()
            if rng.random() < 0.7:  # with a sum that fits, so that the damage is believed
                start = position // 512 * 512
                damaged[start + 148 : start + 156] = b" " * 8
                total = sum(damaged[start : start + 512])
                damaged[start + 148 : start + 156] = b"%06o\0 " % total
        path.write_bytes(damaged)
        try:
            source = WebDatasetSource(str(path))
        except InputError:
            continue
        opened += 1
        for index in range(len(source)):
            source.name(index)
            try:
                assert source[index].captions[0].strip()
            except UnreadableExampleError:
                continue
    assert opened > 20
