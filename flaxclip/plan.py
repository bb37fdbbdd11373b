"""Plan a run before renting anything: compile its step for machines that are not here.

    python -m flaxclip.plan EXPERIMENT --topology v5e:16x16
    python -m flaxclip.plan EXPERIMENT --topology v5p:4x4x4 --model ViT-L-14 --batch-size 16384
    python -m flaxclip.plan EXPERIMENT --topology v6e:16x16 --search mesh batch
    python -m flaxclip.plan EXPERIMENT --topology v5e:16x16 --slices 4
    python -m flaxclip.plan EXPERIMENT --topology cpu:8        virtual devices: memory and traffic
    python -m flaxclip.plan EXPERIMENT --account            where the step's cycles and bytes go
    python -m flaxclip.plan EXPERIMENT --compare compute.remat=full      two configurations
    python -m flaxclip.plan EXPERIMENT --compare before.json             or what --json once printed
    python -m flaxclip.plan --list                             all architectures and their cost

Flags are those of `flaxclip.train`, and a few of its own. With `--debug`, an error says where
it arose.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import jax
import tyro
from rich.console import Console

from flaxclip.errors import InputError, exit_on_input_error
from flaxclip.planning.account.report import (
    account_of,
    comparison_json,
    print_account,
    print_comparison,
    read_account,
)
from flaxclip.planning.advice import refusal_message
from flaxclip.planning.compiled_step import Refusal
from flaxclip.planning.report import plan_json, print_plan, trials_table
from flaxclip.planning.run_plan import RunPlan, make_plan
from flaxclip.planning.search import Dimension, search
from flaxclip.planning.topology import Topology, open_topology
from flaxclip.planning.variants_table import variants_table
from flaxclip.run.command_line import RunCommand, parse
from flaxclip.train_step import settle_compute


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command(RunCommand):
    """Compile a run for a machine that is not here, and report its needs."""

    topology: str = "v5e:16x16"
    """Slice to plan for, as v5e:16x16, v6e:16x16, v5p:4x4x4, tpu7x:4x4x4; or cpu:8 for virtual
    devices."""
    slices: int = 1
    """Slices of that kind, joined by the data centre's network."""
    search: tuple[Dimension, ...] = ()
    """Numbers to search: finds the fastest ones that fit, as far as a few compilations can tell."""
    compiles: int = 5
    """Most configurations that a search compiles; each takes a minute or more."""
    decode_rate: float = 500.0
    """Images that one core of a host decodes, crops and resizes in a second."""
    pair_kb: float = 40.0
    """Kilobytes of a pair in the bucket; for images of 256 to 384 pixels, 20 to 50."""
    account: bool = False
    """Print where the step's cycles and bytes go too."""
    compare: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FILE|FLAG=VALUE")] = ()
    """Print the step's account beside another: of a file that --json has written, or of the same
    run with other flags, such as compute.remat=full."""
    json: bool = False
    """Print JSON, in bytes, FLOPs and seconds."""
    list: bool = False
    """Print all named architectures instead, with their cost."""


def main() -> None:
    """The command line."""
    with exit_on_input_error("flaxclip.plan"):
        # Whatever this machine has, it only compiles and counts.
        jax.config.update("jax_platforms", "cpu")
        command = parse(Command, sys.argv[1:], "flaxclip.plan", __doc__)
        if command.list:
            make_console().print(variants_table())
        else:
            run(command)


def run(command: Command) -> None:
    """Compile the step that `command` describes, and print its plan.

    Raises:
        InputError: an unknown topology, a mesh or a batch that does not divide, a step that does
            not fit, or nothing that it could be compared with.
    """
    console = make_console()
    # What it is compared with may be wrong, and compiling takes minutes.
    before = other = None
    if command.compare and is_file(command.compare):
        before = read_account(Path(command.compare[0]))
    elif command.compare:
        other = with_flags(command, command.compare)
    plan, topology = compile_plan(command, console)
    title = f"{command.experiment}, {plan.topology}"
    account = account_of(plan, title)
    if other is not None:
        before = account
        account = account_of(
            compile_plan(other, console)[0], f"{title}, with {' '.join(command.compare)}"
        )
    if before is not None:
        if command.json:
            print(comparison_json(before, account))
        else:
            print_comparison(before, account, console)
    elif command.json:
        print(plan_json(plan))
    else:
        print_plan(plan, topology, console)
        if command.account:
            print_account(account, console)


def is_file(compare: tuple[str, ...]) -> bool:
    """True if `--compare` names a file, rather than flags."""
    return len(compare) == 1 and "=" not in compare[0]


def with_flags(command: Command, changes: tuple[str, ...]) -> Command:
    """The command with other flags, each as `name=value`.

    Raises:
        InputError: one of them is not, or names a flag that decides what the others default to.
    """
    flags = []
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals or name in ("model", "experiment", "init-from", "compare"):
            raise InputError(
                f"--compare cannot take {change!r}\n"
                "expected flags such as compute.remat=full, or one file\nto compare models or "
                "experiments, write the plan of one with --json, and name that file"
            )
        flags += [f"--{name}", value]
    return tyro.cli(Command, args=[command.experiment, *flags], default=command)


def compile_plan(command: Command, console: Console) -> tuple[RunPlan, Topology]:
    """The plan of a step that fits, and what it is planned for.

    Raises:
        InputError: as `run`.
    """
    progress = Console(stderr=True)
    topology = open_topology(command.topology, command.slices)
    devices = topology.devices
    config = settle_compute(command.config, devices[0], len(devices))
    if command.search:
        if topology.chip is None:
            raise InputError(
                f"{command.topology} has no speed to search by\n"
                "name a TPU topology, such as --topology v5e:16x16"
            )
        dimensions = {*command.search, *(("remat",) if config.compute.remat == "auto" else ())}
        trials = search(config, topology, dimensions, command.compiles, progress.print)
        if not trials or isinstance(trials[0].step, Refusal):
            raise InputError(
                f"nothing that was tried fits {command.topology}\n"
                "let --search choose both, mesh and batch, or name a larger topology"
            )
        if not command.json:
            console.print(trials_table(trials, topology))
        config = trials[0].config
    plan = make_plan(config, topology, command.decode_rate, 1000 * command.pair_kb)
    if isinstance(plan.step, Refusal):
        raise InputError(refusal_message(plan.config, topology, plan.step))
    return plan, topology


def make_console() -> Console:
    """A console on standard output; a file or a pipe is as wide as the tables."""
    return Console() if sys.stdout.isatty() else Console(width=120)


if __name__ == "__main__":
    main()
