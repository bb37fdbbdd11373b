"""A worker process of Apache Beam on this machine that ends with the process that started it.

Beam's own worker waits forever for a runner that was killed.
"""

import os
import sys
import threading
import time

from apache_beam.runners.worker import sdk_worker_main


def main(starter: int) -> None:
    """Work for the process `starter`, whose child this is, until it sends the end or is gone."""
    threading.Thread(target=_end_with, args=(starter,), daemon=True).start()
    sdk_worker_main.main(sys.argv)


def _end_with(starter: int) -> None:
    while os.getppid() == starter:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
