"""The results of a checkpoint, by the name of the checkpoint or of the folder that they are in."""

from pathlib import Path

from flaxclip.benchmark.compare.comparison import Found
from flaxclip.benchmark.report.names import checkpoint_key, result_names
from flaxclip.benchmark.report.report import find_results
from flaxclip.errors import InputError

_CHECKPOINTS = "checkpoints"
_BENCHMARK = "benchmark"


def results_of(asked: str) -> Found:
    """Results of one checkpoint.

    Args:
        asked: a folder that holds results of one checkpoint; or a checkpoint that was measured
            without `--out`: a workdir, whose latest measured step is taken, a step of it,
            WORKDIR/checkpoints/STEP, or others' weights.

    Raises:
        InputError: there are none, or of several checkpoints.
    """
    path = Path(asked)
    for folder in _folders(asked):
        if not folder.is_dir() or not (found := find_results([folder])):
            continue
        if folder != path:  # perhaps of all steps of a run
            last = max(result.checkpoint.step or 0 for _, result in found)
            found = [item for item in found if (item[1].checkpoint.step or 0) == last]
        found_names = set(result_names(found).values())
        if len({checkpoint_key(result) for _, result in found}) > 1 and len(found_names) > 1:
            raise InputError(
                f"{folder} holds results of {len(found_names)} checkpoints: "
                f"{', '.join(sorted(found_names))}\nname a folder that holds results of one"
            )
        _check_distinct(found)
        return found
    raise InputError(
        f"no results of {asked}\n"
        f"measure it with python -m flaxclip.benchmark {asked}, or name the folder that --out named"
    )


def _folders(asked: str) -> list[Path]:
    """Where results may be, the likeliest first: as `Checkpoint.default_out` puts them."""
    path = Path(asked.rstrip("/"))
    is_step = path.parent.name == _CHECKPOINTS
    if "://" in asked:
        here = Path(_BENCHMARK)
        return [here / path.parent.parent.name / path.name if is_step else here / path.stem]
    if is_step:
        return [path.parent.parent / _BENCHMARK / path.name]
    if (path / _CHECKPOINTS).is_dir():
        return [path / _BENCHMARK]
    return [path, path.parent / _BENCHMARK / path.stem]


def _check_distinct(found: Found) -> None:
    """Raise `InputError` where a task was measured twice: either could be meant."""
    seen: dict[tuple[str, str], Path] = {}
    for path, result in found:
        before = seen.setdefault((result.task, result.method), path)
        if before != path:
            raise InputError(
                f"{result.task}, {result.method} is both in {before} and in {path}\n"
                "name a folder that holds it once"
            )
