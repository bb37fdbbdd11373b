"""Convert any corpus to ArrayRecord shards: filtered, deduplicated, split, with a datasheet.

    python -m flaxclip.data.prepare 'shards/*.tar' prepared
    python -m flaxclip.data.prepare 'shards/*.tar' prepared --resize 384 --min-side 64 --min-words 3
    python -m flaxclip.data.prepare 'shards/*.tar' prepared --score-key similarity --min-score 0.28
    python -m flaxclip.data.prepare 'gs://in/*.tar' gs://out/prepared -- --runner=DataflowRunner ...

Options after `--` go to Apache Beam; without a --runner it runs here, in --workers processes.

DST gets `train-00000-of-00012.array_record` and so on, `validation-…` with --validation,
`datasheet.json`, the same for people in `datasheet.html`, and `dropped.jsonl`, which names every
example that was left out, with the reason. The output is the same, byte for byte, with any number
of workers. Killed, and started again, it goes on; finished, it does nothing.
"""

import contextlib
import dataclasses
import itertools
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal

import tyro
from etils import epath
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from flaxclip.data.prepare.datasheet import (
    DroppedSummary,
    as_json,
    draw_samples,
    make_datasheet,
    render_page,
)
from flaxclip.data.prepare.encoding import ImageEncoding
from flaxclip.data.prepare.filters import PairFilters
from flaxclip.data.prepare.folder import DATASHEET, DROPPED, PreparationFolder
from flaxclip.data.prepare.passes import SCENE_SIZE, Recipe, cannot_write, plan_shards
from flaxclip.data.prepare.publish import claim, name_shards, publish
from flaxclip.data.sources.captions import CaptionConfig
from flaxclip.data.sources.corpus import CorpusConfig, open_corpus
from flaxclip.errors import InputError, exit_on_input_error
from flaxclip.exit_codes import exit_with_code

PAGE = "datasheet.html"
_SMALL = 5_000  # examples
_SHOWN = 5  # unreadable examples, on the terminal


@dataclasses.dataclass(frozen=True)
class Command:
    """Convert a corpus to ArrayRecord shards. Options of Apache Beam follow after `--`."""

    src: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """Same as --data.path of training: shards, tables, a folder, tfds:NAME, scenes."""
    dst: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """Folder to write, new or empty."""
    shard_mb: float = 256
    """Target size of a shard, in millions of bytes."""
    validation: float = 0.0
    """Share of the pairs for shards of their own, chosen by the hash of the image."""
    deduplicate: Literal["pair", "image", "none"] = "pair"
    """Keep only the first of the examples with the same image and captions, or the same image, byte
    for byte."""
    filters: Annotated[PairFilters, tyro.conf.arg(name="")] = PairFilters()
    encoding: Annotated[ImageEncoding, tyro.conf.arg(name="")] = ImageEncoding()
    image_key: str | None = None
    """Column of a table, or feature of TFDS, that holds the images. If None, the usual one."""
    split: str = "train"
    """Split of a TFDS data set."""
    captions: CaptionConfig = CaptionConfig()
    """Fields that filters, duplicates and statistics take as captions. All fields are stored."""
    allow_empty_shards: bool = False
    """Go on where shards have no examples."""
    workers: int | None = None
    """Processes, if Beam runs on this machine. If None, as many as there are cores, but one for a
    corpus that is read before they have started."""
    overwrite: bool = False
    """Replace the output of an earlier preparation in DST, once the new one is finished."""

    def __post_init__(self) -> None:
        if self.shard_mb <= 0:
            raise InputError(f"--shard-mb is {self.shard_mb}\nit must be above 0")
        if not 0 <= self.validation < 1:
            raise InputError(
                f"--validation is {self.validation}\nit is a share: 0 or more, below 1"
            )
        if self.workers is not None and self.workers < 1:
            raise InputError(f"--workers is {self.workers}\nit must be at least 1")


def main() -> None:
    """The command line."""
    args = sys.argv[1:]
    ours = args[: args.index("--")] if "--" in args else args
    with exit_on_input_error("flaxclip.data.prepare"), exit_with_code("flaxclip.data.prepare"):
        command = tyro.cli(
            Command,
            args=ours,
            prog="python -m flaxclip.data.prepare",
            description=__doc__.replace("\npython", "\n\npython"),
            config=(tyro.conf.FlagCreatePairsOff,),
        )
        prepare(command, args[len(ours) + 1 :])


