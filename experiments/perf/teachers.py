"""What a small student learns from a larger teacher, at equal steps, and what it costs.

    python experiments/perf/teachers.py OUT                       the built-in scenes
    python experiments/perf/teachers.py OUT --teacher-regression 10
    python experiments/perf/teachers.py OUT --clipart clipart     clip art, held-out pairs
    python experiments/perf/teachers.py OUT --teacher-steps 8 --steps 4 --seeds 2      a short try

A teacher is trained by the experiment as it is. Its vectors are then stored with the examples of
one shard, on which students with a quarter of its FLOPs are trained from the same seeds: alone,
with the teacher beside them (live), and from the stored vectors. The first two read the same shard
without its vectors and draw crops of their own; the third draws from the stored ones. A shard of
scenes has an example for each that a student sees. `clipart` is the folder that
`experiments/corpora/make_clipart_shards.py` writes.

Printed are, of each score of `flaxclip.benchmark` and of the seconds of a step, the mean over the
seeds and its 95% interval by Student's t, and the mean of the differences to the student alone,
seed by seed, with theirs. Each model's scores are kept beside it, and each run goes on from its
last checkpoint: killed and started again, nothing that is finished is done twice.
"""

import dataclasses
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import tyro

from flaxclip.config import TrainConfig
from flaxclip.data.prepare.scan import Recipe, scan_examples
from flaxclip.data.prepare.write_shards import write_shard
from flaxclip.data.reinforced.reinforce import Reinforcing
from flaxclip.data.sources.corpus import CorpusConfig, open_corpus
from flaxclip.models.cost import model_cost
from flaxclip.run.command_line import TrainCommand, parse
from flaxclip.run.experiment import load_experiment
from flaxclip.teachers.encoder import open_encoder

SMALL = {
    "quickstart": (
        "--model.vision.width", "64", "--model.vision.heads", "2",
        "--model.text.width", "32", "--model.text.heads", "1", "--model.text.layers", "1",
    ),
    "clipart": (
        "--model.vision.width", "96", "--model.vision.heads", "2",
        "--model.text.width", "64", "--model.text.heads", "1", "--model.text.layers", "1",
    ),
}  # fmt: skip
TASKS = {"quickstart": ("--tasks", "scenes-unseen", "scenes-shift"), "clipart": ()}
STUDENTS = ("alone", "live", "stored")
# Student's t at 97.5%, by degrees of freedom: Abramowitz and Stegun 1964, table 26.10.
T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


@dataclasses.dataclass(frozen=True)
class Trial:
    """What is trained and measured."""

    out: Annotated[Path, tyro.conf.Positional]
    """Folder of the runs, of one experiment."""
    clipart: Path | None = None
    """Folder of clip-art shards. If None, the built-in scenes are the data."""
    teacher_steps: int = 1000
    steps: int = 300
    """Of each student."""
    seeds: int = 3
    crops: int = 10
    """Stored of each image; of a scene, which is seen whole, one."""
    teacher_weight: float = 1.0
    teacher_regression: float = 0.0
    contrastive_weight: float = 1.0
    flags: tuple[str, ...] = ()
    """Further flags of the students, such as teacher-scale=50."""

    @property
    def experiment(self) -> str:
        return "quickstart" if self.clipart is None else "clipart"

    @property
    def config(self) -> TrainConfig:
        return load_experiment(self.experiment)

    def shards(self, name: str) -> tuple[str, ...]:
        return tuple(map(str, sorted((self.clipart or self.out).glob(f"{name}-*.tar"))))


def store(trial: Trial, teacher: Path) -> Path:
    """The shard of the students, with the teacher's vectors."""
    shard = trial.out / "stored.array_record"
    if shard.exists():
        return shard
    config, scenes = trial.config, trial.clipart is None
    stored = Reinforcing(
        (open_encoder(str(teacher)),), 1 if scenes else trial.crops, None, "bfloat16",
        config.data.augment, seed=0, batch_size=64,
    )  # fmt: skip
    corpus = CorpusConfig(("scenes",) if scenes else trial.shards("train"))
    recipe = Recipe(corpus, reinforcing=stored)
    source = open_corpus(corpus, config.model.vision.image_size)
    examples = trial.steps * config.batch_size if scenes else len(source)
    unfinished = shard.with_suffix(".part")
    write_shard(source, recipe, scan_examples(source, recipe, range(examples)).rows, unfinished)
    unfinished.rename(shard)
    print(f"{shard}: {examples:,} examples, {shard.stat().st_size:,} bytes", flush=True)
    return shard


