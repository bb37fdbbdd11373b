"""Data sets straight from the Hub: the real client, and a server with the Hub's paths and codes."""

import contextlib
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from flaxclip.benchmark.datasets import MissingDataError, image_batches
from flaxclip.benchmark.prompts import choose_wording
from flaxclip.benchmark.readers import open_split, open_test
from flaxclip.benchmark.sets import copies
from flaxclip.benchmark.sets.parts import check_parts, parquet_parts
from flaxclip.benchmark.sets.place import DataPlace, tasks_of_repository
from flaxclip.benchmark.sets.progress import Progress
from flaxclip.benchmark.tasks import all_tasks, find_tasks
from flaxclip.data.images.eval_transform import SizedTransform
from flaxclip.data.storage.ranged_reads import Extent, fetch
from flaxclip.errors import InputError
from tests.helpers.hub_stand_in import COMMIT, TOKEN, Hosted, serve_hub, take_for_the_hub
from tests.helpers.image_tables import write_table
from tests.helpers.image_tars import labelled, write_wds
from tests.helpers.published_sets import write_aro_order


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A running Hub, with one set of three shards in CLIP_benchmark's layout."""
    root = write_wds(tmp_path / "hub" / "wds_vtab-pets", labelled(), shards=3)
    with serve_hub({"clip-benchmark/wds_vtab-pets": Hosted(root)}) as hub:
        take_for_the_hub(monkeypatch, hub.address)
        yield hub


def place(tmp_path, data="hf://datasets/clip-benchmark"):
    said = []
    return DataPlace(data, tmp_path / "copies", said.append), said


def shades(images):
    (batch,) = image_batches(images, SizedTransform(16), len(images))
    return batch.images[:, 0, 0, 0].tolist()


PETS = "clip-benchmark/wds_vtab-pets"


def test_a_task_is_read_from_the_hub_once_and_then_from_its_copy(published, tmp_path):
    where, said = place(tmp_path)
    source, data = open_test(all_tasks()["pets"], where, 16)
    assert shades(data.images) == [0, 30, 60, 10, 40, 20, 50]
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert data.class_names == ("cat", "dog", "owl")
    assert source.url == f"hf://datasets/{PETS}@{COMMIT}"
    size = sum(p.stat().st_size for p in (tmp_path / "hub").rglob("*.t*"))
    assert said[0].startswith(f"{PETS}: copying 5 files, {(size - 2) / 1000:.1f} kB, to ")
    assert "checksums as there" in said[1]

    published.requests.clear()
    again = open_test(all_tasks()["pets"], where, 16)[1]
    assert published.requests == []
    assert again.images.identity == data.images.identity
    # Nor do results and embeddings depend on where the copy is, or when it was made.
    elsewhere = DataPlace(where.data, tmp_path / "elsewhere", print)
    moved = open_test(all_tasks()["pets"], elsewhere, 16)[1]
    assert moved.images.identity == data.images.identity
    # The copy is a folder of data sets like any other.
    local = open_test(all_tasks()["pets"], tmp_path / "copies" / "clip-benchmark", 16)[1]
    assert shades(local.images) == shades(data.images)


def test_all_pages_of_a_listing_are_read(published, tmp_path):
    published.page = 2
    assert len(open_test(all_tasks()["pets"], place(tmp_path)[0], 16)[1].images) == 7


@pytest.mark.parametrize("data", [f"hf://datasets/{PETS}", f"hf://datasets/{PETS}@{COMMIT}"])
def test_one_repository_is_enough_of_an_address(published, tmp_path, data):
    where, _ = place(tmp_path, data)
    assert len(open_test(all_tasks()["pets"], where, 16)[1].images) == 7
    (own,) = find_tasks([f"wds:{data}"])
    assert own.name == "vtab-pets"
    assert len(open_test(own, place(tmp_path, "data")[0], 16)[1].images) == 7
    with pytest.raises(MissingDataError, match="is another set than wds_vtab-dtd"):
        open_test(all_tasks()["dtd"], where, 16)


