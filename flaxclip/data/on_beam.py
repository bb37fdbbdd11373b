"""Command lines of what can run on Apache Beam."""

import contextlib
import logging
from collections.abc import Iterator, Sequence

from flaxclip.errors import InputError


def split_beam_options(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments of a command itself, and behind `--` those of Beam."""
    end = args.index("--") if "--" in args else len(args)
    return list(args[:end]), list(args[end + 1 :])


def check_workers(workers: int | None) -> None:
    """Raise `InputError` unless there is at least one, or None is given."""
    if workers is not None and workers < 1:
        raise InputError(f"--workers is {workers}\nit must be at least 1")


@contextlib.contextmanager
def importing_beam(advice: str) -> Iterator[None]:
    """Around an import of a module that needs Beam.

    Raises:
        InputError: Beam is not installed; `advice` ends the message.
    """
    try:
        logging.disable(logging.WARNING)  # Beam misses parts of Google's cloud aloud
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "apache_beam":
            raise
        raise InputError(
            "Apache Beam is not installed\n"
            f"pip install 'flaxclip[beam]', best in an environment of its own{advice}"
        ) from None
    finally:
        logging.disable(logging.NOTSET)
