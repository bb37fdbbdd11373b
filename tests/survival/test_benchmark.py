"""The benchmark's command, killed in a task of each family of readers and started again."""

import collections
import json
import os
import re
import subprocess
import sys

from tests.helpers.published_sets import CORPORA, TASKS
from tests.helpers.xla_flags import ONE_DEVICE

KILLED_IN = ("retrieval", "winoground", "valse", "fairface", "docci", "crossmodal3600")
WORDS = {"class_names": ["circle", "square", "star"], "templates": ["a photo of a {}"]}


def test_a_measurement_killed_anywhere_ends_with_the_same_scores(finished_run, tmp_path):
    env = os.environ | {"PYTHONPATH": os.getcwd(), "XLA_FLAGS": ONE_DEVICE}
    script = [sys.executable, CORPORA / "make_published_sets.py", "--images", "24"]
    subprocess.run([*script, "--out", tmp_path / "data"], env=env, check=True)
    # Those of `make_small_sets.py` are killed while they are copied: `test_benchmark_layouts.py`.
    own = {"wds", "tfds", "folder", "parquet", "scenes"}
    tasks = [task for reader, task in TASKS.items() if reader not in own]
    labelled = ("imagenet-c-3", "imagenet-w", "ood_imagenet", "ood_cifar10")
    (tmp_path / "words.json").write_text(json.dumps(dict.fromkeys(labelled, WORDS)))

    def start(out):
        words = [
            sys.executable, "-m", "flaxclip.benchmark", finished_run, "--data", "../data",
            "--prompt-file", "../words.json", "--cache", "cache", "--out", ".", "--tasks", *tasks,
        ]  # fmt: skip
        (tmp_path / out).mkdir(exist_ok=True)
        if "pairs.tar" not in os.listdir(tmp_path / out):
            (tmp_path / out / "pairs.tar").symlink_to("../data/pairs.tar")
        return subprocess.Popen(
            words, cwd=tmp_path / out, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip

    begun = collections.Counter()
    for killed in (*KILLED_IN, None):
        said = []
        with start("killed") as process:
            for line in process.stdout:
                said.append(line)
                if found := re.match(r"(.*), zero-shot: [\d,]+ images", line):
                    begun[found[1]] += 1
                    if found[1] == killed:
                        process.kill()
                        break
        assert process.returncode == (-9 if killed else 0), "".join(said)
    # What was done is not done again.
    assert {task for task, times in begun.items() if times > 1} <= set(KILLED_IN)
    assert len(begun) == len(tasks)

    whole = start("straight")
    said, _ = whole.communicate()
    assert whole.returncode == 0, said
    for task in begun:
        scores = [
            json.loads((tmp_path / out / f"{task}.json").read_text())["scores"]
            for out in ("killed", "straight")
        ]
        assert scores[0] == scores[1]
    assert not list(tmp_path.rglob("*.partial"))
