"""`python -m flaxclip.benchmark`, killed inside of each image set and started again until it ends.

    python -m tests.helpers.killed_measurements CHECKPOINT --tasks ... --batch-size 4

Each measurement is a process of its own, which SIGKILL ends between the first images of a set that
it has put on disk and the next ones of that set. The process after it finds those on disk, goes on,
and dies in the next set. No clock decides that: the process kills itself. All are forked from one
that has imported everything, which is half of what a start takes.
"""

import os
import signal
import sys

from flaxclip.benchmark import embeddings
from flaxclip.benchmark.__main__ import main

CHUNK = 4
"""Images that are put on disk at once; every set must have more."""


def measure_until_it_ends() -> int:
    """The exit code of the first process that is not killed."""
    embeddings.CHUNK = CHUNK
    embeddings.image_batches = _killing(embeddings.image_batches)
    while True:
        sys.stdout.flush()  # or what is still to be written would be written by both
        process = os.fork()
        if process == 0:
            main()
            return 0
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        if code != -signal.SIGKILL:
            return code


def _killing(image_batches):
    begun_here = set()

    def batches(images, transform, batch_size, start, *others):
        if start == 0:
            begun_here.add(images.identity)
        elif images.identity in begun_here:
            os.kill(os.getpid(), signal.SIGKILL)
        return image_batches(images, transform, batch_size, start, *others)

    return batches


if __name__ == "__main__":
    import flaxclip.benchmark.command  # noqa: F401  (before the fork: `main` imports it only then)

    sys.exit(measure_until_it_ends())
