"""Where copies come from: a folder elsewhere, whose files have sizes and checksums."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable


class RemoteFile(NamedTuple):
    """A file of a set."""

    size: int
    checksum: str
    """`sha256:` or `md5:` of the content; `git:`, the SHA-1 of a Git blob; or `state:` and what
    differs from one state of the file to the next, where its storage knows no checksum."""


@dataclasses.dataclass(frozen=True)
class RemoteSet:
    """What is in a folder elsewhere."""

    name: str
    """For people."""
    url: str
    """Of the folder; if it can be, of its present state alone."""
    files: Mapping[str, RemoteFile]

    def size_of(self, names: Sequence[str]) -> int:
        """Bytes of some of its files."""
        return sum(self.files[name].size for name in names)


@runtime_checkable
class Origin(Protocol):
    """An address of such a folder."""

    @property
    def cache_path(self) -> str:
        """Where its copy is, below the folder of copies."""
        ...

    @property
    def folder(self) -> str:
        """The part of it that is meant; empty if all is."""
        ...

    def look_up(self) -> RemoteSet:
        """What is there now.

        Raises:
            MissingDataError: nothing, or nothing for who asks.
            InputError: it cannot be read.
            StorageAwayError: nobody answers.
        """
        ...
