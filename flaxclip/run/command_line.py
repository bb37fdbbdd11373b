"""From a command line to the configuration of a run."""

import argparse
import dataclasses
import difflib
from collections.abc import Sequence
from typing import Annotated, TypeVar, get_args

import tyro
from etils import epath

from flaxclip.checkpoint.layout import CONFIG_FILE
from flaxclip.config import TrainConfig
from flaxclip.config_json import run_from_json
from flaxclip.errors import InputError
from flaxclip.interop.archives.state_dicts import WhichWeights
from flaxclip.models.spec import ModelSpec
from flaxclip.models.variants import VARIANTS
from flaxclip.run.experiment import load_experiment
from flaxclip.weights import open_weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunCommand:
    """Flags that choose a run; a command adds its own by subclassing it."""

    experiment: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="EXPERIMENT")]
    """Python file with get_config(), or the name of one that comes with flaxclip. Its values are
    the defaults of all flags below."""
    model: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Architecture to start from, in place of the experiment's."""
    # A model's image tower is of the kind that the default has: --model chooses the kind.
    config: Annotated[
        TrainConfig,
        tyro.conf.arg(name=""),
        tyro.conf.FlagConversionOff,
        tyro.conf.AvoidSubcommands,
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainCommand(RunCommand):
    """Pretrain CLIP. The same command again resumes where the run stopped."""

    resume_with_changes: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FIELD")] = ()
    """Fields, such as optim.peak_lr, in which this run may differ from the one in its workdir.
    `data` also allows another corpus."""
    profile_steps: Annotated[str | None, tyro.conf.arg(metavar="A:B")] = None
    """Profile the updates after step A up to step B, for XProf, into WORKDIR/tensorboard."""
    debug_nans: bool = False
    """Stop at the first loss or gradient that is not finite, and name the layer in which it arises:
    `--health.max-skipped 1`."""


Command = TypeVar("Command", bound=RunCommand)


def parse(
    command: type[Command], args: Sequence[str], program: str, description: str | None
) -> Command:
    """Parse `args` as a `command`; `--help` begins with `description`.

    Flags default to the values of the experiment, so it is loaded first; likewise `--model` and
    `--init-from`, whose architecture the flags `--model.…` change.

    Raises:
        InputError: no such experiment or model.
        SystemExit: flags that do not exist or do not parse, with code 2; `--help`, with 0.
    """
    args = with_values_together(args, "--teacher")
    experiment = args[0] if args and not args[0].startswith("-") else "quickstart"
    config = load_experiment(experiment)
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--model", "--init-from", "--init-model", "--init-weights", "--workdir"):
        peek.add_argument(flag)
    flags = peek.parse_known_args(args)[0]
    if flags.model is not None:
        config = config.with_spec(variant(flags.model))
    elif flags.init_from is not None:
        which = flags.init_weights if flags.init_weights in get_args(WhichWeights) else None
        theirs = _model_of_weights(
            flags.init_from, flags.init_model, which, flags.workdir or config.workdir
        )
        config = config.with_spec(theirs)
    return tyro.cli(
        command,
        args=args,
        default=command(experiment=experiment, config=config),
        prog=f"python -m {program}",
        description=description,
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def with_values_together(args: Sequence[str], flag: str) -> list[str]:
    """`args` with all values of `flag` after one flag, where it is given several times.

    Of several flags, tyro would take the last and say nothing.

    >>> with_values_together(["x", "--teacher", "a", "--steps", "2", "--teacher=b"], "--teacher")
    ['x', '--steps', '2', '--teacher', 'a', 'b']
    """
    others: list[str] = []
    values: list[str] = []
    target = others
    for word in args:
        if word == flag or word.startswith(f"{flag}="):
            target = values
            values += [word.removeprefix(f"{flag}=")] * (word != flag)
            continue
        if word.startswith("--"):
            target = others
        target.append(word)
    return [*others, flag, *values] if values else list(args)


def _model_of_weights(
    path: str, model: str | None, which: WhichWeights | None, workdir: str
) -> ModelSpec:
    """The model of the weights: from the workdir if the run resumes, and needs them no longer."""
    file = epath.Path(workdir) / CONFIG_FILE
    if file.exists():
        run = run_from_json(TrainConfig, file.read_text(), file)
        if run.init_from == path:
            return run.spec
    return open_weights(path, model, which).spec


def variant(name: str) -> ModelSpec:
    """The model of that name; like open_clip, takes `ViT-B-32` and `ViT-B/32`.

    Raises:
        InputError: there is none; the message lists all models.
    """
    name = name.replace("/", "-")
    if name not in VARIANTS:
        close = difflib.get_close_matches(name, VARIANTS, n=1, cutoff=0.4)
        raise InputError(
            f"unknown model {name!r}"
            + (f"; did you mean {close[0]}?" if close else "")
            + f"\nknown: {', '.join(VARIANTS)}"
        )
    return VARIANTS[name]
