"""Hosts that measure together: what one of them cannot do, none goes on with."""

import json
import os
import re
import subprocess
import sys

import pyarrow.parquet as pq

from tests.helpers.image_tables import write_table
from tests.helpers.image_tars import jpeg
from tests.helpers.xla_flags import ONE_DEVICE
from tests.survival.jobs import PATIENCE, ROOT, two_hosts

# Each stretch ends on one host, or on both, in another way; then both come to the next one.
STRETCHES = """
import sys
import jax
import numpy as np
import flaxclip
from flaxclip.benchmark import embeddings
from flaxclip.benchmark.between_hosts import broadcast_from_host_0, together
from flaxclip.benchmark.datasets import MissingDataError
from flaxclip.benchmark.own_images import name_images
from flaxclip.errors import InputError
from flaxclip.exit_codes import PreemptedError
from flaxclip.hosts.connections import join_hosts

join_hosts(120)
host = jax.process_index()

def stretch(*errors):
    try:
        with together():
            if errors[host] is not None:
                raise errors[host]
            # The others wait for this one here.
            print("host 0 says", broadcast_from_host_0(host == 0), flush=True)
        print("ended whole", flush=True)
    except (InputError, PreemptedError) as error:
        print(f"ended by {type(error).__name__}: {error}".replace(chr(10), " / "), flush=True)

stretch(None, InputError("a is damaged"))
stretch(InputError("b is damaged"), None)
stretch(MissingDataError("no c"), MissingDataError("no c"))
stretch(MissingDataError("no d"), InputError("d is damaged"))
stretch(PreemptedError("e is away"), InputError("e is damaged"))
stretch(None, None)
try:
    with together():
        if host == 1:
            raise InputError("after the last collective")
except InputError as error:
    print("ended by", error, flush=True)

# Only host 0 keeps embeddings on disk.
save = embeddings.save_embedded
def full(path, part):
    raise InputError("the disk is full")
embeddings.save_embedded = full
embedder = embeddings.Embedder(flaxclip.load(sys.argv[1]), 4, embeddings.Path(sys.argv[2]))

class Shades:
    identity = "shades"
    def __len__(self):
        return 6
    def __getitem__(self, index):
        return np.full((16, 16, 3), 40 * index, np.uint8)
    def name(self, index):
        return str(index)

for _ in range(2):
    try:
        with together():
            print("embedded", len(embedder.embed_images(Shades()).z), flush=True)
    except InputError as error:
        print("ended by", error, flush=True)
    embeddings.save_embedded = save

photos = embeddings.Path(sys.argv[3])
with together():
    name_images(embedder, photos, ["cat", "dog"], photos)
"""


def test_hosts_end_a_stretch_alike_whatever_happens_to_one(finished_run, tmp_path):
    script, cache, photos = tmp_path / "host.py", tmp_path / "cache", tmp_path / "photos"
    photos.mkdir()
    for shade in range(3):
        (photos / f"{shade}.jpg").write_bytes(jpeg(shade))
    job = two_hosts(script, STRETCHES, str(finished_run), str(cache), str(photos))
    assert job.returncode == 0, job.stdout + job.stderr
    for host in ("0", "1"):
        lines = re.findall(rf"\[host {host}\] ((?:ended|embedded|host 0 says) .*)", job.stdout)
        assert lines == [
            "ended by InputError: host 1: a is damaged",
            "ended by InputError: host 0: b is damaged",
            "ended by MissingDataError: no c",
            "ended by InputError: host 0: no d / host 1: d is damaged",
            "ended by PreemptedError: host 0: e is away / host 1: e is damaged",
            "host 0 says True",
            "ended whole",
            "ended by host 1: after the last collective",
            "ended by host 0: the disk is full",
            "embedded 6",
        ], job.stdout
    # Their images have one account, host 0's.
    assert re.findall(r"\[host (\d)\] 3 images, 0 unreadable", job.stdout) == ["0"]
    header, *rows = (photos / "predictions.csv").read_text().splitlines()
    assert header == "image,prediction,cat,dog"
    assert [row.split(",")[0] for row in rows] == ["0.jpg", "1.jpg", "2.jpg"]


def test_a_file_that_is_damaged_for_one_host_fails_its_task_on_all(
    finished_run, retrieved, tmp_path
):
    """Host 0 alone reads results that are there; host 1 alone the second half of the table."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "scenes-unseen.json").write_text("{")
    shades = range(0, 200, 20)
    for part in range(2):
        table = tmp_path / f"data/shades/test-0000{part}-of-00002.parquet"
        write_table(table, shades, [shade % 3 % 2 for shade in shades])
    column = pq.ParquetFile(table).metadata.row_group(0).column(0)
    assert column.path_in_schema == "image.bytes"
    content = bytearray(table.read_bytes())
    end = column.data_page_offset + 20
    content[column.data_page_offset : end] = bytes(20)
    table.write_bytes(content)
    job = subprocess.run(
        [sys.executable, ROOT / "launch/local_cluster.py", "--patience", "150", "--",
         sys.executable, "-m", "flaxclip.benchmark", str(finished_run / "checkpoints/4"),
         "--tasks", "scenes-unseen", "parquet:shades", "retrieval:mine.tar",
         "--batch-size", "100", "--max-unreadable", "0.05", "--data", str(tmp_path / "data"),
         "--out", str(out), "--cache", str(tmp_path / "cache")],
        cwd=retrieved, env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ONE_DEVICE},
        capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    assert "exit codes 2, 2" in job.stdout, job.stdout + job.stderr
    said = {host: re.findall(rf"\[host {host}\] (.*)", job.stdout) for host in ("0", "1")}
    ours, theirs = ("\n".join(said[host]) for host in ("0", "1"))
    assert "result file" in ours
    assert "host 0: result file" in theirs
    assert re.search(r"host 1: .*test-00001-of-00002\.parquet", ours)
    assert re.search(r"test-00001-of-00002\.parquet", theirs)
    assert "Traceback" not in job.stdout
    # The task after them is measured by both.
    scores = [
        json.loads((folder / "retrieval.json").read_text())["scores"]
        for folder in (out, retrieved / "results")
    ]
    assert scores[0] == scores[1]
