"""`python -m flaxclip.data.prepare`, which SIGKILL ends at a certain moment. No clock decides it.

    python -m tests.helpers.killed_preparation MOMENT SRC DST ...

MOMENT is `scanned`, when all examples are scanned and no shard is begun, or `second-shard`, when
one shard is done and another is begun; the latter only where no other process writes shards.
"""

import contextlib
import os
import signal
import sys

from flaxclip.data.prepare import __main__ as prepare
from flaxclip.data.prepare.folder import PreparationFolder


def _kill_itself(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _killing(new_shard):
    @contextlib.contextmanager
    def second_is_killed(folder, split, number):
        with new_shard(folder, split, number) as new:
            if folder.written():
                _kill_itself()
            yield new

    return second_is_killed


if __name__ == "__main__":
    moment = sys.argv.pop(1)
    if moment == "scanned":
        prepare.plan_shards = _kill_itself
    elif moment == "second-shard":
        PreparationFolder.new_shard = _killing(PreparationFolder.new_shard)
    else:
        sys.exit(f"no moment {moment}")
    prepare.main()
