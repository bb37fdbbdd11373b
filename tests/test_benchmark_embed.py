import csv
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import tyro

import flaxclip
from flaxclip.benchmark.embed.command import Command, run
from flaxclip.benchmark.embed.embed_corpus import shards_of_host
from flaxclip.benchmark.embed.layout import open_folder
from flaxclip.benchmark.embed.search import Command as Search
from flaxclip.benchmark.embed.search import run as search
from flaxclip.benchmark.embed.search import search_exact, search_faiss
from tests.helpers.command_lines import refused
from tests.helpers.image_tars import jpeg, png, write_shard
from tests.helpers.xla_flags import ONE_DEVICE

COUNT = 37


def embed(run_folder, source, out, *arguments):
    """37 examples in shards of 16, whatever the devices."""
    sizes = ("--shard-size", "16", "--batch-size", "8")
    words = (str(run_folder), str(source), str(out), *sizes, *arguments)
    return run(tyro.cli(Command, args=words))


@pytest.fixture(scope="module")
def model(finished_run):
    return flaxclip.load(finished_run)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    os.environ["XDG_CACHE_HOME"], before = str(folder), os.environ.get("XDG_CACHE_HOME")
    pairs = {f"{i:02}": (jpeg(6 * i), f"an image of shade {i}") for i in range(COUNT)}
    pairs["20"] = (b"no image", "a broken image")
    write_shard(folder / "mine.tar", pairs)
    yield folder / "mine.tar"
    os.environ.pop("XDG_CACHE_HOME")
    if before is not None:
        os.environ["XDG_CACHE_HOME"] = before


def read(out):
    """Everything, as clip-retrieval would read it: files by name, rows in order."""
    tables = [pq.read_table(path) for path in sorted((out / "metadata").glob("*.parquet"))]
    arrays = [
        np.concatenate([np.load(path) for path in sorted((out / kind).glob("*.npy"))])
        for kind in ("img_emb", "text_emb")
    ]
    return [row for table in tables for row in table.to_pylist()], *arrays