def test_one_repository_is_measured_where_no_task_is_named():
    assert tasks_of_repository(f"hf://datasets/{PETS}@v1") == ["pets"]
    for own in ("wds:hf://datasets/someone/wds_toys", "parquet:hf://datasets/someone/toys@v1"):
        assert tasks_of_repository(own.partition(":")[2]) == [own]
    for several in ("hf://datasets/someone", "data", "gs://bucket/data"):
        assert tasks_of_repository(several) == []


def test_repositories_of_datacomp_are_known_by_their_names(tmp_path, monkeypatch):
    root = write_wds(tmp_path / "hub" / "set", labelled(), shards=1)
    with serve_hub({"djghosh/wds_vtab-pets_test": Hosted(root)}) as hub:
        take_for_the_hub(monkeypatch, hub.address)
        where, _ = place(tmp_path, "hf://datasets/djghosh")
        assert len(open_test(all_tasks()["pets"], where, 16)[1].images) == 7
        hub.requests.clear()
        assert len(open_test(all_tasks()["pets"], where, 16)[1].images) == 7
        assert hub.requests == []
        one, _ = place(tmp_path, "hf://datasets/djghosh/wds_vtab-pets_test")
        assert len(open_test(all_tasks()["pets"], one, 16)[1].images) == 7


def test_answers_that_fail_and_pass_are_asked_for_again(published, tmp_path):
    published.failing = [503]
    assert len(open_test(all_tasks()["pets"], place(tmp_path)[0], 16)[1].images) == 7
    assert published.failing == []


def test_what_is_not_what_the_hub_says_is_refused(published, tmp_path):
    published.flipped = {"1.tar"}
    where, _ = place(tmp_path)
    with pytest.raises(InputError, match=r"1\.tar arrived with another checksum .* sha256:"):
        open_test(all_tasks()["pets"], where, 16)
    published.flipped = set()
    assert len(open_test(all_tasks()["pets"], where, 16)[1].images) == 7
    published.flipped = {"classnames.txt"}
    with pytest.raises(InputError, match=r"classnames\.txt arrived with .* checksum .* git:"):
        open_test(all_tasks()["pets"], DataPlace(where.data, tmp_path / "others", print), 16)


def test_a_refusal_is_heard_while_files_before_it_are_copied(published, tmp_path, monkeypatch):
    whole, ended = copies.copy_file, []

    def copy(url, file, path, progress, stop):
        if path.name == "2.tar":
            raise InputError(f"{url} is refused")
        if path.name == "0.tar":
            ended.append(stop.wait(60))
        else:
            whole(url, file, path, progress, stop)

    monkeypatch.setattr(copies, "copy_file", copy)
    with pytest.raises(InputError, match=r"2\.tar is refused"):
        open_test(all_tasks()["pets"], place(tmp_path)[0], 16)
    assert ended == [True]


def test_a_damaged_part_is_read_again_from_its_beginning(published, tmp_path, monkeypatch):
    where, _ = place(tmp_path)
    open_test(all_tasks()["pets"], where, 16)
    shard = tmp_path / "copies" / PETS / "test" / "0.tar"
    content = shard.read_bytes()
    listed = json.loads((tmp_path / "copies" / PETS / ".flaxclip.json").read_text())
    _, checksum = listed["files"]["test/0.tar"]
    shard.unlink()
    partial = shard.with_name(f"0.tar.{checksum.removeprefix('sha256:')[:12]}.partial")
    partial.write_bytes(bytes(5000))
    begun, added = [], []
    monkeypatch.setattr(Progress, "add", lambda self, size: added.append(size))
    monkeypatch.setattr(copies, "Progress", lambda *of: begun.append(of) or Progress(*of))
    open_test(all_tasks()["pets"], where, 16)
    # What was there is counted as done, and not as copied at once.
    assert begun == [(len(content), PETS, 5000)]
    assert added == [len(content) - 5000, -len(content), len(content)]
    assert shard.read_bytes() == content
    assert not partial.exists()


