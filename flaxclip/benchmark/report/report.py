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

from flaxclip.benchmark.report.charts import short_number
from flaxclip.benchmark.report.exports import (
    checkpoint_name,
    to_clip_benchmark,
    to_clip_benchmark_csv,
    to_csv,
    to_markdown,
)
from flaxclip.benchmark.report.page_content import (
    REFERENCE_MODELS,
    STEPS_SHOWN,
    Found,
    comparisons,
    curves,
    latest_steps,
    result_detail,
    robustness,
    summary_rows,
)
from flaxclip.benchmark.report.training_curves import Rows, find_runs, training_charts
from flaxclip.benchmark.results import read_result, write_text
from flaxclip.errors import InputError

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


def report_command(arguments: Sequence[str]) -> None:
    """The command line.

    Raises:
        InputError: no folder is named, there are no results, or the page cannot be written.
    """
    program = "python -m flaxclip.benchmark report"
    command = tyro.cli(Command, prog=program, args=arguments, description=__doc__)
    if not command.folders:
        raise InputError("no folder of results named\nfor example: report runs/mine results")
    write_report(command.folders, command.out)


def write_report(folders: Sequence[Path], out: Path) -> None:
    """Write the page `out` and tables beside it, and say so.

    Raises:
        InputError: there is nothing to show, or the page cannot be written.
    """
    found = find_results(folders)
    results = [result for _, result in found]
    runs = find_runs(folders, {result.checkpoint.path for result in results})
    if not found and not runs:
        raise InputError(
            f"no results in {', '.join(map(str, folders))}\n"
            "name folders that python -m flaxclip.benchmark has written, or workdirs of runs"
        )
    tables = {
        ".csv": to_csv(results),
        ".md": to_markdown(results, comparisons(latest_steps(found))),
        ".json": json.dumps([result.to_json() for result in results], indent=1, ensure_ascii=False),
        ".clip_benchmark.csv": to_clip_benchmark_csv(results),
    }
    folder = out.with_suffix(".clip_benchmark")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, render_page(found, runs))
        for suffix, text in tables.items():
            write_text(out.with_suffix(suffix), text)
        folder.mkdir(exist_ok=True)
        for name, theirs in to_clip_benchmark(results).items():
            write_text(folder / f"{name}.json", json.dumps(theirs))
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}\nname another --out") from None
    print(
        f"{len(results)} results of {len({checkpoint_name(r) for r in results})} checkpoints, "
        f"training curves of {len(runs)} runs: {out}, and {', '.join(tables)} of the same"
    )


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


def render_page(found: Found, runs: dict[str, Rows]) -> str:
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
    shown = latest_steps(found)
    checkpoints = list(dict.fromkeys(checkpoint_name(result) for _, result in shown))
    summary = summary_rows(shown, checkpoints)
    published = any(value is not None for row in summary for value in row["published"].values())
    return environment.get_template("page.html").render(
        style=(_PAGE / "page.css").read_text(),
        script=(_PAGE / "page.js").read_text(),
        results_count=len(found),
        checkpoints_count=len({checkpoint_name(result) for _, result in found}),
        steps_shown=STEPS_SHOWN,
        checkpoints=checkpoints,
        reference_models=REFERENCE_MODELS if published else (),
        summary=summary,
        curves=curves(found),
        training=training_charts(runs),
        robustness=robustness(shown),
        comparisons=comparisons(shown),
        results=[result_detail(path, result) for path, result in shown],
    )