@pytest.fixture(scope="module")
def embedded(finished_run, corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("embedded") / "out"
    embed(finished_run, corpus, out, "--texts", "--max-unreadable", "0.1")
    return out


def test_every_example_that_can_be_read_has_a_row(embedded, model):
    names = sorted(path.relative_to(embedded).as_posix() for path in embedded.rglob("*.*"))
    assert names == [
        "embeddings.json",
        *(f"img_emb/img_emb_{i}.npy" for i in range(3)),
        *(f"metadata/metadata_{i}.parquet" for i in range(3)),
        *(f"text_emb/text_emb_{i}.npy" for i in range(3)),
        "unreadable.csv",
    ]
    rows, zimg, ztxt = read(embedded)
    ids = [i for i in range(COUNT) if i != 20]
    assert [row["id"] for row in rows] == ids
    assert rows[20] == {"id": 21, "image_path": "mine.tar/21", "caption": "an image of shade 21"}
    assert (zimg.dtype, zimg.shape, ztxt.shape) == (np.float16, (36, 16), (36, 16))
    np.testing.assert_allclose(zimg, model.encode_image([jpeg(6 * i) for i in ids]), atol=1e-3)
    texts = [f"an image of shade {i}" for i in ids]
    np.testing.assert_allclose(ztxt, model.encode_text(texts), atol=1e-3)


def test_what_cannot_be_read_is_counted_and_named(embedded, finished_run, corpus, tmp_path, capsys):
    rows = list(csv.reader((embedded / "unreadable.csv").read_text().splitlines()))
    assert rows[0] == ["example"]
    assert rows[1][0].startswith("mine.tar/20: not a JPEG")
    said = refused(lambda: embed(finished_run, corpus, tmp_path / "out"), capsys)
    assert "1 of the first 32 examples cannot be read\n  mine.tar/20: " in said
    assert "at most 1% of 37 may be" in said
    # The shard with the broken one is there now, and counts still.
    said = refused(lambda: embed(finished_run, corpus, tmp_path / "out"), capsys)
    assert "1 of the first 37 examples cannot be read" in said
    (tmp_path / "out/metadata/metadata_2.parquet").unlink()
    # It goes on where it stopped, once more are allowed.
    embed(finished_run, corpus, tmp_path / "out", "--max-unreadable", "0.03")
    said = capsys.readouterr().out
    assert "37 examples in 3 shards, of which 2 are there already" in said
    assert "5 of 5 images" in said
    assert f"36 embeddings, 1 unreadable, all named in {tmp_path}/out/unreadable.csv" in said


def test_the_parquet_layout_holds_the_same(embedded, finished_run, corpus, tmp_path):
    out = tmp_path / "out"
    arguments = ("--texts", "--max-unreadable", "0.1", "--layout", "parquet")
    embed(finished_run, corpus, out, *arguments, "--precision", "float32")
    paths = sorted((out / "embeddings").glob("*.parquet"))
    found = [row for path in paths for row in pq.read_table(path).to_pylist()]
    rows, zimg, ztxt = read(embedded)
    kept = ("id", "image_path", "caption")
    assert [{name: row[name] for name in kept} for row in found] == rows
    for kind, z in (("image", zimg), ("text", ztxt)):
        np.testing.assert_allclose([row[f"{kind}_embedding"] for row in found], z, atol=1e-3)
    np.testing.assert_array_equal(
        open_folder(out).embeddings("image", 1), [row["image_embedding"] for row in found[16:31]]
    )


def test_images_without_captions_are_embedded(finished_run, model, tmp_path, capsys):
    for shade in range(3):
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / f"photos/{shade}.png").write_bytes(png(shade))
    (tmp_path / "photos/._0.png").write_bytes(b"of another program")
    embed(finished_run, tmp_path / "photos", tmp_path / "out")
    assert "left out of the corpus: 1 leftovers of other programs" in capsys.readouterr().out
    table = pq.read_table(tmp_path / "out/metadata/metadata_0.parquet")
    assert table.to_pylist() == [{"id": i, "image_path": f"{i}.png"} for i in range(3)]
    said = refused(
        lambda: embed(finished_run, tmp_path / "photos", tmp_path / "other", "--texts"), capsys
    )
    assert "have no captions" in said


def test_a_killed_embedding_goes_on(finished_run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pairs = {f"{i:04}": (jpeg(i % 250), f"shade {i}") for i in range(1500)}
    write_shard(tmp_path / "many.tar", pairs)
    words = ("many.tar", "out", "--texts", "--shard-size", "100", "--batch-size", "10")
    command = [sys.executable, "-m", "flaxclip.benchmark", "embed", str(finished_run), *words]
    env = os.environ | {"XLA_FLAGS": ONE_DEVICE}
    first = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL)
    shard = tmp_path / "out/metadata/metadata_00.parquet"
    while not shard.exists() and first.poll() is None:
        time.sleep(0.005)
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/metadata").iterdir()}
    assert shard in kept
    subprocess.run(command, cwd=tmp_path, env=env, check=True, stdout=subprocess.DEVNULL)
    whole = [path for path in kept if path.suffix == ".parquet"]
    assert all(path.stat().st_mtime_ns == kept[path] for path in whole)
    rows, zimg, ztxt = read(tmp_path / "out")
    assert [row["id"] for row in rows] == list(range(1500))
    assert len(zimg) == len(ztxt) == 1500
    # Of the same shade, wherever the run was interrupted.
    np.testing.assert_allclose(zimg[:250], zimg[1000:1250], atol=1e-3)


@pytest.mark.parametrize(("shards", "hosts"), [(7, 3), (2, 4), (1, 1), (0, 2)])
def test_hosts_embed_every_shard_once(shards, hosts):
    parts = [list(shards_of_host(shards, hosts, host)) for host in range(hosts)]
    assert [shard for part in parts for shard in part] == list(range(shards))


