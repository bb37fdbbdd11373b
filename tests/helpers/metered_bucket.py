"""`metered://FOLDER/FILE`: files on disk as in a bucket; requests and their bytes are counted."""

import threading

import fsspec
from fsspec.implementations.local import LocalFileSystem


class MeteredBucket(LocalFileSystem):
    """Ranged requests of all threads; one for a file whose name contains `fails` fails once."""

    protocol = "metered"
    sizes: list[int]
    failed: set[str]
    _lock = threading.Lock()

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("metered://"))

    @classmethod
    def forget(cls):
        """Count from 0."""
        cls.sizes, cls.failed = [], set()

    def unstrip_protocol(self, name):
        """As a URL."""
        return f"metered://{self._strip_protocol(name)}"

    def cat_file(self, path, start=None, end=None, **kwargs):
        """The bytes."""
        with self._lock:
            self.sizes.append(end - start)
            if "fails" in path and path not in self.failed:
                self.failed.add(path)
                raise PermissionError("refused by the bucket")
        with open(self._strip_protocol(path), "rb") as file:
            file.seek(start)
            return file.read(end - start)


fsspec.register_implementation("metered", MeteredBucket, clobber=True)
