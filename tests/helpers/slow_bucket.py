"""`slow://FOLDER/FILE`: files on disk by ranged requests that take a while, as in a bucket.

To be imported in every process that reads of it: sources of `BucketTars` do so where they arrive.
"""

import contextlib
import os
import threading
import time

import fsspec
from fsspec.implementations.local import LocalFileSystem

from flaxclip.data.sources.tars.webdataset import WebDatasetSource
from flaxclip.data.workers import reading_threads

SECONDS = 0.02  # that a request takes


class SlowBucket(LocalFileSystem):
    """Counts requests; one for FILE, beside which is FILE.hangs, is never answered."""

    protocol = "slow"
    in_flight = most_in_flight = versions_asked = requests = 0
    together = 1  # requests that are answered only when so many have been in flight at once
    counted = ""  # requests for files below this folder
    _change = threading.Condition()
    _forgotten = 0  # how often: what ends is counted with what it began with

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("slow://"))

    @classmethod
    def forget(cls, folder=None):
        """Count from 0, with new threads: others' requests, repeated for a while, may hold some.

        What earlier tests have begun may go on to ask: given the test's own folder, that is not
        counted, here and after later calls.
        """
        cls.counted = cls.counted if folder is None else f"{folder}/"
        reading_threads._threads.cache_clear()
        cls.in_flight = cls.most_in_flight = cls.versions_asked = cls.requests = 0
        cls.together = 1
        cls._forgotten += 1

    def info(self, path, **kwargs):
        """As on disk, some time later."""
        if self._strip_protocol(path).startswith(self.counted):
            with self._change:
                SlowBucket.versions_asked += 1
        time.sleep(SECONDS)
        return super().info(path, **kwargs)

    def cat_file(self, path, start=None, end=None, **kwargs):
        """The bytes, some time later."""
        path = self._strip_protocol(path)
        with self._counting() if path.startswith(self.counted) else contextlib.nullcontext():
            time.sleep(1000 if os.path.exists(f"{path}.hangs") else SECONDS)
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(end - start)

    @contextlib.contextmanager
    def _counting(self):
        with self._change:
            begun = SlowBucket._forgotten
            SlowBucket.in_flight += 1
            SlowBucket.requests += 1
            SlowBucket.most_in_flight = max(self.most_in_flight, self.in_flight)
            self._change.notify_all()
            met = self._change.wait_for(lambda: self.most_in_flight >= self.together, timeout=60)
        yield
        with self._change:
            if begun == SlowBucket._forgotten:
                SlowBucket.in_flight -= 1
        if not met:
            raise TimeoutError(f"{self.most_in_flight} requests at once, not {self.together}")


fsspec.register_implementation("slow", SlowBucket, clobber=True)


class BucketTars(WebDatasetSource):
    """Tars of the bucket; a process that a copy is sent to imports this module."""