def train(trial: Trial, workdir: Path, steps: int, *flags: str) -> dict[str, float]:
    """Score -> value, of all tasks; and `step seconds`, the median."""
    kept = workdir / "scores.json"
    if not kept.exists():
        warmup, heldout = min(150, steps // 4), trial.shards("heldout")
        run(
            "flaxclip.train", trial.experiment, "--workdir", str(workdir), "--steps", str(steps),
            "--optim.warmup-steps", str(warmup), "--log-every", "25", "--shown-pairs", "0",
            "--checkpoint.every-steps", "100", "--data.heldout", *heldout, *flags,
        )  # fmt: skip
        out = workdir / "benchmark"
        run("flaxclip.benchmark", str(workdir), *TASKS[trial.experiment], "--out", str(out))
        scores = {
            f"{file.stem} {name}": score["value"]
            for file in sorted(out.glob("*.json"))
            for name, score in json.loads(file.read_text()).get("scores", {}).items()
        }
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        seconds = [json.loads(line)["step_seconds"] for line in lines]
        scores["step seconds"] = statistics.median(seconds[1:] or seconds)
        unfinished = kept.with_suffix(".part")
        unfinished.write_text(json.dumps(scores))
        unfinished.rename(kept)
    found: dict[str, float] = json.loads(kept.read_text())
    return found


def run(module: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", module, *arguments], check=True, stdout=sys.stderr)


def flags_of(trial: Trial, student: str, teacher: Path, shard: Path) -> tuple[str, ...]:
    """What is particular to a student's way of learning."""
    weights = (
        "--teacher-weight", str(trial.teacher_weight),
        "--teacher-regression", str(trial.teacher_regression),
        "--contrastive-weight", str(trial.contrastive_weight),
    )  # fmt: skip
    # Crops are those that are stored; the experiment's own augmentation would have no effect.
    no_crops = ("--data.augment.crop-scale", "0.9", "1.0")
    return {
        "alone": (),
        "live": ("--teacher", str(teacher), *weights),
        "stored": ("--data.teacher-vectors", "True", *no_crops, *weights),
    }[student] + ("--data.path", str(shard))


def interval(values: list[float]) -> str:
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.4f}"
    half = T[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.4f} ± {half:.4f}"


def table(teacher: dict[str, float], found: dict[str, list[dict[str, float]]]) -> str:
    """Markdown: a row for each score."""
    columns = ["", "teacher", *found, *(f"{name} − alone" for name in found if name != "alone")]
    rows = [columns, ["---"] * len(columns)]
    for score in found["alone"][0]:
        values = {name: [one[score] for one in scores] for name, scores in found.items()}
        gains = (
            interval([ours - theirs for ours, theirs in zip(of, values["alone"], strict=True)])
            for name, of in values.items()
            if name != "alone"
        )
        rows.append([score, f"{teacher[score]:.4f}", *map(interval, values.values()), *gains])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main(trial: Trial) -> None:
    if trial.clipart is not None and not (trial.shards("train") and trial.shards("heldout")):
        raise SystemExit(f"{trial.clipart}: no train-*.tar, or no heldout-*.tar, is there")
    trial.out.mkdir(parents=True, exist_ok=True)
    words = [trial.experiment, *SMALL[trial.experiment]]
    small = parse(TrainCommand, words, "flaxclip.train", None).config.model
    ratio = model_cost(small).forward_flops / model_cost(trial.config.model).forward_flops
    print(f"student: {ratio:.3f} of the teacher's FLOPs", flush=True)
    teacher = trial.out / "teacher"
    own_data = ("--data.path", *trial.shards("train")) if trial.clipart else ()
    of_teacher = train(trial, teacher, trial.teacher_steps, *own_data)
    shard = store(trial, teacher)
    further = [word for flag in trial.flags for word in (f"--{flag}".split("=", 1))]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in STUDENTS}
    for seed in range(1, trial.seeds + 1):
        for student, scores in found.items():
            own = flags_of(trial, student, teacher, shard)
            flags = (*SMALL[trial.experiment], "--seed", str(seed), *own, *further)
            scores.append(train(trial, trial.out / f"{student}-{seed}", trial.steps, *flags))
    print(table(of_teacher, found))


if __name__ == "__main__":
    main(tyro.cli(Trial, description=__doc__))