def test_a_new_commit_is_read_where_the_copy_is_removed(published, tmp_path):
    where, _ = place(tmp_path)
    open_test(all_tasks()["pets"], where, 16)
    write_wds(tmp_path / "hub" / "wds_vtab-pets", labelled(5), shards=3)
    published.repositories[PETS].commit = "f" * 40
    assert len(open_test(all_tasks()["pets"], where, 16)[1].images) == 7
    (tmp_path / "copies" / PETS / ".flaxclip.json").unlink()
    source, data = open_test(all_tasks()["pets"], where, 16)
    assert len(data.images) == 5
    assert source.url == f"hf://datasets/{PETS}@{'f' * 40}"


def lose_shard(root):
    (root / "test" / "1.tar").unlink()


def add_shard(root):
    (root / "test" / "3.tar").write_bytes((root / "test" / "0.tar").read_bytes())


def lose_count(root):
    (root / "test" / "nshards.txt").unlink()


def break_count(root):
    (root / "test" / "nshards.txt").write_text("three")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lose_shard, r"shard .*test/1\.tar is missing: nshards\.txt says 3"),
        (add_shard, r"test has 4 shards, up to 3\.tar: nshards\.txt says 3"),
        (lose_count, r"has no test/nshards\.txt"),
        (break_count, r"test/nshards\.txt holds 'three'"),
    ],
)
def test_a_set_that_is_not_whole_is_refused_before_it_is_copied(
    published, tmp_path, damage, message
):
    damage(tmp_path / "hub" / "wds_vtab-pets")
    with pytest.raises(InputError, match=message) as error:
        open_test(all_tasks()["pets"], place(tmp_path)[0], 16)
    assert not isinstance(error.value, MissingDataError)
    assert published.reads("tar") == []
    # A copy that somebody has made by other means is looked at as closely.
    with pytest.raises(InputError, match=message.replace("has no test/", "has no .*")):
        open_test(all_tasks()["pets"], tmp_path / "hub", 16)


def test_class_names_that_do_not_fit_the_labels_are_refused(published, tmp_path):
    (tmp_path / "hub" / "wds_vtab-pets" / "classnames.txt").write_text("cat\ndog\n")
    (task,) = find_tasks([f"wds:hf://datasets/{PETS}"])
    _, data = open_test(task, place(tmp_path)[0], 16)
    with pytest.raises(InputError, match="label 2 of image 5 is out of range, as are 1 more"):
        choose_wording(task, data, "clip_benchmark")


READING = """
import sys
from flaxclip.benchmark.readers import open_test
from flaxclip.benchmark.sets import file_copy
from flaxclip.benchmark.sets.parts import check_parts, parquet_parts
from flaxclip.benchmark.sets.place import DataPlace, tasks_of_repository
from flaxclip.benchmark.tasks import find_tasks
file_copy.CHUNK_BYTES = 1024
place = DataPlace("hf://datasets/clip-benchmark", file_copy.Path(sys.argv[1]))
print(open_test(find_tasks(sys.argv[2:])[0], place, 16)[1].labels.tolist())
"""


def start_reading(hub, tmp_path, task, **streams):
    return subprocess.Popen(
        [sys.executable, "-c", READING, tmp_path / "copies", task],
        env=os.environ
        | {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "PYTHONUNBUFFERED": "1"}
        | {"HF_HUB_DOWNLOAD_TIMEOUT": "300"},  # a request that is made wait is not to be repeated
        stdout=subprocess.PIPE,
        text=True,
        **streams,
    )


def kill_while_copying(hub, tmp_path, task, file):
    """Leaves a part of the file."""
    hub.held = f"{file} bytes=1024-"
    hub.released.clear()
    process = start_reading(hub, tmp_path, task)
    while not hub.reads(hub.held):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.communicate()
    hub.released.set()
    (left,) = (tmp_path / "copies").rglob(f"{file}.*.partial")
    assert left.stat().st_size >= 1024
    hub.requests.clear()


