"""Results of any number of checkpoints as one page that needs no network, and as tables.

    python -m flaxclip.benchmark report runs/mine results --out page.html

writes page.html, and beside it page.csv, page.json, page.md, page.clip_benchmark.csv and a folder
page.clip_benchmark of JSON files. Training curves are those of `metrics.jsonl` in the folders that
are named, and in the workdirs that results were made of.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import jinja2
import tyro

from flaxclip.benchmark.compare.comparison import Comparison, Found, count_of
from flaxclip.benchmark.compare.differing import differences_csv
from flaxclip.benchmark.report.charts import short_number
from flaxclip.benchmark.report.exports import (
    to_clip_benchmark,
    to_clip_benchmark_csv,
    to_csv,
    to_markdown,
)
from flaxclip.benchmark.report.names import checkpoint_key, result_names
from flaxclip.benchmark.report.page_content import (
    REFERENCE_MODELS,
    STEPS_SHOWN,
    breakable,
    compare_with_first,
    comparison_detail,
    curves,
    latest_steps,
    result_detail,
    robustness,
    summary_rows,
)
from flaxclip.benchmark.report.training_curves import Rows, find_runs, training_charts
from flaxclip.benchmark.results import read_result, write_text
from flaxclip.benchmark.sets.place import DataPlace
from flaxclip.data.storage.files import cache_folder
from flaxclip.errors import InputError

DATA = Path("data")
OPEN_RESULTS = 5
"""Of more results, those after the first are shown when they are asked for."""
_PAGE = Path(__file__).parent / "page"


@dataclasses.dataclass(frozen=True)
class Command:
    """A page of results."""

    folders: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RESULT_DIR...")
    ]
    """Folders that hold results, or runs with their metrics.jsonl, at any depth."""
    out: Path = Path("report.html")
    """The page; tables of the same are written beside it."""
    data: str = "data"
    """Folder of data sets, or where they are published, as for measuring: images that checkpoints
    differ on are shown where the data can be read."""
    data_cache: Path = cache_folder("datasets")
    """Folder for copies of what is published, which are made once."""


def report_command(arguments: Sequence[str]) -> None:
    """The command line.

    Raises:
        InputError: no folder is named, there are no results, or the page cannot be written.
    """
    program = "python -m flaxclip.benchmark report"
    command = tyro.cli(Command, prog=program, args=arguments, description=__doc__)
    if not command.folders:
        raise InputError("no folder of results named\nfor example: report runs/mine results")
    write_report(command.folders, command.out, DataPlace(command.data, command.data_cache))


def write_report(folders: Sequence[Path], out: Path, place: DataPlace | Path = DATA) -> None:
    """Write the page `out` and tables beside it, and say so.

    Raises:
        InputError: there is nothing to show, or the page cannot be written.
    """
    found = find_results(folders)
    runs = find_runs(folders, {result.checkpoint.path for _, result in found})
    if not found and not runs:
        raise InputError(
            f"no results in {', '.join(map(str, folders))}\n"
            "name folders that python -m flaxclip.benchmark has written, or workdirs of runs"
        )
    compared = compare_with_first(latest_steps(found), result_names(found))
    write_page(found, runs, compared, out, place)


def write_page(
    found: Found,
    runs: dict[str, Rows],
    compared: Sequence[Comparison],
    out: Path,
    place: DataPlace | Path,
) -> None:
    """Write the page `out` and tables beside it, and say so.

    Args:
        found: results.
        runs: training metrics of the runs that they are of.
        compared: which two of them are put side by side.
        out: the page.
        place: where images that two checkpoints differ on are looked for.

    Raises:
        InputError: the page cannot be written.
    """
    results, named = [result for _, result in found], result_names(found)
    names = [named[path] for path, _ in found]
    tables = {
        ".csv": to_csv(results),
        ".md": to_markdown(results, compared, names),
        ".json": json.dumps([result.to_json() for result in results], indent=1, ensure_ascii=False),
        ".clip_benchmark.csv": to_clip_benchmark_csv(results, names),
    }
    if compared:
        tables[".differences.csv"] = differences_csv(compared)
    folder = out.with_suffix(".clip_benchmark")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, render_page(found, runs, compared, place))
        for suffix, text in tables.items():
            write_text(out.with_suffix(suffix), text)
        folder.mkdir(exist_ok=True)
        for name, theirs in to_clip_benchmark(results, names).items():
            write_text(folder / f"{name}.json", json.dumps(theirs))
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}\nname another --out") from None
    curves_of = f", training curves of {count_of(len(runs), 'run')}" if runs else ""
    print(f"{_counted(found)}{curves_of}: {out}, and {', '.join(tables)} of the same")


def _counted(found: Found) -> str:
    checkpoints = len({checkpoint_key(result) for _, result in found})
    return f"{count_of(len(found), 'result')} of {count_of(checkpoints, 'checkpoint')}"


def find_results(folders: Sequence[Path]) -> Found:
    """Result files below `folders` and what they hold, by checkpoint, step and task.

    Raises:
        InputError: there is no such folder, or a result is damaged.
    """
    if not_there := [folder for folder in folders if not folder.is_dir()]:
        raise InputError(
            f"no folder {not_there[0]}\nname folders with results, or workdirs of runs"
        )
    # Beside its arrays: a result is whole once both are there.
    paths = sorted(
        {
            path
            for folder in folders
            for path in folder.rglob("*.json")
            if path.with_suffix(".npz").exists()
        }
    )
    found = [(path, read_result(path)) for path in paths]
    return sorted(
        found,
        key=lambda item: (
            item[1].checkpoint.path, item[1].checkpoint.step or 0, item[1].task
        ),
    )  # fmt: skip


def render_page(
    found: Found, runs: dict[str, Rows], compared: Sequence[Comparison], place: DataPlace | Path
) -> str:
    """The page's HTML, images and script inside it."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_PAGE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda share: "–" if share is None else f"{share:.1%}"
    environment.filters["number"] = lambda value: (
        short_number(value) if isinstance(value, int | float) else "–"
    )
    environment.filters["counted"] = count_of
    environment.filters["breakable"] = breakable
    shown, names = latest_steps(found), result_names(found)
    checkpoints = list(dict.fromkeys(names[path] for path, _ in shown))
    summary = summary_rows(shown, checkpoints, names)
    published = any(value is not None for row in summary for value in row["published"].values())
    return environment.get_template("page.html").render(
        style=(_PAGE / "page.css").read_text(),
        script=(_PAGE / "page.js").read_text(),
        counted=_counted(found) if found else "",
        checkpoints_count=len(set(names.values())),
        steps_shown=STEPS_SHOWN,
        checkpoints=checkpoints,
        reference_models=REFERENCE_MODELS if published else (),
        summary=summary,
        curves=curves(found),
        training=training_charts(runs),
        robustness=robustness(shown, names),
        comparisons=[comparison_detail(comparison, place) for comparison in compared],
        open_results=OPEN_RESULTS,
        results=[result_detail(path, result, names[path]) for path, result in shown],
    )
