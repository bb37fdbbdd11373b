"""Where `--data` says that sets are: a folder of them; or the Hub or a bucket, to be copied from.

A task's own source can say it too: `wds:hf://datasets/OWNER/NAME`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from flaxclip.benchmark.datasets import MissingDataError
from flaxclip.benchmark.sets.bucket import BucketFolder
from flaxclip.benchmark.sets.copies import Choose, Copies, CopyState
from flaxclip.benchmark.sets.hub import PREFIX, is_on_hub, parse_address
from flaxclip.benchmark.sets.origin import Origin, RemoteSet
from flaxclip.benchmark.sets.parts import parquet_parts, splits_of, tfds_files, wds_files
from flaxclip.benchmark.tasks import DataSource, all_tasks
from flaxclip.data.sources.left_out import is_leftover
from flaxclip.data.storage.file_systems import is_remote
from flaxclip.data.storage.files import cache_folder
from flaxclip.errors import InputError

_READ_IN_PLACE = ("scenes", "pairs")
"""Readers of what is made here, and of shards that training reads wherever they are."""
_COPIED_BY_NAME = ("wds", "tfds", "parquet", "folder", "winoground", "winogavil", "aro-order")
"""Readers of sets that are a folder each, of the set's name."""
_Answer = TypeVar("_Answer")


class Found(NamedTuple):
    """A source on this machine, as its reader is to be given it."""

    source: DataSource
    data_dir: Path
    copied_from: str | None = None
    """Address of the commit that a copy is of."""
    content: str | None = None
    """What is in a copy, wherever it is. If None, unknown."""


@dataclasses.dataclass(frozen=True)
class DataPlace:
    """Where data sets are looked for.

    Raises:
        InputError: `data` is no address of data sets, though one of the Hub.
    """

    data: str
    cache: Path = dataclasses.field(default_factory=lambda: cache_folder("datasets"))
    say: Callable[[str], None] = print

    def __post_init__(self) -> None:
        if is_on_hub(self.data):
            parse_address(self.data)
        object.__setattr__(self, "cache", self.cache.expanduser())

    def find(self, source: DataSource, split: str) -> Found:
        """The source as its reader finds it, its files copied if they are elsewhere.

        Raises:
            MissingDataError: there is no such data set, or not for who asks. What is not in a
                folder, its reader finds out.
            InputError: it is there and cannot be used, or not copied.
        """
        origins = self.origins(source)
        if not origins:
            return Found(source, self.cache if is_remote(self.data) else Path(self.data))
        copies = self._copies()

        def copied(origin: Origin) -> Found:
            copy = copies.get(origin, _chooser(source, split, origin))
            name = str((copy.folder / origin.folder).absolute())
            here = dataclasses.replace(source, name=name)
            return Found(here, self.cache, copy.remote.url, copy.content)

        return self._first_there(copied, origins)

    def look_up(self, source: DataSource, split: str) -> tuple[int, CopyState]:
        """Bytes of the files of a source elsewhere, and whether their copies are here.

        Raises as `find` does.
        """
        copies = self._copies()
        return self._first_there(
            lambda origin: copies.state(origin, _chooser(source, split, origin)),
            self.origins(source),
        )

    def in_cache(self, source: DataSource, split: str) -> tuple[int, CopyState] | None:
        """What `look_up` gives of a source that some `--data` has put into the cache; or None."""
        copies = self._copies()
        for owner in copies.owners():
            place = dataclasses.replace(self, data=f"{PREFIX}{owner}")
            if any(map(copies.find, place.origins(source))):
                return place.look_up(source, split)
        return None

    def origins(self, source: DataSource) -> list[Origin]:
        """Where the source may be copied from; none if it is to be looked for on this machine.

        Raises:
            MissingDataError: it has another name than the one repository that `data` is.
            InputError: see `parse_address`.
        """
        if source.reader in _READ_IN_PLACE:
            return []
        if is_on_hub(source.name):
            address = parse_address(source.name)
            if address.name is None:
                raise InputError(f"{source.name} names no data set\nexpected {PREFIX}OWNER/NAME")
            return [address]
        if is_remote(source.name):
            return [BucketFolder(source.name)]
        names = published_names(source.name) if source.reader == "wds" else [source.name]
        if is_on_hub(self.data) and source.reader == "wds":
            place = parse_address(self.data)
            if place.name not in (None, *names):
                raise MissingDataError(f"{self.data} is another set than {names[0]}")
            return [place._replace(name=name) for name in names if place.name in (None, name)]
        if is_on_hub(self.data):
            return [] if source.hub is None else [parse_address(f"{PREFIX}{source.hub}")]
        if is_remote(self.data) and source.reader in _COPIED_BY_NAME:
            return [BucketFolder(f"{self.data.rstrip('/')}/{name}") for name in names]
        return []

    def _first_there(self, use: Callable[[Origin], _Answer], origins: Sequence[Origin]) -> _Answer:
        """What `use` makes of the first origin that is there, those first of which copies are here.

        Raises what `use` does of the first.
        """
        missing: list[MissingDataError] = []
        for origin in sorted(origins, key=lambda one: self._copies().find(one) is None):
            try:
                return use(origin)
            except MissingDataError as error:
                missing.append(error)
        raise missing[0]

    def _copies(self) -> Copies:
        return Copies(self.cache, self.say)


def tasks_of_repository(data: str) -> list[str]:
    """What `--tasks` would name for the one repository that `data` is; none if it is not one.

    Tasks that read it, or else the set as one of one's own.
    """
    address = parse_address(data) if is_on_hub(data) else None
    if address is None or address.name is None:
        return []
    known = [
        name
        for name, task in all_tasks().items()
        for source in task.sources
        if source.reader == "wds" and address.name in published_names(source.name)
    ]
    reader = "wds" if address.name.startswith("wds_") else "parquet"
    return known or [f"{reader}:{data}"]


def published_names(name: str) -> list[str]:
    """Repositories, or folders, of a set: `wds_vtab-dtd` of `vtab/dtd`, and DataComp's name."""
    published = f"wds_{name.replace('/', '-')}"
    return [published, f"{published}_test"]


def _chooser(source: DataSource, split: str, origin: Origin) -> Choose:
    return lambda remote, read: needed(remote, source, split, origin.folder, read)


def needed(
    remote: RemoteSet,
    source: DataSource,
    split: str,
    folder: str,
    read: Callable[[str], str],
) -> list[str]:
    """The files of a set elsewhere that the source's reader needs for a split.

    Args:
        remote: all of its files.
        source: says who reads it.
        split: to be read.
        folder: the part of it that is meant; empty if all is.
        read: gives the text of a small file.

    Raises:
        InputError: some of them are not there.
    """
    below = f"{folder}/" if folder else ""
    names = [name.removeprefix(below) for name in remote.files if name.startswith(below)]
    url = f"{remote.url}/{below}".rstrip("/")
    if source.reader == "wds":
        found = wds_files(names, split, lambda name: read(below + name), url)
    elif source.reader == "tfds":
        found = tfds_files(names, split, url)
    elif not (found := parquet_parts(names, split, url)):
        if source.reader == "parquet":
            there = ", ".join(splits_of(names))
            raise InputError(
                f"{url} has no Parquet files of a {split} split\n"
                + (f"it has: {there}" if there else
                   "the Hub converts many sets: try the revision @refs/convert/parquet")
            )  # fmt: skip
        # Of what a reader of one set of its own needs, nothing is known here.
        found = sorted(name for name in names if not is_leftover(name))
    return [below + name for name in found]