def test_a_copy_that_was_killed_goes_on_where_it_was(published, tmp_path):
    kill_while_copying(published, tmp_path, "pets", "0.tar")
    where, said = place(tmp_path)
    _, data = open_test(all_tasks()["pets"], where, 16)
    assert shades(data.images) == [0, 30, 60, 10, 40, 20, 50]
    assert "of it here already" in said[0]
    assert not published.reads("nshards.txt")
    assert not published.reads("0.tar bytes=0-")
    assert not list((tmp_path / "copies").rglob("*.partial"))


def test_two_processes_at_once_make_one_copy(published, tmp_path):
    published.released.clear()
    processes = [start_reading(published, tmp_path, "pets") for _ in range(2)]

    def output(process):
        lines = []
        with process:
            for line in process.stdout:
                lines.append(line)
                if "another process copies into it" in line:
                    published.released.set()
        return "".join(lines)

    with ThreadPoolExecutor(2) as threads:
        outputs = list(threads.map(output, processes))
    assert [process.returncode for process in processes] == [0, 0]
    assert all(output.endswith("[0, 0, 0, 1, 1, 2, 2]\n") for output in outputs)
    assert any("another process copies into it" in output for output in outputs)
    assert len(published.reads()) == len(set(published.reads()))


def test_a_terminal_shows_how_much_is_copied(published, tmp_path):
    published.seconds_per_read = 0.1
    ours, theirs = pty.openpty()
    process = start_reading(published, tmp_path, "pets", stderr=theirs)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while part := os.read(ours, 4096):
            shown += part
    assert process.communicate()[0].endswith("[0, 0, 0, 1, 1, 2, 2]\n")
    assert re.search(rb"clip-benchmark/wds_vtab-pets .*kB.*/s", shown)


def test_what_may_not_be_read_says_how_to_log_in(published, tmp_path, monkeypatch):
    where, _ = place(tmp_path)
    hosted = published.repositories[PETS]
    hosted.gated = True
    with pytest.raises(MissingDataError, match=f"agree at https://huggingface.co/datasets/{PETS}"):
        open_test(all_tasks()["pets"], where, 16)
    hosted.gated, hosted.private = False, True
    with pytest.raises(MissingDataError, match=f"no data set {PETS}.*private.*\n.*hf auth login"):
        open_test(all_tasks()["pets"], where, 16)
    take_for_the_hub(monkeypatch, published.address, token="hf_of_nobody")
    with pytest.raises(InputError, match="does not accept the token that is set"):
        open_test(all_tasks()["pets"], where, 16)
    take_for_the_hub(monkeypatch, published.address, token=TOKEN)
    assert len(open_test(all_tasks()["pets"], where, 16)[1].images) == 7


def test_what_is_not_on_the_hub_is_told(published, tmp_path, monkeypatch):
    where, _ = place(tmp_path)
    missing = r"not on this machine, and cannot be copied to it\n.*no data set clip.*/wds_vtab-dtd"
    with pytest.raises(MissingDataError, match=missing):
        open_test(all_tasks()["dtd"], where, 16)
    with pytest.raises(InputError, match=r"the data set has no revision 'v9'\n"):
        open_test(all_tasks()["pets"], place(tmp_path, f"hf://datasets/{PETS}@v9")[0], 16)
    for data in ("hf://clip-benchmark/x/", "hf://datasets/"):
        with pytest.raises(InputError, match=r"expected .*hf://datasets/"):
            place(tmp_path, data)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE forbids"):
        open_test(all_tasks()["pets"], where, 16)


