"""What can be measured, and whether it is here."""

import json
import subprocess
import sys

import pytest

from flaxclip.benchmark.readers import open_test
from flaxclip.benchmark.sets.listing import list_command
from flaxclip.benchmark.sets.place import DataPlace
from flaxclip.benchmark.tasks import all_tasks
from flaxclip.errors import InputError
from tests.helpers.hub_stand_in import Hosted, serve_hub, take_for_the_hub
from tests.helpers.image_tables import write_table
from tests.helpers.image_tars import labelled, write_wds


def listed(capsys, *arguments):
    list_command([*arguments, "--json"])
    return {row["task"]: row for row in json.loads(capsys.readouterr().out)}


def test_every_task_has_a_line_that_fits_and_no_jax_is_needed(tmp_path):
    program = (
        "import sys; from flaxclip.benchmark.__main__ import main; main(); "
        "assert 'jax' not in sys.modules and 'tensorflow_datasets' not in sys.modules"
    )
    command = [sys.executable, "-c", program, "list"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    head, *lines = result.stdout.splitlines()
    assert head.split() == ["task", "question", "images", "from", "size", "here"]
    assert [line.split()[0] for line in lines[:-2]] == list(all_tasks())
    assert max(map(len, [head, *lines[:-1]])) <= 100
    assert lines[-1].startswith("suites: clip27, ")
    assert lines[0].split() == ["imagenet", "1,000", "classes", "50,000", "wds", "imagenet1k", "no"]


def test_what_is_in_a_folder_is_here_with_its_size(tmp_path, capsys):
    write_wds(tmp_path / "wds_vtab-pets", labelled(), shards=2)
    write_table(tmp_path / "winoground" / "test-00000-of-00001.parquet", (1,), [0])
    (tmp_path / "cifar10" / "3.0.2").mkdir(parents=True)
    (tmp_path / "cifar10" / "3.0.2" / "dataset_info.json").write_text("{}")
    (tmp_path / "sugar_crepe" / "val2017").mkdir(parents=True)
    (tmp_path / "sugar_crepe" / "add_att.json").write_text("{}")
    write_wds(tmp_path / "wds_mnist", labelled(), shards=2)
    (tmp_path / "wds_mnist" / "test" / "1.tar").unlink()
    arguments = ("--data", str(tmp_path), "--data-cache", str(tmp_path / "none"))
    rows = listed(capsys, *arguments)
    here = {name: row["here"] for name, row in rows.items() if row["here"] != "no"}
    splits = "seen", "unseen", "shift", "wide"
    scenes = {f"scenes-{split}": "yes" for split in splits}
    assert here == scenes | {
        "pets": "yes", "cifar10": "yes", "mnist": "broken", "winoground": "yes",
        "sugarcrepe_add_att": "yes",
    }  # fmt: skip
    pets = rows["pets"]
    files = [path for path in (tmp_path / "wds_vtab-pets").rglob("*") if path.is_file()]
    assert pets["bytes"] == sum(path.stat().st_size for path in files)
    assert (pets["images"], pets["question"], pets["source"]) == (
        3669, "37 classes", "wds vtab/pets"
    )  # fmt: skip
    assert rows["cifar10"]["source"] == "tfds cifar10"
    assert "hf://datasets/clip-benchmark" in rows["dtd"]["problem"]
    list_command(["mnist", "pets", *arguments])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split()[-3:] == ["20.5", "kB", "yes"]
    assert lines[3] == ""
    assert lines[4].startswith("mnist: shard ")
    with pytest.raises(InputError, match="unknown task 'nonsense'"):
        list_command(["nonsense"])


def test_what_is_on_the_hub_has_its_size_before_it_is_copied(tmp_path, capsys, monkeypatch):
    root = write_wds(tmp_path / "wds_vtab-pets", labelled(), shards=2)
    size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    write_table(tmp_path / "wino" / "default/test/0000.parquet", (1,), [0])
    repositories = {
        "clip-benchmark/wds_vtab-pets": Hosted(root),
        "clip-benchmark/wds_mnist": Hosted(root, gated=True),
        "facebook/winoground": Hosted(tmp_path / "wino", revisions=("refs/convert/parquet",)),
    }
    cache = tmp_path / "copies"
    arguments = ("--data", "hf://datasets/clip-benchmark", "--data-cache", str(cache))
    with serve_hub(repositories) as hub:
        take_for_the_hub(monkeypatch, hub.address)
        rows = listed(capsys, "pets", "winoground", "dtd", *arguments)
        assert [(row["bytes"], row["here"]) for row in rows.values()] == [
            (size, "no"), ((tmp_path / "wino/default/test/0000.parquet").stat().st_size, "no"),
            (None, "no"),
        ]  # fmt: skip
        assert hub.reads(".tar") == []
        list_command(["mnist", *arguments])
        assert "mnist: hf://datasets/clip-benchmark/wds_mnist is given only" in (
            capsys.readouterr().out
        )
        open_test(all_tasks()["pets"], DataPlace(arguments[1], cache), 16)
        capsys.readouterr()
        hub.requests.clear()
        pets = listed(capsys, "pets", *arguments)["pets"]
        assert (pets["bytes"], pets["here"], hub.requests) == (size, "cache", [])
    (cache / "clip-benchmark/wds_vtab-pets/test/1.tar").unlink()
    assert listed(capsys, "pets", "--data-cache", str(cache))["pets"]["here"] == "part"
