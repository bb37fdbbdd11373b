"""What a preparation says on the terminal: how far it is, and what has come of it."""

import contextlib
import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from flaxclip.data.prepare.datasheet import truncated_captions
from flaxclip.data.prepare.folder import DROPPED
from flaxclip.data.prepare.scan import Recipe
from flaxclip.data.reinforced.reinforce import Reinforcing

_SHOWN = 5  # unreadable examples


def print_datasheet(
    sheet: dict[str, Any], dst: epath.Path, page: epath.Path, recipe: Recipe
) -> None:
    """Counts and sizes of a corpus that is prepared at `dst`; `page` is its datasheet."""
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
    if recipe.reinforcing is not None:
        print(_size_of_vectors(sheet, recipe.reinforcing))
        count = truncated_captions(sheet)
        cut = "not counted" if count is None else f"{count:,} lost their end to a teacher's context"
        print(f"teacher_truncated_captions: {cut}")
    print(f"datasheet: {page}")


def _size_of_vectors(sheet: dict[str, Any], how: Reinforcing) -> str:
    """A line on the embeddings of teachers in a corpus, whose pairs have no other captions."""
    pairs = sum(part["pairs"] for part in sheet["splits"].values())
    captions = sum(part["statistics"]["captions"]["sum"] for part in sheet["splits"].values())
    size = how.bytes_of_embeddings(how.crops * pairs + captions)
    widths = " and ".join(f"{encoder.teacher.width:,}" for encoder in how.encoders)
    return (
        f"vectors: {size / 1e6:,.1f} MB, {size / pairs:,.0f} bytes an example: {how.crops} crops "
        f"and {captions / pairs:.3g} captions, each {widths} numbers in {how.vectors}"
    )


@contextlib.contextmanager
def progress(
    what: str, total: int, done: Callable[[], int], more: Callable[[], str] = lambda: ""
) -> Iterator[None]:
    """Show a bar on a terminal, a line a minute elsewhere, while workers are busy with `what`.

    `more` is told beside the count.
    """
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total, completed=done())
        over = threading.Event()

        def follow() -> None:
            for second in itertools.count(1):
                if over.wait(1):
                    return
                bar.update(task, completed=done(), description=f"{what}{more()}")
                if bar.disable and second % 60 == 0:
                    print(f"{what}: {done():,} of {total:,}{more()}", file=sys.stderr)

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            bar.update(task, completed=done())
