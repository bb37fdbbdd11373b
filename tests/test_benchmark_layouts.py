"""One small set in every layout in which sets are published: one score, that of plain NumPy."""

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import numpy as np
import PIL.Image
import pytest

import flaxclip
from flaxclip.benchmark.command import Command, run
from flaxclip.benchmark.datasets import MissingDataError
from flaxclip.benchmark.readers import open_split, open_test
from flaxclip.benchmark.sets.place import DataPlace
from flaxclip.benchmark.tasks import find_tasks
from flaxclip.data.sources.scenes import PROMPT_TEMPLATES
from flaxclip.data.sources.tf_records import TfRecords
from flaxclip.errors import InputError
from flaxclip.interop.export import export
from tests.helpers.hub_stand_in import Hosted, serve_hub, take_for_the_hub
from tests.helpers.slow_bucket import SlowBucket
from tests.helpers.small_models import CLIP, variables_of

SCRIPT = Path(__file__).parents[1] / "experiments" / "corpora" / "make_small_sets.py"
IMAGES = 24


def small_sets():
    spec = importlib.util.spec_from_file_location("make_small_sets", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    small_sets().make_small_sets(folder, IMAGES)
    return folder


def plain_scores(workdir, sets, names, templates):
    """Top-1 and mean per class in NumPy, of the images in folders."""
    model = flaxclip.load(workdir)
    classifier = []
    for name in names:
        texts = model.encode_text([template.format(name) for template in templates])
        mean = np.asarray(texts, np.float64).mean(axis=0)
        classifier.append(mean / np.linalg.norm(mean))
    hits: dict[str, list[bool]] = {}
    for path in sorted((sets / "scenes_folder" / "test").rglob("*.png")):
        z = np.asarray(model.encode_image(model.preprocess([PIL.Image.open(path)])))[0]
        guess = names[int(np.argmax(np.array(classifier) @ z))]
        hits.setdefault(path.parent.name, []).append(guess == path.parent.name)
    return (
        np.mean([hit for of_class in hits.values() for hit in of_class]),
        np.mean([np.mean(of_class) for of_class in hits.values()]),
    )


def test_all_layouts_give_the_scores_of_plain_numpy(finished_run, sets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hosted = {"clip-benchmark/wds_scenes": Hosted(sets / "wds_scenes"),
              "someone/scenes": Hosted(sets / "scenes")}  # fmt: skip
    tasks = (
        "wds:hf://datasets/clip-benchmark/wds_scenes", "parquet:hf://datasets/someone/scenes",
        "tfds:scenes_tfds", f"folder:{sets / 'scenes_folder'}",
    )  # fmt: skip
    folders = {"data": str(sets), "data_cache": tmp_path / "copies", "cache": tmp_path / "cache"}
    scores = []
    with serve_hub(hosted) as hub:
        take_for_the_hub(monkeypatch, hub.address)
        for number, task in enumerate(tasks):
            command = Command(
                (str(finished_run),), tasks=(task,), out=tmp_path / f"out{number}", **folders
            )
            scores.append(run(command).results[0])
            hub.requests.clear()
            assert run(command).fresh == []
            assert hub.requests == []
    assert scores[0].details["templates"] == PROMPT_TEMPLATES
    names = (sets / "wds_scenes" / "classnames.txt").read_text().splitlines()
    # Of folders alone nobody knows of classes without images.
    with_images = sorted(path.name for path in (sets / "scenes_folder" / "test").iterdir())
    for result, names_there in zip(scores, (names, names, names, with_images), strict=True):
        assert result.examples == IMAGES
        top1, mean_per_class = plain_scores(
            finished_run, sets, names_there, result.details["templates"]
        )
        assert result.scores["top1"].value == pytest.approx(top1, abs=1e-12)
        assert result.scores["mean_per_class"].value == pytest.approx(mean_per_class, abs=1e-12)
    assert scores[0].source["url"].startswith("hf://datasets/clip-benchmark/wds_scenes@")


def test_a_model_of_the_hub_on_a_set_of_the_hub(sets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    export(CLIP, variables_of(CLIP), tmp_path / "model", "huggingface", overwrite=False)
    hosted = {"someone/clip": Hosted(tmp_path / "model", "models"),
              "someone/wds_scenes": Hosted(sets / "wds_scenes")}  # fmt: skip
    with serve_hub(hosted) as hub:
        take_for_the_hub(monkeypatch, hub.address)
        command = Command(
            ("hf://someone/clip",),
            data="hf://datasets/someone/wds_scenes",
            data_cache=tmp_path / "copies",
            cache=tmp_path / "embeddings",
        )
        (result,) = run(command).results
    assert (result.task, result.examples) == ("scenes", IMAGES)
    assert result.checkpoint.path == "hf://someone/clip"
    assert result.source["url"].startswith("hf://datasets/someone/wds_scenes@")
    assert (tmp_path / "benchmark" / "clip" / "scenes.json").is_file()


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_sets_of_tensorflow_datasets_are_read_without_tensorflow(tmp_path, sets, file_format):
    small_sets().make_small_sets(tmp_path, 6, tfds_format=file_format)
    (task,) = find_tasks(["tfds:scenes_tfds"])
    source, data = open_test(task, tmp_path, 16)
    _, expected = open_test(find_tasks([f"wds:{sets / 'wds_scenes'}"])[0], tmp_path, 16)
    assert [data.images[n] for n in range(6)] == [expected.images[n] for n in range(6)]
    assert data.labels.tolist() == list(range(6))
    assert data.class_names == expected.class_names
    for own in (tmp_path / "scenes_tfds", tmp_path / "scenes_tfds/1.0.0"):
        (named,) = find_tasks([f"tfds:{own}"])
        assert len(open_test(named, tmp_path / "none", 16)[1].images) == 6
    assert len(open_split(task, source, "train", tmp_path, 16).labels) == 3
    part = find_tasks(["tfds:scenes_tfds"])[0].sources[0]
    images = open_split(task, part, "test[50%:]", tmp_path, 16).images
    assert [images[n] for n in range(3)] == [expected.images[n] for n in range(3, 6)]
    with pytest.raises(InputError, match="has no split 'valid'"):
        open_split(task, part, "valid", tmp_path, 16)


def test_tfrecord_files_that_are_not_whole_are_refused(tmp_path):
    small_sets().make_small_sets(tmp_path, 6)
    (task,) = find_tasks(["tfds:scenes_tfds"])
    path = next((tmp_path / "scenes_tfds/1.0.0").glob("*test*-00001-*"))
    whole = path.read_bytes()
    records = TfRecords(path)
    assert len(records) == 2
    for damaged, message in (
        (whole[:-9], "ends inside of record 1"),
        (whole[: len(whole) // 2 + 40], "ends inside of record|no TFRecord file from byte"),
        (b"\x1f\x8b" + whole, "no TFRecord file from byte 0 on"),
        (whole + whole, "holds 4 examples, 2 according to dataset_info.json"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=message):
            open_test(task, tmp_path, 16)
    path.unlink()
    with pytest.raises(InputError, match=r"test\.tfrecord-00001-of-00003 is missing"):
        open_test(task, tmp_path, 16)


@pytest.fixture
def bucket(sets):
    """The small sets at a URL; two versions of one of them."""
    files = fsspec.filesystem("memory")
    for path in sets.rglob("*"):
        if path.is_file():
            files.pipe_file(f"/bucket/{path.relative_to(sets)}", path.read_bytes())
    files.pipe_file("/bucket/scenes_tfds/0.10.0/dataset_info.json", b"{}")
    yield files
    files.rm("/bucket", recursive=True)


def test_sets_in_a_bucket_are_copied_once(bucket, sets, tmp_path):
    expected = open_test(find_tasks([f"wds:{sets / 'wds_scenes'}"])[0], tmp_path, 16)[1]
    said = []
    where = DataPlace("memory://bucket", tmp_path / "copies", said.append)
    tasks = find_tasks(["tfds:scenes_tfds", "wds:memory://bucket/wds_scenes"])
    for task in (*tasks, *find_tasks(["parquet:memory://bucket/scenes"])):
        source, data = open_test(task, where, 16)
        assert data.labels.tolist() == expected.labels.tolist()
        assert [data.images[n] for n in range(IMAGES)] == [
            expected.images[n] for n in range(IMAGES)
        ]
        assert source.url.startswith("memory://bucket/")
    assert said[0].startswith("bucket/scenes_tfds/1.0.0: copying 6 files, ")
    assert len(said) == 6
    bucket.rm("/bucket/scenes_tfds", recursive=True)
    assert len(open_test(tasks[0], where, 16)[1].images) == IMAGES
    assert len(said) == 6


READING = """
import sys
from pathlib import Path
from flaxclip.benchmark.readers import open_test
from flaxclip.benchmark.sets import file_copy
from flaxclip.benchmark.sets.place import DataPlace
from flaxclip.benchmark.tasks import find_tasks
from tests.helpers import slow_bucket
slow_bucket.SECONDS, file_copy.CHUNK_BYTES = 0.5, 1024
url, copies = sys.argv[1:]
open_test(find_tasks(["tfds:scenes_tfds"])[0], DataPlace(url, Path(copies), print), 16)
"""


def test_a_copy_of_a_bucket_that_was_killed_goes_on(sets, tmp_path):
    url, copies = f"{SlowBucket.protocol}://{sets}", tmp_path / "copies"
    process = subprocess.Popen(
        [sys.executable, "-c", READING, url, copies], env=os.environ | {"PYTHONPATH": os.getcwd()}
    )
    begun = False
    while not begun:
        assert process.poll() is None
        time.sleep(0.02)
        with contextlib.suppress(FileNotFoundError):  # one that is whole, and has its name now
            begun = any(path.stat().st_size for path in copies.rglob("*test*.partial"))
    process.kill()
    process.wait()
    (task,) = find_tasks(["tfds:scenes_tfds"])
    said = []
    _, data = open_test(task, DataPlace(url, copies, said.append), 16)
    expected = open_test(task, sets, 16)[1]
    assert [data.images[n] for n in range(IMAGES)] == [expected.images[n] for n in range(IMAGES)]
    assert "of it here already" in said[0]
    assert not list(copies.rglob("*.partial"))


def test_files_beside_the_parts_are_no_parts(bucket, sets, tmp_path):
    folder = "/bucket/scenes_tfds/1.0.0"
    for stray in ("~", ".partial", "hangs"):
        bucket.pipe_file(f"{folder}/scenes_tfds-test.tfrecord-00001-of-00003{stray}", b"no part")
    bucket.pipe_file(f"{folder}/._features.json", b"no features")
    said = []
    where = DataPlace("memory://bucket", tmp_path / "copies", said.append)
    assert len(open_test(find_tasks(["tfds:scenes_tfds"])[0], where, 16)[1].images) == IMAGES
    assert said[0].startswith("bucket/scenes_tfds/1.0.0: copying 6 files, ")
    # Nor are they on this machine.
    shutil.copytree(sets / "scenes_tfds", tmp_path / "scenes_tfds")
    part = next((tmp_path / "scenes_tfds").rglob("*test*-00001-*"))
    part.rename(f"{part}.partial")
    with pytest.raises(InputError, match="00001-of-00003 is missing"):
        open_test(find_tasks(["tfds:scenes_tfds"])[0], tmp_path, 16)


def test_sets_in_a_bucket_that_are_not_whole_are_refused(bucket, tmp_path):
    where = DataPlace("memory://bucket", tmp_path / "copies", print)
    (task,) = find_tasks(["tfds:scenes_tfds"])
    part = "/bucket/scenes_tfds/1.0.0/scenes_tfds-test.tfrecord-00001-of-00003"
    for stray in ("~", ".partial"):  # no part, whatever its name begins with
        bucket.pipe_file(f"{part}{stray}", bucket.cat_file(part))
    bucket.rm(part)
    with pytest.raises(InputError, match=r"1\.0\.0 lacks part 00001-of-00003"):
        open_test(task, where, 16)
    for path in bucket.glob("/bucket/scenes_tfds/1.0.0/*-test*"):
        bucket.rm(path)
    with pytest.raises(InputError, match=r"has no split 'test'\nit has: train"):
        open_test(task, where, 16)
    with pytest.raises(MissingDataError, match=r"nothing at memory://bucket/cifar10"):
        open_test(find_tasks(["tfds:cifar10"])[0], where, 16)
    with pytest.raises(InputError, match=r"has no dataset_info\.json"):
        open_test(find_tasks(["tfds:wds_scenes"])[0], where, 16)
