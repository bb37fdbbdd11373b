"""Measure a checkpoint.

    python -m flaxclip.benchmark runs/quickstart
    python -m flaxclip.benchmark runs/mine --tasks clip27 retrieval --data DATASETS --out results
    python -m flaxclip.benchmark runs/mine --images photos --labels "cat,dog"
    python -m flaxclip.benchmark runs/mine --images photos --labels "cat, black" "cat, white" dog
    python -m flaxclip.benchmark runs/mine --watch
    python -m flaxclip.benchmark report results other_results --out page.html

With `--debug`, an error says where in the code it arose.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro

from flaxclip.api import CLIPModel, read_model
from flaxclip.benchmark.checkpoint import Checkpoint, find_checkpoint, results_of_run
from flaxclip.benchmark.embeddings import MAX_UNREADABLE, Embedder
from flaxclip.benchmark.measure import Measured, Method, Settings, measure_tasks
from flaxclip.benchmark.own_images import name_images, own_task, split_labels
from flaxclip.benchmark.prompts import read_prompts
from flaxclip.benchmark.readers.folder import class_folders
from flaxclip.benchmark.report.exports import write_events
from flaxclip.benchmark.report.report import write_report
from flaxclip.benchmark.results import (
    MeasuredCheckpoint,
    print_table,
    unreadable_lines,
    write_text,
)
from flaxclip.benchmark.tasks import PromptSet, Task, find_tasks
from flaxclip.checkpoint.layout import CHECKPOINTS, load_config, saved_steps
from flaxclip.errors import InputError
from flaxclip.hosts.connections import join_hosts
from flaxclip.interop.archives.state_dicts import WhichWeights

Dtype = Literal["float32", "bfloat16"]
POLL_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class Command:
    """Measure a checkpoint, zero-shot or with probes. `report DIR...` makes a page of results."""

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """Workdir of a training run (its latest step), WORKDIR/checkpoints/STEP, or anything else that
    `flaxclip.load` takes."""
    model: str | None = None
    """Architecture of others' weights, where their file does not tell."""
    tokenizer: str | None = None
    """File of SigLIP's or LiT's vocabulary, where it does not lie beside the weights."""
    weights: WhichWeights | None = None
    """Of a checkpoint with weights and their average (EMA). If None, the average."""
    tasks: tuple[str, ...] = ()
    """Tasks and suites, or data of your own: retrieval:SHARDS, wds:DIR, wds-multilabel:DIR,
    wds-retrieval:DIR, folder:DIR, parquet:FILE, tfds:NAME. If None, those of the data that the
    checkpoint was trained on."""
    images: Path | None = None
    """Instead of tasks: a folder of your own images. Sub-folders named like labels are scored;
    images that lie in it as they are get predictions."""
    labels: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction] = ()
    """With --images: what they can be, as a list with commas between ("cat,dog"); or one by one
    where labels have commas themselves (--labels "cat, black" dog). If None, the names of
    sub-folders."""
    max_unreadable: float = MAX_UNREADABLE
    """Share of a task's images that may be unreadable, and count as black; with more it fails."""
    data: Path = Path("data")
    """Folder of data sets: `wds_*` folders, those that TFDS prepared, and others."""
    out: Path | None = None
    """Folder for results. If None, WORKDIR/benchmark/STEP. Scores of a run's steps, for
    TensorBoard, are beside it."""
    methods: tuple[Method, ...] = ("zero-shot",)
    """Also linear-probe, few-shot and knn, for tasks with a training split."""
    prompts: PromptSet = "clip_benchmark"
    """Whose class names and templates."""
    prompt_file: Path | None = None
    """Your own, before those: JSON of task -> {"class_names": [...], "templates": ["a {}", ...]}, a
    list of templates, or a dict of class -> its own prompts. A class can be a list of names that
    mean the same, and a name can say what it is a kind of: "animal > dog"."""
    dtype: Dtype | None = None
    """Of activations. If None, as in training. With bfloat16 the distance from float32 is
    reported."""
    batch_size: int = 256
    """Images at once on this host."""
    cache: Path = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "flaxclip" / "embeddings"
    """Folder for embeddings, so that the next task on the same images costs nothing."""
    watch: bool = False
    """Measure every checkpoint of the run, and each new one as it lands, until the run's last."""


class FailedTasksError(InputError):
    """Some tasks could not be measured; all others have been."""


def measure_command(arguments: Sequence[str]) -> None:
    """The command line.

    Raises:
        InputError: see `run`, or with `--watch` `follow`.
    """
    program = "python -m flaxclip.benchmark"
    command = tyro.cli(Command, prog=program, args=arguments, description=__doc__)
    join_hosts()
    if command.watch:
        follow(command)
    else:
        run(command)


def follow(command: Command) -> None:
    """Measure each checkpoint of a run as it lands, and draw the curves anew.

    Raises:
        InputError: there is no such run, several hosts would follow it, or, once all is measured,
            tasks failed.
    """
    if jax.process_count() > 1:
        raise InputError("--watch runs on one host\nhosts may see a checkpoint at different times")
    out = command.out or results_of_run(command.checkpoint, command.checkpoint)
    failed: dict[int, str] = {}

    def measure(step: int) -> None:
        checkpoint = f"{command.checkpoint.rstrip('/')}/{CHECKPOINTS}/{step}"
        try:
            run(dataclasses.replace(command, checkpoint=checkpoint, out=out / str(step)))
        except FailedTasksError as error:
            failed[step] = str(error)  # the other tasks go on at the next checkpoint

    watch(command.checkpoint, measure, lambda: write_report([out], out / "report.html"))
    if failed:
        steps = ", ".join(map(str, failed))
        raise InputError(f"tasks failed at steps {steps}; at the last:\n{failed[max(failed)]}")


