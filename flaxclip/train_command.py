"""What the command line of `python -m flaxclip.train` takes."""

import argparse
import dataclasses
import difflib
from collections.abc import Sequence
from typing import Annotated

import tyro

from flaxclip.config import TrainConfig, load_experiment
from flaxclip.errors import InputError
from flaxclip.models.clip import CLIPConfig
from flaxclip.models.variants import VARIANTS


@dataclasses.dataclass(frozen=True)
class Command:
    """Pretrain CLIP. The same command again resumes where the run stopped."""

    experiment: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="EXPERIMENT")]
    """Python file with get_config(), or the name of one that comes with flaxclip. Its values are
    the defaults of all flags below."""
    model: Annotated[str | None, tyro.conf.arg(metavar="NAME")]
    """Architecture to start from, in place of the experiment's."""
    resume_with_changes: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FIELD")]
    """Fields, such as optim.peak_lr, in which this run may differ from what its workdir holds.
    `data` also lets the corpus be another one."""
    debug_nans: bool
    """Stop at the first loss or gradient that is not finite, and say in which layer it arises."""
    config: Annotated[TrainConfig, tyro.conf.arg(name="")]


def parse(args: Sequence[str]) -> Command:
    """What a command line asks for.

    Flags default to the values of the experiment, so that is looked at first; likewise `--model`,
    whose architecture is what the flags `--model.…` change.

    Raises:
        InputError: no such experiment or model.
        SystemExit: flags that do not exist or do not parse, with code 2; `--help`, with 0.
    """
    experiment = args[0] if args and not args[0].startswith("-") else "quickstart"
    config = load_experiment(experiment)
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--model")
    name = peek.parse_known_args(args)[0].model
    if name is not None:
        config = dataclasses.replace(config, model=variant(name))
    return tyro.cli(
        Command,
        args=args,
        default=Command(experiment, None, (), False, config),
        prog="python -m flaxclip.train",
        config=(tyro.conf.FlagConversionOff,),
    )


def variant(name: str) -> CLIPConfig:
    """The architecture of that name; raises InputError with those that there are."""
    if name not in VARIANTS:
        close = difflib.get_close_matches(name, VARIANTS, n=1, cutoff=0.4)
        raise InputError(
            f"unknown model {name!r}"
            + (f"; did you mean {close[0]}?" if close else "")
            + f"\nknown: {', '.join(VARIANTS)}"
        )
    return VARIANTS[name]
