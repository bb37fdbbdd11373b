"""What a step costs that learns from stored vectors, against one without a teacher.

    python experiments/perf/stored_vectors.py OUT
    python experiments/perf/stored_vectors.py OUT --batch-size 32 --examples 256 --steps 8

Built-in scenes are prepared with the vectors of teachers whose weights are random: what they cost
does not depend on what they know. Two ways of training on these same shards, with the vectors and
without, then take turns. Printed are the seconds of the fastest step on a batch that is on the
devices already, those of the mean step with loading, and the ratio, in each turn and the median of
all: on a machine that does nothing else. `--width` and `--teachers` say how large the vectors are,
`--crops` how many of them are stored for one that is drawn.
"""

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import tyro

from flaxclip.config import TrainConfig
from flaxclip.data.config import DataConfig
from flaxclip.data.images.train_transform import AugmentConfig
from flaxclip.data.loader import load_batches
from flaxclip.data.prepare.scan import Recipe, scan_examples
from flaxclip.data.prepare.write_shards import write_shard
from flaxclip.data.reinforced.reinforce import Reinforcing
from flaxclip.data.sources.corpus import CorpusConfig, open_corpus
from flaxclip.interop.export import export
from flaxclip.models.clip import init_variables
from flaxclip.models.spec import ModelSpec
from flaxclip.planning.compute_choice import choose_compute
from flaxclip.run.experiment import load_experiment
from flaxclip.run.parts import RunParts, open_parts
from flaxclip.teachers.encoder import open_encoder
from flaxclip.train_state import TrainState, init_train_state
from flaxclip.train_step import TrainStep, compile_train_step

WARM = 3
"""Steps of a turn that are not timed: the batches that are loaded before the first."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """What is compared."""

    out: Annotated[Path, tyro.conf.Positional]
    """Folder of the teachers and the shards; what is there is not made again."""
    experiment: str = "quickstart"
    """Model, batch and optimizer."""
    batch_size: int | None = None
    width: int = 768
    """Numbers of a teacher's embedding."""
    teachers: int = 2
    crops: int = 10
    examples: int = 2048
    steps: int = 20
    """Of a turn, timed."""
    turns: int = 5
    """Of each of the two."""
    workers: int | None = None


class Way(NamedTuple):
    """A way of training, compiled."""

    config: TrainConfig
    parts: RunParts
    step: TrainStep


def prepare(trial: Trial, shard: Path) -> None:
    """One shard of scenes with the vectors of `trial`."""
    model = load_experiment(trial.experiment).model
    encoders = []
    for number in range(trial.teachers):
        path = trial.out / f"teacher-{number}-{trial.width}"
        if not path.exists():
            wide = dataclasses.replace(model, embed_dim=trial.width)
            variables = init_variables(jax.random.key(number), wide)
            export(ModelSpec(wide), variables, path, "open_clip", overwrite=False)
        encoders.append(open_encoder(str(path)))
    stored = Reinforcing(
        tuple(encoders), trial.crops, None, "bfloat16", AugmentConfig(), seed=0, batch_size=64
    )
    recipe = Recipe(CorpusConfig(("scenes",)), reinforcing=stored)
    source = open_corpus(recipe.corpus, model.vision.image_size)
    rows = scan_examples(source, recipe, range(trial.examples)).rows
    written = shard.with_suffix(".part")
    write_shard(source, recipe, rows, written)
    written.rename(shard)


def compiled(trial: Trial, shard: Path, teacher_vectors: bool) -> Way:
    config = load_experiment(trial.experiment)
    data = DataConfig((str(shard),), teacher_vectors=teacher_vectors, workers=trial.workers)
    size = trial.batch_size or config.batch_size
    config = dataclasses.replace(config, data=data, batch_size=size)
    parts = open_parts(config)
    mesh, tx, schedule, stored = parts.mesh, parts.tx, parts.schedule, parts.stored
    with jax.set_mesh(mesh):
        chosen = choose_compute(config, tx, schedule, mesh, stored)
        step = compile_train_step(chosen, tx, schedule, mesh, parts.abstract_state, stored)
    return Way(chosen, parts, step)


def first_state(way: Way) -> TrainState:
    config, parts = way.config, way.parts
    return init_train_state(jax.random.key(0), config.model, parts.tx, parts.mesh)


@contextlib.contextmanager
def batches_of(way: Way, steps: int) -> Iterator[Any]:
    config = way.config
    feed = load_batches(
        config.data, config.spec, way.parts.source, way.parts.mesh, batch_size=config.batch_size,
        seed=0, start_step=0, stop_step=steps,
    )  # fmt: skip
    with contextlib.closing(feed):
        yield (loaded.batch for loaded in feed)


def seconds_with_loading(ways: Sequence[Way], steps: int) -> list[float]:
    """Of each way the mean seconds of `steps` steps after the first `WARM`."""
    return [_mean_with_loading(way, steps) for way in ways]


def _mean_with_loading(way: Way, steps: int) -> float:
    state, start = first_state(way), 0.0
    with batches_of(way, WARM + steps) as batches:
        for number, batch in enumerate(batches, 1):
            state, metrics = way.step(state, batch)
            jax.block_until_ready(metrics)
            if number == WARM:
                start = time.perf_counter()
    return (time.perf_counter() - start) / steps


def seconds_on_devices(ways: Sequence[Way], steps: int) -> list[float]:
    """Of each way the fastest step on a batch that lies on the devices; they take turns by the
    step, so that what else the machine does slows both.
    """
    states, batches, found = [first_state(way) for way in ways], [], [[] for _ in ways]
    for way in ways:
        with batches_of(way, 1) as loaded:
            batches.append(next(loaded))
    for _ in range(WARM + steps):
        for number, way in enumerate(ways):
            start = time.perf_counter()
            states[number], metrics = way.step(states[number], batches[number])
            jax.block_until_ready((states[number], metrics))
            found[number].append(time.perf_counter() - start)
    return [min(seconds[WARM:]) for seconds in found]


def main(trial: Trial) -> None:
    trial.out.mkdir(parents=True, exist_ok=True)
    name = f"{trial.examples}-{trial.teachers}x{trial.width}-{trial.crops}.array_record"
    shard = trial.out / name
    if not shard.exists():
        prepare(trial, shard)
    print(f"{shard}: {shard.stat().st_size / trial.examples:,.0f} bytes an example", flush=True)
    alone, taught = (compiled(trial, shard, vectors) for vectors in (False, True))
    with jax.set_mesh(alone.parts.mesh):
        for what, seconds in (
            ("on the devices", seconds_on_devices), ("with loading", seconds_with_loading)
        ):  # fmt: skip
            ratios = []
            for turn in range(trial.turns):
                # Who is first changes from turn to turn, as the machine's speed does.
                ways = (alone, taught) if turn % 2 == 0 else (taught, alone)
                without, stored = seconds(ways, trial.steps)[:: 1 if turn % 2 == 0 else -1]
                ratios.append(stored / without)
                print(
                    f"{what}: alone {without:.4f} s, stored {stored:.4f} s, ratio {ratios[-1]:.3f}",
                    flush=True,
                )
            print(
                f"{what}: stored vectors take {statistics.median(ratios):.3f} times the time, "
                f"{min(ratios):.3f} to {max(ratios):.3f} in {trial.turns} turns",
                flush=True,
            )


if __name__ == "__main__":
    main(tyro.cli(Trial, description=__doc__))
