"""Measure checkpoints.

    python -m flaxclip.benchmark runs/quickstart
    python -m flaxclip.benchmark runs/mine --tasks clip27 retrieval --data DATASETS --out results
    python -m flaxclip.benchmark runs/mine --tasks robustness --data hf://datasets/clip-benchmark
    python -m flaxclip.benchmark runs/mine --images photos --labels "cat,dog"
    python -m flaxclip.benchmark runs/mine --images photos --labels "cat, black" "cat, white" dog
    python -m flaxclip.benchmark runs/mine --watch
    python -m flaxclip.benchmark list robustness
    python -m flaxclip.benchmark runs/a runs/b --tasks clip27 --data DATASETS --out results
    python -m flaxclip.benchmark siglip2-naflex --max-patches 256 576 --tasks clip27 --data DATASETS
    python -m flaxclip.benchmark compare runs/a runs/b
    python -m flaxclip.benchmark report results other_results --out page.html

With `--debug`, an error says where in the code it arose.
"""

import dataclasses
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import jax
import tyro

from flaxclip.api import CLIPModel, read_model
from flaxclip.benchmark.between_hosts import together
from flaxclip.benchmark.checkpoint import Checkpoint, find_checkpoint, results_of_run
from flaxclip.benchmark.compare.command import write_comparisons_with_first
from flaxclip.benchmark.embeddings import MAX_UNREADABLE, Embedder, check_share
from flaxclip.benchmark.measure import Measured, Settings, measure_tasks, print_measured
from flaxclip.benchmark.methods.ask import Method
from flaxclip.benchmark.own_images import has_folders, name_images, own_task, split_labels
from flaxclip.benchmark.prompts import read_prompts
from flaxclip.benchmark.report.exports import write_events
from flaxclip.benchmark.report.report import write_report
from flaxclip.benchmark.results import short_names
from flaxclip.benchmark.sets.place import DataPlace, tasks_of_repository
from flaxclip.benchmark.tasks import Prompts, PromptSet, Task, find_tasks
from flaxclip.checkpoint.layout import CHECKPOINTS
from flaxclip.checkpoint.watch import watch
from flaxclip.compile_cache import keep_compiled_programs
from flaxclip.data.storage.files import cache_folder
from flaxclip.errors import InputError
from flaxclip.hosts.connections import join_hosts
from flaxclip.interop.archives.state_dicts import WhichWeights
from flaxclip.malloc import share_one_heap

Dtype = Literal["float32", "bfloat16"]
COMPILED_SECONDS = 0.1
"""What a program must take to compile to be kept: a suite asks for few, every one of them again."""