def prepare(command: Command, beam_options: Sequence[str] = ()) -> dict[str, Any]:
    """Prepare a corpus, or resume its preparation; returns its datasheet.

    Raises:
        InputError: a corpus that cannot be opened, options that contradict each other, nothing left
            to write, or a folder that cannot be written or may not be overwritten.
    """
    try:
        logging.disable(logging.WARNING)  # Beam misses parts of Google's cloud aloud
        from flaxclip.data.prepare import beam
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "apache_beam":
            raise
        raise InputError(
            "Apache Beam is not installed\npip install 'flaxclip[beam]', best in an environment of "
            "its own: Beam holds Pillow, pyarrow and protobuf back"
        ) from None
    finally:
        logging.disable(logging.NOTSET)
    recipe = Recipe(
        CorpusConfig(
            (command.src,),
            command.image_key,
            command.split,
            command.captions,
            command.allow_empty_shards,
        ),
        command.filters,
        command.encoding,
        command.deduplicate,
        command.validation,
        command.shard_mb,
    )
    source = open_corpus(recipe.corpus, SCENE_SIZE)
    examples = len(source)
    plan = {
        "format": 1,
        "records": examples,
        "first": source.name(0),
        "last": source.name(examples - 1),
        "recipe": json.loads(json.dumps(dataclasses.asdict(recipe))),
    }
    workers = command.workers or ((os.cpu_count() or 1) if examples > _SMALL else 1)
    folder = PreparationFolder(command.dst, examples)
    runner = beam.Runner(tuple(beam_options), workers)
    dst = epath.Path(command.dst)
    with claim(folder, plan, command.overwrite) as finished:
        if finished:
            print(f"{dst}: prepared already, nothing to do")
            return json.loads((dst / DATASHEET).read_text())
        with _progress("scanning", folder.ranges, lambda: folder.ranges - len(folder.unscanned())):
            beam.scan(recipe, folder, runner)
        shards = plan_shards(folder.read_sizes(), examples, recipe)
        with _progress("writing", sum(shards.values()), lambda: len(folder.written())):
            beam.write(recipe, folder, shards, runner)
        sheet = _finish(folder, plan, recipe, shards)
    _print(sheet, dst)
    return sheet


def _finish(
    folder: PreparationFolder, plan: dict[str, Any], recipe: Recipe, shards: dict[str, int]
) -> dict[str, Any]:
    """Name the shards, and write the files that describe them.

    Raises:
        InputError: nothing is left of the corpus.
    """
    dropped, listing = DroppedSummary(), folder.work / DROPPED
    try:
        with listing.open("wb") as file:
            for one in folder.read_dropped(shards):
                dropped.add(one)
                line = json.dumps(one._asdict(), ensure_ascii=False) + "\n"
                file.write(line.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise cannot_write(listing, error) from None
    named = name_shards(folder, shards)
    if not named:
        counts = (f"{count:,} {reason}" for reason, count in dropped.counts.items())
        first = dropped.unreadable[:1]
        folder.work.rmtree()
        raise InputError(
            "\n".join(
                [
                    f"nothing is left of {plan['records']:,} examples: {', '.join(counts)}",
                    *(f"the first unreadable one: {d.record}: {d.detail}" for d in first),
                    "loosen the filters, or name another field with --captions.keys",
                ]
            )
        )
    splits = {split: [(name, report) for _, name, report in part] for split, part in named.items()}
    sheet = make_datasheet(plan, splits, dropped, (DROPPED, PAGE))
    moves = [(path, name) for part in named.values() for path, name, _ in part]
    # Those that were moved before a restart are where they belong.
    places = (path if path.exists() else epath.Path(folder.dst) / name for path, name in moves)
    page = render_page(sheet, draw_samples(places, recipe))
    publish(
        folder,
        [*moves, (listing, DROPPED)],
        {PAGE: page.encode("utf-8", "backslashreplace"), DATASHEET: as_json(sheet)},
    )
    return sheet


def _print(sheet: dict[str, Any], dst: epath.Path) -> None:
    table = Table("", "examples", "share", box=SIMPLE_HEAD)
    examples = sheet["records"]["read"]
    for split, part in sheet["splits"].items():
        size = f"{len(part['shards']):,} shards, {part['bytes'] / 1e6:,.1f} MB"
        table.add_row(f"{split}: {size}", f"{part['pairs']:,}", f"{part['pairs'] / examples:.2%}")
    for reason, item in sheet["dropped"].items():
        count = item["records"]
        table.add_row(f"dropped: {reason}", f"{count:,}", f"{count / examples:.2%}", style="yellow")
    table.add_section()
    table.add_row("read", f"{examples:,}", "")
    Console().print(table)
    for item in sheet["unreadable"][:_SHOWN]:
        print(f"unreadable: {item['record']}: {item['found']}")
    if sheet["dropped"]:
        print(f"all that was dropped: {dst / DROPPED}")
    print(f"datasheet: {dst / PAGE}")


@contextlib.contextmanager
def _progress(what: str, total: int, done: Callable[[], int]) -> Iterator[None]:
    """Show a bar on a terminal, a line a minute elsewhere, while workers are busy with `what`."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total, completed=done())
        over = threading.Event()

        def follow() -> None:
            for second in itertools.count(1):
                if over.wait(1):
                    return
                bar.update(task, completed=done())
                if bar.disable and second % 60 == 0:
                    print(f"{what}: {done():,} of {total:,}", file=sys.stderr)

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            bar.update(task, completed=done())


if __name__ == "__main__":
    main()
