"""The command line: `report` makes a page of results, anything else measures a checkpoint."""

import sys

from flaxclip.errors import exit_on_input_error
from flaxclip.exit_codes import exit_with_code


def main() -> None:
    """The command line."""
    with exit_on_input_error("flaxclip.benchmark"), exit_with_code("flaxclip.benchmark"):
        # Either is imported by itself: reports are made where there is no JAX, or no time for it.
        if sys.argv[1:2] == ["report"]:
            from flaxclip.benchmark.report.report import report_command

            report_command(sys.argv[2:])
        else:
            from flaxclip.benchmark.command import measure_command

            measure_command(sys.argv[1:])


if __name__ == "__main__":
    main()