def test_a_folder_that_cannot_hold_the_copy_is_told(published, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    blocked = DataPlace("hf://datasets/clip-benchmark", tmp_path / "file", print)
    with pytest.raises(InputError, match=r"cannot copy data sets into .*file: Not a directory"):
        open_test(all_tasks()["pets"], blocked, 16)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 5, 2_000))
    with pytest.raises(InputError, match=r"needs 3.*kB in .*, which has 2\.0 kB\n.*--data-cache"):
        open_test(all_tasks()["pets"], place(tmp_path)[0], 16)


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """A running Hub with one set in Parquet: two parts to test, one to train on."""
    root = tmp_path / "hub" / "pets"
    write_table(root / "data/test-00000-of-00002.parquet", (10, 20), [0, 1])
    write_table(root / "data/test-00001-of-00002.parquet", (30,), [1])
    write_table(root / "data/train-00000-of-00001.parquet", (40,), [0])
    with serve_hub({"someone/pets": Hosted(root)}) as hub:
        take_for_the_hub(monkeypatch, hub.address)
        yield hub


(TABLES,) = find_tasks(["parquet:hf://datasets/someone/pets"])


def test_parquet_is_read_from_the_hub_once(tables, tmp_path):
    where, said = place(tmp_path, "data")
    source, data = open_test(TABLES, where, 16)
    assert TABLES.name == "pets"
    assert (shades(data.images), data.labels.tolist()) == ([10, 20, 30], [0, 1, 1])
    assert data.class_names == ("cat", "dog")
    assert said[0].startswith("someone/pets: copying 2 files")
    assert not tables.reads("train")
    assert shades(open_split(TABLES, source, "train", where, 16).images) == [40]
    tables.requests.clear()
    assert shades(open_test(TABLES, where, 16)[1].images) == [10, 20, 30]
    assert shades(open_split(TABLES, source, "train", where, 16).images) == [40]
    assert tables.requests == []


@pytest.mark.parametrize("data", ["hf://datasets/clip-benchmark", "hf://datasets/someone"])
def test_the_order_of_words_is_read_from_its_own_repository(data, tmp_path, monkeypatch):
    root = tmp_path / "hub/order"
    write_aro_order(root / "data")
    with serve_hub({"gowitheflow/ARO-COCO-order": Hosted(root)}) as hub:
        take_for_the_hub(monkeypatch, hub.address)
        where, said = place(tmp_path, data)
        _, found = open_test(all_tasks()["aro_coco_order"], where, 16)
        assert found.captions[:2] == ("correct_caption 0", "hard_text_1 0")
        assert shades(found.images) == list(range(6))
        assert said[0].startswith("gowitheflow/ARO-COCO-order: copying data/test-0.parquet")


def test_parquet_that_was_killed_goes_on_where_it_was(tables, tmp_path):
    name = "test-00000-of-00002.parquet"
    kill_while_copying(tables, tmp_path, "parquet:hf://datasets/someone/pets", name)
    where, _ = place(tmp_path, "data")
    assert shades(open_test(TABLES, where, 16)[1].images) == [10, 20, 30]
    assert not tables.reads(f"{name} bytes=0-")


def test_parquet_that_lacks_parts_is_refused(tables, tmp_path):
    where, _ = place(tmp_path, "data")
    root = tmp_path / "hub" / "pets"
    (root / "data/test-00000-of-00002.parquet").rename(tmp_path / "lost")
    for data in (where, tmp_path / "hub"):
        task = TABLES if data is where else find_tasks([f"parquet:{root}"])[0]
        with pytest.raises(InputError, match=r"lacks part 00000-of-00002\n"):
            open_test(task, data, 16)
    assert tables.reads() == []
    (root / "data/test-00000-of-00001.parquet").write_bytes((tmp_path / "lost").read_bytes())
    with pytest.raises(InputError, match="parts of 1 and of 2\nthey are of two versions"):
        open_test(TABLES, where, 16)
    for path in root.glob("data/test*"):
        path.unlink()
    with pytest.raises(InputError, match=r"no Parquet files of a test split\nit has: train"):
        open_test(TABLES, where, 16)
    # Not those of the training split instead.
    with pytest.raises(MissingDataError, match=r"no test\*\.parquet in"):
        open_test(find_tasks([f"parquet:{root / 'data'}"])[0], where, 16)