def watch(
    workdir: str,
    measure: Callable[[int], object],
    after: Callable[[], object],
    poll: float = POLL_SECONDS,
) -> None:
    """Call `measure` with each step that has a checkpoint, ascending, until the run's last one.

    Only reads the run's folder: the run may go on in another process, or on another machine. A
    checkpoint that it deletes before or while it is measured is passed over, by name. Steps that
    were measured before are offered again: `measure` keeps their results. `after` is called
    whenever all steps that are there have been measured, to draw curves of them.

    Raises:
        InputError: there is no run in `workdir`, or a step cannot be measured for a reason other
            than its being gone.
    """
    last = load_config(workdir).get("steps", int)
    seen: set[int] = set()
    while True:
        fresh = [step for step in saved_steps(workdir) if step not in seen]
        for step in fresh:
            seen.add(step)
            try:
                measure(step)
            except (InputError, OSError, ValueError) as error:
                if step in saved_steps(workdir):
                    raise
                print(f"step {step} was deleted before it was measured: {error}".splitlines()[0])
        if fresh:
            after()
        if last in seen:
            return
        if not fresh:
            time.sleep(poll)


def run(command: Command) -> Measured:
    """Measure, print a table, and write a JSON file, arrays and images for each task.

    Raises:
        InputError: no such checkpoint or task, data that cannot be used, a folder that cannot be
            written, a task that failed, or no task at all whose data is on this machine.
    """
    if command.batch_size < 1:
        raise InputError(f"batch size is {command.batch_size}\nit must be at least 1")
    if not 0 <= command.max_unreadable <= 1:
        raise InputError(
            f"--max-unreadable is {command.max_unreadable}\nit is a share: from 0 to 1"
        )
    own_prompts = {} if command.prompt_file is None else read_prompts(command.prompt_file)
    checkpoint = find_checkpoint(command.checkpoint, command.model, command.weights)
    # A misspelt task is found before the weights are read.
    tasks = _tasks(command, checkpoint)
    if checkpoint.weights.notice:
        _say(checkpoint.weights.notice)
    model = _with_dtype(read_model(checkpoint.weights, command.tokenizer), command.dtype)
    out = command.out or checkpoint.default_out()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot write results into {out}: {error.strerror}\nname another folder with --out"
        ) from None

    cache = command.cache.expanduser()
    embedder = Embedder(model, command.batch_size, cache, command.max_unreadable)
    if command.images is not None and not tasks:
        name_images(embedder, command.images, split_labels(command.labels), out)
        return Measured([], {}, {}, [])
    settings = Settings(command.data, out, command.prompts, command.methods, own_prompts)
    measured = measure_tasks(embedder, checkpoint.named(), tasks, settings, _say)
    if jax.process_index() == 0:
        _summarise(measured, checkpoint.named(), out)
        step = checkpoint.weights.step
        if step is not None and measured.fresh and command.weights is None:
            write_events(out.parent / "tensorboard", step, measured.fresh, out)
    if measured.failed:
        raise FailedTasksError("\n".join(measured.failed.values()))
    if not measured.results and measured.missing:
        raise InputError(next(iter(measured.missing.values())))
    return measured


def _tasks(command: Command, checkpoint: Checkpoint) -> list[Task]:
    if command.images is not None:
        labels = split_labels(command.labels) if command.labels else ()
        has_folders = _has_folders(command.images, bool(labels))
        return [own_task(command.images, labels)] if has_folders else []
    if command.labels:
        raise InputError("--labels without --images\nsay which images they are for")
    if command.tasks:
        return find_tasks(command.tasks)
    return checkpoint.default_tasks()


def _has_folders(images: Path, has_labels: bool) -> bool:
    if not images.is_dir():
        raise InputError(f"--images {images} is no folder\nname a folder of images")
    has_folders = bool(class_folders(images))
    if not has_folders and not has_labels:
        raise InputError(
            f"{images} has no sub-folders, and no --labels are given\n"
            'say what the images can be, e.g. --labels "cat,dog"'
        )
    return has_folders


def _with_dtype(model: CLIPModel, dtype: Dtype | None) -> CLIPModel:
    if dtype is None or dtype == model.compute.dtype:
        return model
    compute = dataclasses.replace(model.compute, dtype=dtype)
    return CLIPModel(model.spec, model.variables, compute)


def _say(line: str) -> None:
    if jax.process_index() == 0:
        print(line, flush=True)


def _summarise(measured: Measured, checkpoint: MeasuredCheckpoint, out: Path) -> None:
    step = "" if checkpoint.step is None else f", step {checkpoint.step}"
    print(f"{checkpoint.path}{step}")
    if measured.results:
        print_table(measured.results)
    for result in measured.results:
        for line in unreadable_lines(result):
            print(f"{result.task}: {line}")
        for note in result.notes:
            print(f"{result.task}: {note}")
    for message in measured.missing.values():
        print(f"left out: {message}")
    missing = out / "missing.txt"
    write_text(missing, "\n\n".join(measured.missing.values()) + "\n")
    if not measured.missing:
        missing.unlink()
    print(f"results and images: {out}")
