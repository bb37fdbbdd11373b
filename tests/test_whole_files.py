"""Files that are written whole or not at all, also where several processes write the same one."""

import os

import numpy as np
import pytest
from etils import epath

from flaxclip.benchmark.embed.layout import Manifest, begin_folder, open_folder
from flaxclip.benchmark.kept_embeddings import Embedded, load_embedded, save_embedded
from flaxclip.benchmark.results import (
    MeasuredCheckpoint,
    Result,
    read_arrays,
    write_result,
    write_text,
)
from flaxclip.data.prepare.folder import write_whole
from flaxclip.errors import InputError
from flaxclip.storage import replace_text, whole_file
from tests.helpers.full_disk import files_no_larger_than

MANIFEST = Manifest(
    checkpoint="run",
    step=1,
    weights=None,
    model=None,
    tokenizer=None,
    parameters_sha256="0",
    preprocessing="none",
    source="mine.tar",
    source_sha256="1",
    examples=3,
    shard_size=2,
    layout="clip-retrieval",
    precision="float16",
    texts=False,
    embed_dim=4,
)
RESULT = Result(
    task="pets",
    title="pets of ours",
    method="zero-shot",
    kind="classification",
    metric="top1",
    checkpoint=MeasuredCheckpoint("run", 1),
    parameters_sha256="0",
    source={},
    data_sha256="1",
    task_preprocessing=None,
    identity_sha256="2",
    examples=9,
)
EMBEDDED = Embedded(np.eye(300, dtype=np.float32), ())
WRITERS = {
    "manifest": lambda folder: begin_folder(folder, MANIFEST),
    "result": lambda folder: write_result(RESULT, {"labels": np.arange(9)}, folder / "pets"),
    "page": lambda folder: write_text(folder / "report.html", "text"),
    "embeddings": lambda folder: save_embedded(folder / "0.npz", EMBEDDED),
    "config": lambda folder: replace_text(epath.Path(folder) / "config.json", "{}"),
    "part": lambda folder: write_whole(epath.Path(folder) / "train-000001", b"12"),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_another_host_may_write_the_same_meanwhile(writer, tmp_path, monkeypatch):
    """It has written all of it just before this one's file gets its name."""
    replace = os.replace

    def replace_after_the_other(*paths):
        monkeypatch.setattr(os, "replace", replace)
        WRITERS[writer](tmp_path)
        replace(*paths)

    monkeypatch.setattr(os, "replace", replace_after_the_other)
    WRITERS[writer](tmp_path)
    assert os.replace is replace, "none of it was given its name at once"
    assert not list(tmp_path.rglob("*.partial"))
    if writer == "manifest":
        assert open_folder(tmp_path).manifest == MANIFEST
    elif writer == "result":
        np.testing.assert_array_equal(read_arrays(tmp_path / "pets.json")["labels"], np.arange(9))
    elif writer == "embeddings":
        np.testing.assert_array_equal(load_embedded(tmp_path / "0.npz").z, EMBEDDED.z)


def test_what_is_being_written_is_seen_by_no_reader_and_no_other_writer(tmp_path):
    path = tmp_path / "file.json"
    with whole_file(path) as first, whole_file(path) as second:
        first.write_text("first")
        second.write_text("second")
        assert not path.exists()
        assert first.parent == second.parent == tmp_path
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.json"
    path.write_text("old")

    def interrupted():
        with whole_file(path) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_not_filled_further_by_each_try(tmp_path):
    for _ in range(2):
        with (
            files_no_larger_than(1000),
            pytest.raises(InputError, match=r"cannot keep embeddings in .*: File too large"),
        ):
            save_embedded(tmp_path / "set" / "0.npz", EMBEDDED)
    assert not list((tmp_path / "set").iterdir())