def test_one_configuration_of_several_is_named(tables, tmp_path):
    root = tmp_path / "hub" / "pets"
    for number, name in enumerate(("big", "small")):
        write_table(root / f"{name}/test/0000.parquet", (50 + number,), [0])
    shutil.rmtree(root / "data")
    tables.repositories["someone/pets"].revisions = ("refs/convert/parquet",)
    address = "hf://datasets/someone/pets@refs/convert/parquet"
    where, _ = place(tmp_path, "data")
    with pytest.raises(InputError, match=r"in several folders: big/test/, small/test/\n.*/small"):
        open_test(find_tasks([f"parquet:{address}"])[0], where, 16)
    (task,) = find_tasks([f"parquet:{address}/small"])
    assert task.name == "small"
    assert shades(open_test(task, where, 16)[1].images) == [51]
    assert tables.reads("big") == []


def test_parts_are_whole_however_they_are_numbered():
    for names in (
        ["a-0000-of-0002", "a-0001-of-0002"],
        ["a-00001-of-00002", "a-00002-of-00002"],
        ["test-00000-of-00001-0ef3e4b8c5f0a2d1", "train"],
    ):
        check_parts(names, "here")
    for names, lacking in (
        (["a-0000-of-0003", "a-0002-of-0003"], "00001-of-00003$"),
        (["a-00001-of-00003", "a-00002-of-00003"], "00000-of-00003$"),
        (["a-00002-of-00003", "a-00003-of-00003"], "00001-of-00003$"),
        (["a-00001-of-00004"], "00000-of-00004, and 2 more"),
    ):
        with pytest.raises(InputError, match=f"(?m)here lacks part {lacking}"):
            check_parts(names, "here")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["test-00000-of-00001 (1).parquet", "test-00000-of-00001.parquet"],
         r"has part 00000-of-00001 twice: test-00000-of-00001 \(1\)\.parquet and test-"),
        (["test-00000-of-00001.parquet", "test.parquet"], "as test-00000-of-00001.parquet and as"),
        (["test_old.parquet", "test-00000-of-00001.parquet"], "and as test_old.parquet"),
    ],
)  # fmt: skip
def test_a_part_that_is_there_twice_is_refused(names, message):
    with pytest.raises(InputError, match=message):
        parquet_parts(names, "test", "here")


def test_series_of_other_names_are_whole_each_by_itself():
    check_parts(["cats-0000-of-0001.parquet", "dogs-0000-of-0001.parquet"], "here")
    with pytest.raises(InputError, match="here lacks part 00001-of-00002"):
        check_parts(["cats-0000-of-0002.parquet", "dogs-0001-of-0002.parquet"], "here")


def test_what_the_hub_has_converted_in_part_is_not_the_split(tables, tmp_path):
    root = tmp_path / "hub" / "pets"
    shutil.rmtree(root / "data")
    write_table(root / "default/partial-test/0000.parquet", (50,), [0])
    with pytest.raises(InputError, match=r"no Parquet files of a test split\nit has: partial-test"):
        open_test(TABLES, place(tmp_path, "data")[0], 16)


def test_columns_of_other_names_are_known_by_their_kind(tables, tmp_path):
    part = tmp_path / "hub/pets/data/test-00001-of-00002.parquet"
    part.with_name("test-00000-of-00002.parquet").unlink()
    write_table(part.with_name("test-00000-of-00001.parquet"), (7,), [1], image="img", label="fine")
    part.unlink()
    _, data = open_test(TABLES, place(tmp_path, "data")[0], 16)
    assert (shades(data.images), data.labels.tolist()) == ([7], [1])
    assert data.class_names == ("cat", "dog")


def test_no_more_is_fetched_than_is_asked_for(tables, tmp_path):
    url = f"hf://datasets/someone/pets@{COMMIT}/data/test-00000-of-00002.parquet"
    content = (tmp_path / "hub/pets/data/test-00000-of-00002.parquet").read_bytes()
    assert fetch(Extent(url, 10, 60, None)) == content[10:60]
    assert [line.rpartition(" ")[2] for line in tables.reads()] == ["bytes=10-59"]
