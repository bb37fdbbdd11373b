"""The benchmark's command, killed in a task of every reader and started again."""

import collections
import json
import os
import re
import subprocess
import sys

from tests.helpers.published_sets import CORPORA, TASKS
from tests.helpers.xla_flags import ONE_DEVICE

WORDS = {"class_names": ["circle", "square", "star"], "templates": ["a photo of a {}"]}
OF_ONE_SET = {
    "wds": "wds:wds_scenes",
    "parquet": "parquet:scenes_table",
    "folder": "folder:scenes_folder",
}
"""The same images: their results get names of their own."""
SETS_OF_IMAGES = {"ood_imagenet": 4, "ood_cifar10": 3}
"""Where it is not one: the images of known classes of the first are those of `babel-imagenet`."""


def test_a_measurement_killed_anywhere_ends_with_the_same_scores(finished_run, tmp_path):
    env = os.environ | {"PYTHONPATH": os.getcwd(), "XLA_FLAGS": ONE_DEVICE}
    env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}  # every process compiles the same
    for script in ("make_published_sets.py", "make_small_sets.py"):
        command = [sys.executable, CORPORA / script, "--images", "24", "--out", "."]
        subprocess.run(command, cwd=tmp_path, env=env, check=True)
    # Two sets of one name would have results of one name.
    (tmp_path / "scenes").rename(tmp_path / "scenes_table")
    readers = TASKS | OF_ONE_SET
    tasks = [readers[name] for name in sorted(readers, key=lambda name: name == "imagenet-ood")]
    labelled = ("imagenet-c-3", "imagenet-w", "ood_imagenet", "ood_cifar10")
    (tmp_path / "words.json").write_text(json.dumps(dict.fromkeys(labelled, WORDS)))

    def measure(program, out):
        words = [
            sys.executable, "-m", program, finished_run, "--data", ".", "--batch-size", "4",
            "--prompt-file", "words.json", "--cache", f"{out}/cache", "--out", out,
            "--tasks", *tasks,
        ]  # fmt: skip
        done = subprocess.run(
            words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return collections.Counter(re.findall(r"(?m)^(.*), zero-shot: [\d,]+ images$", done.stdout))

    measured = measure("flaxclip.benchmark", "straight")
    assert len(measured) == len(tasks)
    # Killed once in every set of images, and what was done is not done again.
    begun = measure("tests.helpers.killed_measurements", "killed")
    assert begun == {task: 1 + SETS_OF_IMAGES.get(task, 1) for task in measured}
    for task in measured:
        scores = [
            json.loads((tmp_path / out / f"{task}.json").read_text())["scores"]
            for out in ("killed", "straight")
        ]
        assert scores[0] == scores[1]
    assert not list(tmp_path.rglob("*.partial"))