@dataclasses.dataclass(frozen=True)
class Command:
    """Measure checkpoints. `compare A B` and `report DIR...` put results side by side, `list` says
    what can be measured.
    """

    checkpoints: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT...")
    ]
    """Workdir of a training run (its latest step), WORKDIR/checkpoints/STEP, or anything else that
    `flaxclip.load` takes. Of several, each is compared with the first."""
    model: str | None = None
    """Architecture of others' weights, where their file does not tell."""
    tokenizer: str | None = None
    """File of SigLIP's or LiT's vocabulary, where it does not lie beside the weights."""
    weights: WhichWeights | None = None
    """Of a checkpoint with weights and their average (EMA). If None, the average."""
    tasks: tuple[str, ...] = ()
    """Tasks and suites, or data of your own: retrieval:SHARDS, wds:DIR, wds-multilabel:DIR,
    wds-retrieval:DIR, folder:DIR, parquet:FILE, tfds:NAME; DIR can be hf://datasets/OWNER/NAME or
    in a bucket. If None, those of the data that the checkpoint was trained on."""
    images: Path | None = None
    """Instead of tasks: a folder of your own images. Sub-folders named like labels are scored;
    images that lie in it as they are get predictions."""
    labels: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction] = ()
    """With --images: what they can be, as a list with commas between ("cat,dog"); or one by one
    where labels have commas themselves (--labels "cat, black" dog). If None, the names of
    sub-folders."""
    max_unreadable: float = MAX_UNREADABLE
    """Share of a task's images that may be unreadable, and count as black; with more it fails."""
    data: str = "data"
    """Folder of data sets: `wds_*` folders, those that TFDS prepared, and others. Or where they are
    published: hf://datasets/clip-benchmark, gs://tfds-data/datasets; or one set,
    hf://datasets/OWNER/NAME, which is measured if no task is named."""
    data_cache: Path = cache_folder("datasets")
    """Folder for copies of what is published, which are made once."""
    out: Path | None = None
    """Folder for results; of several checkpoints, each has one of its own in it, beside
    comparison.html. If None, WORKDIR/benchmark/STEP. Scores of a run's steps, for TensorBoard, are
    beside it."""
    methods: tuple[Method, ...] = ("zero-shot",)
    """Also linear-probe, few-shot and knn, for tasks with a training split."""
    prompts: PromptSet = "clip_benchmark"
    """Whose class names and templates."""
    prompt_file: Path | None = None
    """Your own, before those: JSON of task -> {"class_names": [...], "templates": ["a {}", ...]}, a
    list of templates, or a dict of class -> its own prompts. A class can be a list of names that
    mean the same, and a name can say what it is a kind of: "animal > dog"."""
    max_patches: tuple[int, ...] = ()
    """Of a model that takes images at their own aspect ratio, such as SigLIP 2's NaFlex, the most
    patches of an image; several are measured one after the other and compared with the first. If
    None, what its preprocessing says."""
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
    share_one_heap()
    join_hosts()
    keep_compiled_programs(COMPILED_SECONDS)
    if command.watch:
        follow(command)
    elif len(command.checkpoints) > 1 or len(command.max_patches) > 1:
        run_each(command)
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
    workdir = _only(command)
    out = command.out or results_of_run(workdir, workdir)
    failed: dict[int, str] = {}

    def measure(step: int) -> None:
        checkpoint = f"{workdir.rstrip('/')}/{CHECKPOINTS}/{step}"
        try:
            run(dataclasses.replace(command, checkpoints=(checkpoint,), out=out / str(step)))
        except FailedTasksError as error:
            failed[step] = str(error)  # the other tasks go on at the next checkpoint

    watch(workdir, measure, lambda: write_report([out], out / "report.html"))
    if failed:
        steps = ", ".join(map(str, failed))
        raise InputError(f"tasks failed at steps {steps}; at the last:\n{failed[max(failed)]}")


def run_each(command: Command) -> None:
    """Measure several checkpoints, each into a folder of its own, and compare each with the first;
    a checkpoint at each number of patches counts as one.

    Raises:
        InputError: one cannot be found, before any is measured; two are the same; or, once all have
            been measured, tasks failed.
    """
    numbers: list[tuple[int, ...]] = [(most,) for most in command.max_patches] or [()]
    columns = [
        dataclasses.replace(command, checkpoints=(path,), max_patches=number)
        for path in command.checkpoints
        for number in numbers
    ]
    with together():
        found = [_find(column) for column in columns]
    out = command.out or Path()
    names = short_names([checkpoint.named() for checkpoint in found])
    if command.out is None:
        outs = [checkpoint.default_out() for checkpoint in found]
    else:
        outs = [command.out / name.replace("/", "-").replace(" ", "-") for name in names]
    if len(set(outs)) < len(outs):
        raise InputError(
            f"results of two checkpoints would be in {max(outs, key=outs.count)}\n"
            "name a folder with --out, in which each has one of its own"
        )
    failed: dict[str, str] = {}
    for number, (column, name, folder) in enumerate(zip(columns, names, outs, strict=True), 1):
        _say(f"{name} ({number} of {len(names)})")
        try:
            run(dataclasses.replace(column, out=folder))
        except FailedTasksError as error:
            failed[name] = str(error)  # the other checkpoints can be measured still
    if jax.process_index() == 0 and command.images is None:
        place = DataPlace(command.data, command.data_cache, _say)
        write_comparisons_with_first(outs, names, out / "comparison.html", place)
    if failed:
        raise FailedTasksError("\n".join(f"{name}: {said}" for name, said in failed.items()))


