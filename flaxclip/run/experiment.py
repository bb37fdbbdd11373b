"""An experiment: a Python file whose `get_config()` returns a run's configuration."""

import contextlib
import importlib.resources
import runpy
import traceback
from collections.abc import Iterator
from pathlib import Path

from flaxclip.config import TrainConfig
from flaxclip.errors import InputError


def load_experiment(name: str) -> TrainConfig:
    """The configuration of an experiment: a Python file with `get_config() -> TrainConfig`.

    Args:
        name: path of the file, or the bare name of one that comes with flaxclip.

    Raises:
        InputError: no such file, or it cannot be run, or has no `get_config`, or that returns
            something else.
    """
    path = Path(name)
    shipped = Path(str(importlib.resources.files("flaxclip.experiments")))
    if path.suffix != ".py":
        path = shipped / f"{name}.py"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in shipped.glob("[!_]*.py")))
        raise InputError(
            f"no experiment at {name}\ngive the path of a Python file, or one of: {known}"
        )
    with _errors_of(path):
        get_config = runpy.run_path(str(path)).get("get_config")
    if get_config is None:
        raise InputError(
            f"{path} is no experiment: it defines no get_config\n"
            "expected a function get_config() that returns a flaxclip.config.TrainConfig"
        )
    with _errors_of(path):
        config = get_config()
    if not isinstance(config, TrainConfig):
        raise InputError(
            f"get_config() of {path} returned a {type(config).__name__}\n"
            "expected a flaxclip.config.TrainConfig"
        )
    return config


@contextlib.contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    """Turn an error in the experiment's own code into an `InputError` that names the line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        lines = [
            f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)
        ]
        in_it = lines[-1] if lines else None
        line = error.lineno if isinstance(error, SyntaxError) else in_it
        raise InputError(
            f"experiment {path} does not run: {type(error).__name__}: {error}\n"
            f"in line {line}; --debug shows the way there"
        ) from error
