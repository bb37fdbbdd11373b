"""Everything that can be wrong with a corpus, done to a real one: counted, named, nothing lost.

Tars that are cut or are none are refused when they are indexed: see test_webdataset.py.
"""

import contextlib
import io
import itertools
import json
import os
import re
import resource
import struct
import tarfile
import tempfile
import zlib
from pathlib import Path

import jax
import pytest
from PIL import Image

from flaxclip.checkpoint.manager import CheckpointConfig
from flaxclip.data.config import DataConfig
from flaxclip.data.loader import load_batches
from flaxclip.data.sources.corpus import CorpusConfig, open_corpus
from flaxclip.data.sources.source import UnreadableExampleError
from flaxclip.data.sources.tars.webdataset import WebDatasetSource
from flaxclip.errors import InputError
from flaxclip.models.spec import ModelSpec
from flaxclip.sharding import MeshConfig, make_mesh
from flaxclip.train import train
from tests.helpers.tiny_run import TINY_MODEL, tiny_config


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def jpeg(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((24, 24), 60 + number % 50).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()


def bomb(width: int = 10_000, height: int = 10_000) -> bytes:
    """A PNG of 100 million white pixels in 100 KB: all of it valid."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    packer = zlib.compressobj(9)
    rows = (b"\0" + b"\xff" * 3 * width for _ in range(height // 10))
    data = b"".join(packer.compress(row) for row in rows) + packer.flush()
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def write_shards(folder: Path, shards: int = 4, size: int = 50, damaged=None) -> str:
    """`damaged`: number of an example -> extension -> data, None for no such member."""
    folder.mkdir(exist_ok=True)
    for shard in range(shards):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for number in range(shard * size, (shard + 1) * size):
                members = {"jpg": jpeg(number), "txt": b"caption %d" % number}
                for extension, data in (members | (damaged or {}).get(number, {})).items():
                    if data is not None:
                        info = tarfile.TarInfo(f"{number:06}.{extension}")
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
    return str(folder / "*.tar")


def batches(source, stop=10, batch_size=16, start=0):
    return load_batches(
        DataConfig(workers=0),
        ModelSpec(TINY_MODEL),
        source,
        make_mesh(MeshConfig()),
        batch_size=batch_size,
        seed=0,
        start_step=start,
        stop_step=stop,
    )


def replaced(source, epochs=1) -> dict[str, str]:
    """Name -> reason of all examples replaced while the whole corpus is gone through."""
    names = list(
        itertools.chain.from_iterable(
            loaded.replaced for loaded in batches(source, stop=-(-len(source) * epochs // 16))
        )
    )
    return dict(name.split(": ", 1) for name in names)


DAMAGE = {
    3: ({"jpg": jpeg(3)[:300]}, "broken image"),
    60: ({"jpg": b""}, "empty image file"),
    61: ({"jpg": b"<html>404</html>"}, "not a JPEG"),
    62: ({"txt": b"caf\xe9"}, "not UTF-8"),
    99: ({"txt": b" \n"}, "empty caption"),
    110: ({"txt": None, "json": b'{"caption": '}, "broken JSON"),
    111: ({"txt": None, "json": b'{"caption": ["", null]}'}, "empty caption"),
    199: ({"jpg": None, "png": bomb()}, "10000 × 10000 pixels, more than the limit"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # of 10^8 pixels
def test_every_damaged_example_is_replaced_named_and_nothing_else_is(tmp_path):
    damaged = {number: members for number, (members, _) in DAMAGE.items()}
    lonely = {100: {"jpg": None}, 101: {"txt": None}, 150: {"txt": None}}
    source = WebDatasetSource(write_shards(tmp_path / "shards", damaged=damaged | lonely))
    assert len(source) == 197
    assert source.shards["captions_without_image"].tolist() == [0, 0, 1, 0]
    assert source.shards["images_without_caption"].tolist() == [0, 0, 1, 1]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = replaced(source)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert set(found) == {f"{number // 50}.tar/{number:06}" for number in DAMAGE}
    for number, (_, reason) in DAMAGE.items():
        assert reason in found[f"{number // 50}.tar/{number:06}"]
    # The bomb's pixels would take 300,000 KiB.
    assert grown < 150_000


def test_training_goes_on_and_says_how_many_examples_were_broken_and_where(tmp_path, capsys):
    # All of shard 1, and two in a hundred of the others.
    damaged = {n: {"jpg": b"broken"} for n in [*range(30, 60), *range(7, 240, 50)]}
    path = write_shards(tmp_path / "shards", shards=8, size=30, damaged=damaged)
    data, never = DataConfig(path=(path,), workers=0), CheckpointConfig(every_steps=10**9)
    train(tiny_config(tmp_path / "run", steps=15, data=data, checkpoint=never))
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    told = capsys.readouterr().out
    # Every broken example once, and again those drawn in place of one.
    total = lines[-1]["replaced_records"]
    assert len(damaged) <= total <= len(damaged) + 12
    assert told.count("unreadable example, replaced by another: ") == 20
    assert "further unreadable examples are only counted, by shard" in told
    (summary,) = [line for line in told.splitlines() if "unreadable examples were replaced" in line]
    counts = dict(re.findall(r"(\d\.tar) (\d+)", summary))
    assert summary.startswith(f"{total} unreadable examples were replaced: 1.tar ")
    assert sum(map(int, counts.values())) == total
    assert int(counts["1.tar"]) >= 30
    assert set(counts) == {f"{number // 30}.tar" for number in damaged}


def test_a_corpus_that_is_broken_as_a_whole_stops_the_run(tmp_path):
    damaged = {number: {"jpg": b"broken"} for number in range(100)}
    source = WebDatasetSource(write_shards(tmp_path / "shards", shards=2, damaged=damaged))
    with pytest.raises(InputError, match="16 examples in a row are unreadable; the first: "):
        next(batches(source))


@pytest.mark.parametrize("change", ["delete", "rewrite", "cut", "deny"])
def test_a_shard_that_is_taken_away_or_changed_during_training(tmp_path, change):
    with _others_may_read(tmp_path) as folder:
        path = write_shards(folder / "shards", shards=8)
        source = WebDatasetSource(path)
        shard = folder / "shards/3.tar"
        loader = batches(source, stop=25)
        next(loader)
        if change == "delete":
            shard.unlink()
        elif change == "rewrite":
            shard.write_bytes(shard.read_bytes())
            os.utime(shard, ns=(1, 1))
        elif change == "cut":
            os.truncate(shard, 5000)
        else:
            shard.chmod(0)
        with _nobody() if change == "deny" else contextlib.nullcontext():
            names = [name for loaded in loader for name in loaded.replaced]
    reason = "has changed since it was indexed"
    if change in ("delete", "deny"):  # the shard was open, and an open file stays as it is
        assert names == []
    else:
        assert all(name.startswith("3.tar/") and reason in name for name in names)
        assert 30 <= len({name.split(":")[0] for name in names}) <= 50


@pytest.mark.parametrize("kind", ["tar", "folder"])
def test_files_that_may_not_be_read_make_their_examples_unreadable_and_no_other(tmp_path, kind):
    with _others_may_read(tmp_path) as folder:
        if kind == "tar":
            source = WebDatasetSource(write_shards(folder / "shards", shards=2))
            denied, others = folder / "shards/1.tar", range(50)
        else:
            (folder / "photos").mkdir()
            for number in range(3):
                (folder / f"photos/{number}.jpg").write_bytes(jpeg(number))
                (folder / f"photos/{number}.txt").write_text(f"caption {number}")
            source = open_corpus(CorpusConfig((str(folder / "photos"),)), 16)
            denied, others = folder / "photos/2.jpg", range(2)
        denied.chmod(0)
        with _nobody():
            assert [source[n].captions for n in others] == [(f"caption {n}",) for n in others]
            with pytest.raises(UnreadableExampleError, match="Permission denied"):
                source[len(source) - 1]


@contextlib.contextmanager
def _others_may_read(tmp_path):
    # Not pytest's own folder, which is closed to others.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@contextlib.contextmanager
def _nobody():
    """Tests may run as root, to whom nothing is denied."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


def test_one_broken_example_among_a_batch_costs_that_example_alone(tmp_path):
    path = write_shards(tmp_path / "good", shards=1)
    whole = WebDatasetSource(path)
    broken = WebDatasetSource(write_shards(tmp_path / "bad", 1, damaged={20: {"jpg": b"x"}}))
    differing = 0
    for one, other in zip(batches(whole, 3), batches(broken, 3), strict=True):
        ours, theirs = jax.device_get((one.batch.tokens, other.batch.tokens))
        differing += int((ours != theirs).any(axis=1).sum())
    assert differing <= 1