def _find(command: Command) -> Checkpoint:
    """The one checkpoint, at its one number of patches if any is asked for."""
    if len(command.max_patches) > 1:
        raise InputError(
            f"--max-patches {' '.join(map(str, command.max_patches))} with --watch\n"
            "name one number: a run's steps are measured one after the other"
        )
    most = command.max_patches[0] if command.max_patches else None
    return find_checkpoint(_only(command), command.model, command.weights, most)


def _only(command: Command) -> str:
    """The one checkpoint.

    Raises:
        InputError: there are none or several.
    """
    if len(command.checkpoints) != 1:
        raise InputError(
            f"{len(command.checkpoints) or 'no'} checkpoints are named where one is expected\n"
            "name a run's workdir, WORKDIR/checkpoints/STEP, or others' weights"
        )
    return command.checkpoints[0]


def run(command: Command) -> Measured:
    """Measure, print a table, and write a JSON file, arrays and images for each task.

    Raises:
        InputError: no such checkpoint or task, data that cannot be used, a folder that cannot be
            written, a task that failed, or no task at all whose data is on this machine.
    """
    with together():
        checkpoint, tasks, own_prompts, embedder, out = _prepare(command)
    if command.images is not None and not tasks:
        with together():
            name_images(embedder, command.images, split_labels(command.labels), out)
        return Measured([], {}, {}, [])
    place = DataPlace(command.data, command.data_cache, _say)
    settings = Settings(place, out, command.prompts, command.methods, own_prompts)
    measured = measure_tasks(embedder, checkpoint.named(), tasks, settings, _say)
    if jax.process_index() == 0:
        print_measured(measured, checkpoint.named(), out)
        step = checkpoint.weights.step
        if step is not None and measured.fresh and command.weights is None:
            write_events(out.parent / "tensorboard", step, measured.fresh, out)
    if measured.failed:
        raise FailedTasksError("\n".join(measured.failed.values()))
    if not measured.results and measured.missing:
        raise InputError(next(iter(measured.missing.values())))
    return measured


class _Prepared(NamedTuple):
    checkpoint: Checkpoint
    tasks: list[Task]
    own_prompts: dict[str, Prompts]
    embedder: Embedder
    out: Path


def _prepare(command: Command) -> _Prepared:
    """Find and read all that is needed before the first task; raises as `run`."""
    if command.batch_size < 1:
        raise InputError(f"batch size is {command.batch_size}\nit must be at least 1")
    check_share(command.max_unreadable)
    own_prompts = {} if command.prompt_file is None else read_prompts(command.prompt_file)
    checkpoint = _find(command)
    # A misspelt task is found before the weights are read.
    tasks = _tasks(command, checkpoint)
    if checkpoint.weights.notice:
        _say(checkpoint.weights.notice)
    model = _with_dtype(read_model(checkpoint.weights, command.tokenizer), command.dtype)
    out = command.out or checkpoint.default_out()
    try:
        out.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:  # which alone writes: found out now, not after the first task
            tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise InputError(
            f"cannot write results into {out}: {error.strerror}\nname another folder with --out"
        ) from None

    cache = command.cache.expanduser()
    embedder = Embedder(model, command.batch_size, cache, command.max_unreadable)
    return _Prepared(checkpoint, tasks, own_prompts, embedder, out)


def _tasks(command: Command, checkpoint: Checkpoint) -> list[Task]:
    if command.images is not None:
        labels = split_labels(command.labels) if command.labels else ()
        if has_folders(command.images, has_labels=bool(labels)):
            return [own_task(command.images, labels)]
        return []
    if command.labels:
        raise InputError("--labels without --images\nsay which images they are for")
    if names := command.tasks or tasks_of_repository(command.data):
        return find_tasks(names)
    return checkpoint.default_tasks()


def _with_dtype(model: CLIPModel, dtype: Dtype | None) -> CLIPModel:
    if dtype is None or dtype == model.compute.dtype:
        return model
    compute = dataclasses.replace(model.compute, dtype=dtype)
    return CLIPModel(model.spec, model.variables, compute)


def _say(line: str) -> None:
    if jax.process_index() == 0:
        print(line, flush=True)
