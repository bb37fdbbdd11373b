"""The only error that users should meet: an input that cannot be used."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from flaxclip.standard_streams import drop_what_cannot_be_written, say


class InputError(ValueError):
    """An input of the user (a path, a file, a field, a flag) that cannot be used as it is.

    The message's first line says what was found and where; the lines after it say what was
    expected and what to do. Command lines print it without a traceback and exit with 2.
    """


@contextmanager
def exit_on_input_error(program: str) -> Iterator[None]:
    """Turn an `InputError` into a message on standard error and exit code 2.

    `--debug`, anywhere on the command line, adds the traceback. However the block ends, the exit
    code is the same if messages cannot be written any more.
    """
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    try:
        yield
    except InputError as error:
        if debug:
            say(traceback.format_exc(), sys.stderr)
        first, *rest = str(error).splitlines()
        say("\n".join([f"{program}: {first}", *(f"  {line}" for line in rest)]), sys.stderr)
        sys.exit(2)
    finally:
        drop_what_cannot_be_written()
