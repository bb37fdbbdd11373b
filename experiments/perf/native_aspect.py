"""Squares against images at their own aspect ratio, at equal FLOPs, on images of 1:4 to 4:1.

    python experiments/perf/native_aspect.py OUT

One small model is trained on the built-in wide scenes in several ways, each from the same seeds, at
as many patches a step and as many steps, and measured by `flaxclip.benchmark` on combinations of
colour and shape that it has not seen. What differs is what it sees of an image, in training and
evaluation: the square in its middle, all of it squashed to a square, or all of it at its own aspect
ratio, in as many patches as the square has. In the last way, lengths differ from step to step
besides, at the same budget of patches.

Printed are the FLOPs of a step and the mean of each score with its 95% interval, by Student's t,
over the seeds; and of the last ways the gain over each square, seed by seed. Runs that are finished
are not repeated.
"""

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Annotated, Literal

import tyro
from teachers import interval, run

from flaxclip.run.command_line import TrainCommand, parse
from flaxclip.train_step import step_flops

Way = Literal["middle", "squashed", "native", "lengths"]
SQUARES: tuple[Way, ...] = ("middle", "squashed")
FLAGS: dict[Way, tuple[str, ...]] = {
    "middle": ("--preprocess.resize", "shortest"),
    "squashed": ("--preprocess.resize", "squash"),
    "native": ("--preprocess.resize", "native"),
    "lengths": ("--preprocess.resize", "native", "--data.sequence-lengths", "8", "16", "32"),
}
TASK = "scenes-wide"


@dataclasses.dataclass(frozen=True)
class Trial:
    """What is trained and measured."""

    out: Annotated[Path, tyro.conf.Positional]
    """Folder of the runs."""
    ways: tuple[Way, ...] = ("middle", "squashed", "native", "lengths")
    steps: int = 1000
    seeds: int = 3
    flags: tuple[str, ...] = ()
    """Further flags of all runs, such as batch-size=64."""


def arguments(trial: Trial, way: Way, seed: int) -> list[str]:
    common = [word for flag in trial.flags for word in f"--{flag}".split("=", 1)]
    return [
        *("quickstart", "--data.path", "scenes-wide", "--seed", str(seed)),
        *("--workdir", str(trial.out / f"{way}-{seed}"), "--steps", str(trial.steps)),
        *("--optim.warmup-steps", str(min(150, trial.steps // 4)), "--log-every", "25"),
        *("--checkpoint.every-steps", str(trial.steps), "--shown-pairs", "0"),
        *FLAGS[way],
        *common,
    ]


def measure(trial: Trial, way: Way, seed: int) -> dict[str, float]:
    """Score -> value, after the run; and `step seconds`, the median, and `padding`, the mean."""
    workdir = trial.out / f"{way}-{seed}"
    run("flaxclip.train", *arguments(trial, way, seed))
    if not (workdir / "benchmark").exists():
        out = ("--out", str(workdir / "benchmark"))
        run("flaxclip.benchmark", str(workdir), "--tasks", TASK, *out)
    scores = json.loads((workdir / "benchmark" / f"{TASK}.json").read_text())["scores"]
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {name: score["value"] for name, score in scores.items()} | {
        "step seconds": statistics.median(line["step_seconds"] for line in lines[1:] or lines),
        "padding": statistics.fmean(line.get("padding_share", 0.0) for line in lines),
    }


def outcome(gains: list[float]) -> str:
    """In words: whether the interval of the mean gain leaves out zero."""
    if len(gains) < 2:
        return "one seed tells nothing"
    mean, half = (float(part) for part in interval(gains).split("±"))
    if abs(mean) <= half:
        return "no difference was found"
    return "better" if mean > 0 else "worse"


def main(trial: Trial) -> None:
    for way in trial.ways:
        words = arguments(trial, way, seed=1)
        config = parse(TrainCommand, words, "flaxclip.train", None).config
        print(f"{way:10} {step_flops(config) / 1e9:.3f} GFLOPs a step, places filled", flush=True)
    found: dict[Way, list[dict[str, float]]] = {way: [] for way in trial.ways}
    for seed in range(1, trial.seeds + 1):
        for way in trial.ways:
            found[way].append(measure(trial, way, seed))
    for score in found[trial.ways[0]][0]:
        values = {way: [one[score] for one in runs] for way, runs in found.items()}
        for way, of_seeds in values.items():
            print(f"{score:32} {way:10} {interval(of_seeds)}")
        for way in trial.ways:
            for square in SQUARES:
                if way in SQUARES or square not in values or score in ("step seconds", "padding"):
                    continue
                gains = [a - b for a, b in zip(values[way], values[square], strict=True)]
                print(
                    f"{score:32} {way} over {square}: {interval(gains)}, {outcome(gains)} "
                    f"in {len(gains)} seeds of {trial.steps} steps"
                )


if __name__ == "__main__":
    main(tyro.cli(Trial, description=__doc__))