def test_search_finds_the_most_similar(embedded, model, tmp_path, capsys):
    rows, zimg, _ = read(embedded)
    query = np.asarray(model.encode_text(["a shade"]))[0]
    expected = np.argsort(-(zimg.astype(np.float32) @ query), kind="stable")[:5]
    found = search(tyro.cli(Search, args=[str(embedded), "a shade", "--count", "5"]))
    assert [row["id"] for row in found] == [rows[i]["id"] for i in expected]
    assert "mine.tar/" in capsys.readouterr().out
    (tmp_path / "query.jpg").write_bytes(jpeg(6 * 30))
    found = search(tyro.cli(Search, args=[str(embedded), "--image", str(tmp_path / "query.jpg")]))
    assert found[0]["similarity"] == pytest.approx(1, abs=2e-3)
    assert 30 in [row["id"] for row in found[:3]]
    capsys.readouterr()
    found = search(tyro.cli(Search, args=[str(embedded), "a shade " * 30, "--count", "99"]))
    assert len(found) == COUNT - 1
    assert "the text is too long for the model and lost its end" in capsys.readouterr().out
    words = [str(embedded), rows[9]["caption"], "--over", "text"]
    best = search(tyro.cli(Search, args=words))[0]
    assert best["similarity"] == pytest.approx(1, abs=2e-3)


def test_faiss_finds_the_same(embedded):
    pytest.importorskip("faiss", reason="pip install 'flaxclip[faiss]'")
    folder, query = open_folder(embedded), np.ones(16, np.float32) / 4
    exact = search_exact(folder, "image", query, 5)
    for _ in range(2):  # made, then read from the folder
        found = search_faiss(folder, "image", query, 5)
        np.testing.assert_array_equal(found.rows, exact.rows)
        np.testing.assert_allclose(found.similarities, exact.similarities, atol=1e-3)
    assert (embedded / "image.faiss").exists()
    (embedded / "image.faiss").unlink()


def test_what_cannot_be_gone_on_with_or_searched_is_refused(
    embedded, finished_run, corpus, tmp_path, capsys
):
    def said(call, *arguments):
        return refused(lambda: call(*arguments), capsys)

    def searched(*words):
        return said(lambda: search(tyro.cli(Search, args=list(map(str, words)))))

    more = ("--texts", "--max-unreadable", "0.1")
    other = said(embed, finished_run / "checkpoints/4", corpus, embedded, *more)
    assert "holds other embeddings: step is 8 there, 4 here" in other
    assert "texts is True there, False here" in said(embed, finished_run, corpus, embedded)
    assert "say what to search for" in searched(embedded)
    assert "the text to search for is empty" in searched(embedded, " ")
    assert "--count is 0" in searched(embedded, "a", "--count", "0")
    assert "--count is -1" in searched(embedded, "a", "--count=-1", "--faiss")
    assert "no embeddings.json in" in searched(tmp_path, "a")
    checkpoint = ("--checkpoint", finished_run / "checkpoints/4")
    assert "is not the checkpoint that made" in searched(embedded, "a", *checkpoint)
    assert "cannot read" in searched(embedded, "--image", tmp_path / "nowhere.jpg")
    content = json.loads((embedded / "embeddings.json").read_text())
    (tmp_path / "embeddings.json").write_text(json.dumps(content))
    assert "3 of 3 shards" in searched(tmp_path, "a")
    (tmp_path / "embeddings.json").write_text("{")
    assert "is damaged" in searched(tmp_path, "a")
    percent = ("--max-unreadable", "2")
    assert "--max-unreadable is 2.0" in said(embed, finished_run, corpus, tmp_path, *percent)
    assert "shard_size is 0" in said(embed, finished_run, corpus, tmp_path, "--shard-size", "0")
