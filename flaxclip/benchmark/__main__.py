"""Measure a checkpoint.

    python -m flaxclip.benchmark runs/quickstart
    python -m flaxclip.benchmark runs/mine --tasks clip27 retrieval --data DATASETS --out results
    python -m flaxclip.benchmark runs/mine --images photos --labels "cat,dog"
    python -m flaxclip.benchmark runs/mine --watch
    python -m flaxclip.benchmark report results other_results --out page.html

With `--debug`, an error says where in the code it arose.
"""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro

from flaxclip.api import CLIPModel, load
from flaxclip.benchmark.embeddings import Embedder
from flaxclip.benchmark.measure import Measured, Method, Settings, measure_tasks
from flaxclip.benchmark.own_pictures import name_pictures, own_task
from flaxclip.benchmark.results import print_table, write_text
from flaxclip.benchmark.tasks import PromptSet, Task, default_tasks, find_tasks
from flaxclip.benchmark.watch import watch
from flaxclip.checkpoint import load_config, resolve_checkpoint
from flaxclip.data.loader import DataConfig
from flaxclip.errors import InputError, exit_on_input_error
from flaxclip.sharding import join_hosts


@dataclasses.dataclass(frozen=True)
class Command:
    """Measure a checkpoint, zero-shot or with probes. `report DIR...` makes a page of results."""

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """Workdir of a training run (its latest step), WORKDIR/checkpoints/STEP, or anything else that
    `flaxclip.load` takes."""
    tasks: tuple[str, ...] = ()
    """Tasks and suites, or data of your own: retrieval:SHARDS, wds:DIR, folder:DIR, parquet:FILE,
    tfds:NAME. None: those of the data that the checkpoint was trained on."""
    images: Path | None = None
    """Instead of tasks: a folder of your own pictures. Sub-folders named like labels are scored;
    pictures that lie in it as they are get predictions."""
    labels: str = ""
    """With --images: what they can be, with commas between. None: the names of sub-folders."""
    data: Path = Path("data")
    """Folder of data sets: `wds_*` folders, those that TFDS prepared, and others."""
    out: Path | None = None
    """Folder for results. None: WORKDIR/benchmark/STEP."""
    methods: tuple[Method, ...] = ("zero-shot",)
    """Also linear-probe, few-shot and knn, for tasks with a training split."""
    prompts: PromptSet = "clip_benchmark"
    """Whose class names and templates."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of activations. None: as in training. With bfloat16 the distance from float32 is reported."""
    batch_size: int = 256
    """Pictures at once on this host."""
    cache: Path = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "flaxclip" / "embeddings"
    """Folder for embeddings, so that the next task on the same pictures costs nothing."""
    watch: bool = False
    """Measure every checkpoint of the run, and each new one as it lands, until the run's last."""


def main() -> None:
    """The command line."""
    with exit_on_input_error("flaxclip.benchmark"):
        if sys.argv[1:2] == ["report"]:
            from flaxclip.benchmark.report import report_command

            report_command(sys.argv[2:])
            return
        command = tyro.cli(Command, prog="python -m flaxclip.benchmark", description=__doc__)
        join_hosts()
        if command.watch:
            watch(command.checkpoint, lambda step: run(_at_step(command, step)))
        else:
            run(command)


def _at_step(command: Command, step: int) -> Command:
    workdir = Path(command.checkpoint)
    out = None if command.out is None else command.out / str(step)
    return dataclasses.replace(
        command, checkpoint=str(workdir / "checkpoints" / str(step)), out=out
    )


def run(command: Command) -> Measured:
    """Measure, print a table, and write a JSON file, arrays and pictures for each task.

    Raises:
        InputError: no such checkpoint or task, data that cannot be used, a folder that cannot be
            written, or no task at all whose data is on this machine.
    """
    if command.batch_size < 1:
        raise InputError(f"batch size is {command.batch_size}\nit must be at least 1")
    try:
        workdir, step = resolve_checkpoint(command.checkpoint)
    except InputError:
        if not Path(command.checkpoint).is_file():
            raise
        workdir, step = None, None  # foreign weights: `load` knows them
    tasks = _tasks(command, workdir)
    model = _with_dtype(load(command.checkpoint), command.dtype)
    out = command.out or Path(workdir or Path(command.checkpoint).parent) / "benchmark" / str(
        Path(command.checkpoint).stem if step is None else step
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot write results into {out}: {error.strerror}\nname another folder with --out"
        ) from None

    embedder = Embedder(model, command.batch_size, command.cache.expanduser())
    checkpoint = {"path": str(workdir or command.checkpoint), "step": step}
    if command.images is not None and command.labels and not _has_folders(command):
        name_pictures(embedder, command.images, command.labels, out)
        return Measured([], {})
    settings = Settings(command.data, out, command.prompts, command.methods)
    measured = measure_tasks(embedder, checkpoint, tasks, settings, _say)
    if jax.process_index() == 0:
        _summarise(measured, checkpoint, out)
    if not measured.records and measured.missing:
        raise InputError(next(iter(measured.missing.values())))
    return measured


def _tasks(command: Command, workdir: Path | None) -> list[Task]:
    if command.images is not None:
        return [own_task(command.images, command.labels)] if _has_folders(command) else []
    if command.labels:
        raise InputError("--labels without --images\nsay which pictures they are for")
    if command.tasks:
        return find_tasks(command.tasks)
    return default_tasks(None if workdir is None else load_config(workdir, "data", DataConfig))


def _has_folders(command: Command) -> bool:
    if not command.images.is_dir():
        raise InputError(f"--images {command.images} is no folder\nname a folder of pictures")
    folders = any(path.is_dir() for path in command.images.iterdir())
    if not folders and not command.labels:
        raise InputError(
            f"{command.images} has no sub-folders, and no --labels are given\n"
            'say what the pictures can be, e.g. --labels "cat,dog"'
        )
    return folders


def _with_dtype(model: CLIPModel, dtype: str | None) -> CLIPModel:
    if dtype is None or dtype == model.config.dtype:
        return model
    return CLIPModel(dataclasses.replace(model.config, dtype=dtype), model.variables)


def _say(line: str) -> None:
    if jax.process_index() == 0:
        print(line, flush=True)


def _summarise(measured: Measured, checkpoint: dict, out: Path) -> None:
    step = "" if checkpoint["step"] is None else f", step {checkpoint['step']}"
    print(f"{checkpoint['path']}{step}")
    if measured.records:
        print_table(measured.records)
    for record in measured.records:
        for picture in record["unreadable"]:
            print(f"{record['task']}: counted as black, because unreadable: {picture}")
        for note in record["notes"]:
            print(f"{record['task']}: {note}")
    for message in measured.missing.values():
        print(f"left out: {message}")
    missing = out / "missing.txt"
    write_text(missing, "\n\n".join(measured.missing.values()) + "\n")
    if not measured.missing:
        missing.unlink()
    print(f"results and pictures: {out}")


if __name__ == "__main__":
    main()
