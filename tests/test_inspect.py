import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from flaxclip.data.inspect.__main__ import Command, inspect
from flaxclip.data.inspect.inspection import inspect_source
from flaxclip.data.sources.source import Pair, UnreadableExampleError
from tests.helpers.pair_shards import image, write_shards


def _inspect(*args, cache):
    return subprocess.run(
        [sys.executable, "-m", "flaxclip.data.inspect", *map(str, args)],
        capture_output=True,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(cache), "COLUMNS": "100"},
    )


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder)
    return folder


def test_a_small_corpus_is_read_whole_and_its_figures_are_called_exact(shards, tmp_path):
    images = tmp_path / "images"
    run = _inspect(shards / "*.tar", "--images", images, "--samples", 4, cache=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "73" in run.stdout
    assert "exact: all 73 examples read" in run.stdout
    assert "exact: 6.85%" in run.stdout  # 5 of 73 broken
    assert "estimated" not in run.stdout
    assert "00000.tar/00022: broken image" in run.stdout
    assert len(list(images.glob("*.jpg"))) == 4
    again = _inspect(shards / "*.tar", "--images", images, cache=tmp_path)
    assert again.returncode == 2
    assert "is not empty" in again.stderr
    assert "Traceback" not in again.stderr


def test_empty_shards_are_refused_or_counted(shards, tmp_path):
    folder = tmp_path / "with_empty"
    shutil.copytree(shards, folder)
    (folder / "99999.tar").write_bytes(bytes(10240))
    run = _inspect(folder / "*.tar", cache=tmp_path)
    assert run.returncode == 2
    assert "99999.tar (10,240 bytes)" in run.stderr
    assert "--allow-empty-shards" in run.stderr
    run = _inspect(folder / "*.tar", "--allow-empty-shards", cache=tmp_path)
    assert re.search(r"left out: empty shards +1 +exact", run.stdout)
    run = _inspect(folder / "*.tar", "--allow-empty-shards", "--json", cache=tmp_path)
    report = json.loads(run.stdout)
    assert (report["left_out"]["empty_shards"], report["records"]) == (1, 73)


def test_a_sample_gives_estimates_that_are_called_so(shards, tmp_path):
    run = _inspect(shards / "*.tar", "--sample", 30, "--json", cache=tmp_path)
    report = json.loads(run.stdout)
    assert (report["records"], report["read"], report["exact"]) == (73, 30, False)
    assert report["statistics"]["pairs"] + report["broken"]["of_those_read"] == 30
    low, high = report["broken"]["interval_95"]
    assert low <= 5 / 73 <= high
    assert len(report["samples"]) == 10
    assert {"record", "captions", "width", "height", "bytes", "format"} <= set(report["samples"][0])


def test_what_is_left_out_is_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name in ("000.jpg", "000.txt", "photo.v2.jpg", "photo.v2.txt", "__MACOSX/._000.jpg"):
            info = tarfile.TarInfo(name)
            info.size = len(_IMAGE)
            tar.addfile(info, io.BytesIO(_IMAGE if name.endswith("jpg") else b"x" * info.size))
    for name in ("a.jpg", "._a.jpg"):
        (tmp_path / "photos/cat").mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos/cat" / name).write_bytes(_IMAGE)
    for src, expected in (
        ("0.tar", {"leftovers_of_other_programs": 1, "names_with_further_dots": 1}),
        ("photos", {"leftovers_of_other_programs": 1}),
    ):
        inspect(Command(str(tmp_path / src), json=True))
        report = json.loads(capsys.readouterr().out)
        assert (report["records"], report["left_out"]) == (1, expected)
        inspect(Command(str(tmp_path / src)))
        said = " ".join(capsys.readouterr().out.split())
        for reason, count in expected.items():
            assert f"left out: {reason.replace('_', ' ')} {count} exact" in said


class _Corpus:
    """A billion examples, every tenth broken; reading is counted."""

    def __init__(self):
        self.read = []

    def __len__(self):
        return 10**9

    def __getitem__(self, index):
        self.read.append(index)
        if index % 10 == 3:
            raise UnreadableExampleError("broken")
        return Pair(_IMAGE, (f"caption {index}",))

    def fields(self, index):
        return {"txt": f"caption {index}"}

    def name(self, index):
        return f"shard/{index}"


_IMAGE = image(0)


def test_a_corpus_of_any_size_costs_what_its_sample_costs():
    corpus = _Corpus()
    inspection = inspect_source(corpus, sample=2_000, shown=5, seed=1)
    assert len(set(corpus.read)) == 2_000
    assert corpus.read == sorted(corpus.read)
    assert max(np.diff(corpus.read)) < 10**7  # from all over the corpus
    low, high = inspection.broken_interval
    assert low < 0.1 < high
    assert high - low < 0.03
    assert len(inspection.samples) == 5
    assert inspect_source(_Corpus(), 2_000, 5, 1).broken == inspection.broken


def test_prepare_without_beam_says_what_to_install(tmp_path):
    code = (
        "import sys; sys.modules['apache_beam'] = None; "
        "from flaxclip.data.prepare.__main__ import main; main()"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, "scenes", str(tmp_path / "out")],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert "pip install 'flaxclip[beam]'" in run.stderr
    assert not (tmp_path / "out").exists()
