"""What tables call the checkpoints that results are of: no two of them the same."""

from collections import Counter
from pathlib import Path

from flaxclip.benchmark.compare.comparison import Found
from flaxclip.benchmark.results import MeasuredCheckpoint, Result, short_name, short_names
from flaxclip.errors import InputError


def checkpoint_key(result: Result) -> tuple[str, str]:
    """The same of two results if they are of the same checkpoint: see `result_names`."""
    return short_name(result.checkpoint), result.parameters_sha256


def result_names(found: Found) -> dict[Path, str]:
    """The name of the checkpoint of each result, by the result's file.

    Checkpoints are the same if both the ends of their paths and their parameters are: a run may be
    named by its path from here or by its whole one. Of different ones whose paths end alike, as
    much is said of the paths as tells them apart. Where that does not, or one of them was measured
    twice on a task, such as in two types of activations or with two sets of prompts, the folder
    that the result is in belongs to the name.
    """
    keys = {path: checkpoint_key(result) for path, result in found}
    first: dict[tuple[str, str], MeasuredCheckpoint] = {}
    for path, result in found:
        first.setdefault(keys[path], result.checkpoint)
    names = {key: key[0] for key in first}
    by_folder = set()
    for short, count in Counter(short for short, _ in first).items():
        if count > 1:
            alike = [key for key in first if key[0] == short]
            try:
                longer = short_names([first[key] for key in alike])
            except InputError:  # of one path
                by_folder.update(alike)
            else:
                names.update(zip(alike, longer, strict=True))
    measured = Counter((keys[path], result.task, result.method) for path, result in found)
    by_folder.update(key for (key, *_), count in measured.items() if count > 1)
    return {
        path: f"{names[key]} in {path.parent}" if key in by_folder else names[key]
        for path, key in keys.items()
    }
