"""The account of a step as a table, and two of them side by side."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import get_args

import pydantic
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from flaxclip.errors import InputError
from flaxclip.planning.account.account import AccountRow
from flaxclip.planning.account.parts import Part, Phase, Tower
from flaxclip.planning.compiled_step import CompiledStep
from flaxclip.planning.run_plan import RunPlan

_TOWERS: dict[Tower | None, str] = {
    "image": "image tower",
    "text": "text tower",
    None: "neither tower",
}
_PHASES: tuple[Phase, ...] = ("forward", "recomputed", "backward")
_HOW = (
    "An instruction counts as a whole; a fusion for its largest matrix product, without one for "
    "its result. Copies: by themselves; layouts and conversions too. The update is in no pass."
)

Selection = Callable[[AccountRow], bool]


@dataclasses.dataclass(frozen=True)
class Account:
    """A step's account, and figures of the whole step."""

    title: str
    pairs_per_chip: float
    rows: tuple[AccountRow, ...]
    peak_bytes: int
    step_seconds: float | None
    """As expected; None for virtual devices."""

    def kilocycles(self, selected: Selection) -> float:
        """Thousands of cycles a pair."""
        return sum(row.cycles for row in self.rows if selected(row)) / 1e3 / self.pairs_per_chip

    def megabytes(self, selected: Selection) -> float:
        """MB a pair."""
        return sum(row.hbm_bytes for row in self.rows if selected(row)) / 1e6 / self.pairs_per_chip


def account_of(plan: RunPlan, title: str) -> Account:
    """The account of a plan whose step fits."""
    assert isinstance(plan.step, CompiledStep), "a step that is refused has no account"
    return Account(
        title,
        plan.step_pairs / plan.chips,
        plan.step.account,
        plan.step.peak_bytes,
        plan.roofline.expected if plan.roofline else None,
    )


def read_account(path: Path) -> Account:
    """The account in a file that `--json` has written, by this build or another.

    Raises:
        InputError: there is no such file, or no account in it.
    """
    try:
        plan = json.loads(path.read_text())
        return Account(
            str(path),
            # Files of before lengths of images have a step of the whole batch.
            plan.get("step_pairs", plan["config"]["batch_size"]) / plan["chips"],
            pydantic.TypeAdapter(tuple[AccountRow, ...]).validate_python(plan["step"]["account"]),
            plan["step"]["peak_bytes"],
            plan["derived"]["expected"]["step_seconds"] if plan["derived"] else None,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"no account of a step can be read in {path}: {str(error).splitlines()[0]}\n"
            "expected what `python -m flaxclip.plan … --json` prints"
        ) from None


def print_account(account: Account, console: Console) -> None:
    """What a step's cycles and bytes are spent on, by tower, part and phase."""
    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
        title="Cycles, by the compiler's cost model, and HBM's bytes of a step, for a pair",
        title_justify="left",
        caption=_HOW,
        caption_justify="left",
    )
    table.add_column("", no_wrap=True)
    has_cycles = account.kilocycles(_everything) > 0
    of_cycles = ["forward", "again", "back", "kcycles", "share", "products"]
    for name in [*of_cycles * has_cycles, "forward", "again", "back", "MB"]:
        table.add_column(name, justify="right")
    for name, selected in [*_lines(account.rows), ("the step", _everything)]:
        cells = []
        if has_cycles:
            rows = [row for row in account.rows if selected(row)]
            cells += [
                *_by_phase(account.kilocycles, selected),
                _share(account.kilocycles(selected), account.kilocycles(_everything)),
                _share(sum(r.product_cycles for r in rows), sum(r.cycles for r in rows)),
            ]
        table.add_row(name, *cells, *_by_phase(account.megabytes, selected))
    console.print(table)


def print_comparison(before: Account, after: Account, console: Console) -> None:
    """Two accounts side by side, and their ratios."""
    console.print(f"before  {before.title}\nafter   {after.title}", soft_wrap=True, highlight=False)
    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
        title="Cycles, by the compiler's cost model, and HBM's bytes, for a pair",
        title_justify="left",
        caption=_HOW,
        caption_justify="left",
    )
    table.add_column("", no_wrap=True)
    kinds = {"kcycles": Account.kilocycles, "MB": Account.megabytes}
    if not before.kilocycles(_everything) + after.kilocycles(_everything):
        del kinds["kcycles"]
    for unit in kinds:
        for name in (f"{unit} before", "after", "ratio"):
            table.add_column(name, justify="right")
    lines = [
        *_lines(before.rows + after.rows),
        *((phase, _in_phase(_everything, phase)) for phase in get_args(Phase)),
        ("the step", _everything),
    ]
    for name, selected in lines:
        cells = []
        for amount in kinds.values():
            amounts = [amount(account, selected) for account in (before, after)]
            cells += [*map(_number, amounts), _ratio(*amounts)]
        table.add_row(name, *cells)
    console.print(table)
    for name, form, amounts in (
        ("pairs a chip", "g", [account.pairs_per_chip for account in (before, after)]),
        ("GiB at the peak", ".2f", [account.peak_bytes / 2**30 for account in (before, after)]),
        ("ms a step", ".1f", [1e3 * (account.step_seconds or 0) for account in (before, after)]),
    ):
        if all(amounts):
            shown = " -> ".join(format(amount, form) for amount in amounts)
            console.print(f"{name}: {shown} ({_ratio(*amounts)})", highlight=False)


def comparison_json(before: Account, after: Account) -> str:
    """Two accounts as indented JSON, in cycles and bytes of a step."""
    values = {
        name: pydantic.TypeAdapter(Account).dump_python(account, mode="json")
        for name, account in (("before", before), ("after", after))
    }
    return json.dumps(values, indent=2)


def _everything(row: AccountRow) -> bool:
    return True


def _in_phase(selected: Selection, phase: Phase) -> Selection:
    return lambda row: selected(row) and row.phase == phase


def _by_phase(amount: Callable[[Selection], float], selected: Selection) -> list[str]:
    """The passes' amounts, and the whole one, which includes the update's."""
    return [_number(amount(_in_phase(selected, phase))) for phase in _PHASES] + [
        _number(amount(selected))
    ]


def _lines(rows: Iterable[AccountRow]) -> Iterator[tuple[str, Selection]]:
    """The names of a table's lines and what they add up: each tower, and its parts."""
    rows = list(rows)
    for tower, name in _TOWERS.items():
        parts = {row.part for row in rows if row.tower == tower}
        if parts:
            yield name, functools.partial(_belongs, tower)
        for part in get_args(Part):
            if part in parts:
                yield f"  {part}", functools.partial(_belongs, tower, part=part)


def _belongs(tower: Tower | None, row: AccountRow, part: Part | None = None) -> bool:
    return row.tower == tower and part in (None, row.part)


def _number(amount: float) -> str:
    return f"{amount:,.1f}" if amount else ""


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if part else ""


def _ratio(before: float, after: float) -> str:
    return f"{after / before:.2f}" if before else ""
