"""The command line: its first word says what is done; anything else is a checkpoint to measure."""

import sys

from flaxclip.errors import exit_on_input_error
from flaxclip.exit_codes import exit_with_code


def main() -> None:
    """The command line."""
    with exit_on_input_error("flaxclip.benchmark"), exit_with_code("flaxclip.benchmark"):
        # Each is imported by itself: reports are made where there is no JAX, or no time for it.
        if sys.argv[1:2] == ["report"]:
            from flaxclip.benchmark.report.report import report_command

            report_command(sys.argv[2:])
        elif sys.argv[1:2] == ["list"]:
            from flaxclip.benchmark.sets.listing import list_command

            list_command(sys.argv[2:])
        elif sys.argv[1:2] == ["compare"]:
            from flaxclip.benchmark.compare.command import compare_command

            compare_command(sys.argv[2:])
        elif sys.argv[1:2] == ["embed"]:
            from flaxclip.benchmark.embed.command import embed_command

            embed_command(sys.argv[2:])
        elif sys.argv[1:2] == ["search"]:
            from flaxclip.benchmark.embed.search import search_command

            search_command(sys.argv[2:])
        else:
            from flaxclip.benchmark.command import measure_command

            measure_command(sys.argv[1:])


if __name__ == "__main__":
    main()
