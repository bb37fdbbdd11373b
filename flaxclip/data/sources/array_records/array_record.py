"""ArrayRecord shards of images and the fields beside them, as `data.prepare` writes them.

Each record of a shard is a msgpack map, made by `encode_record`:

    key      str    the example's name in the corpus that it comes from
    image    bytes  the encoded image, as a file would hold it
    fields   str    a JSON object: the texts, labels and metadata beside the image, by name

and, if a teacher's vectors are stored with the examples,

    reinforced  map  crops, captions and their embeddings, see `reinforced.stored_vectors`

Fields have the names that `Source.fields` gives them: the text beside an image is `txt`, the rest
is as it was in the JSON or the table. JSON rather than msgpack's own types, which cannot hold every
number and every text that JSON holds.

Write with `ArrayRecordWriter(path, "group_size:1,uncompressed")`: one record a chunk, so that one
can be read alone; images are compressed already.

From object storage, records come by ranged requests: two of 16 KiB together for each shard when the
source is opened, then one for the end of a shard where its first record is read, by all processes
that read through one cache, and one for each example, or run of examples.
"""

import bisect
import concurrent.futures
import contextlib
import functools
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgpack
from array_record.python.array_record_module import ArrayRecordReader

from flaxclip.data.reinforced.stored_vectors import Reinforced, unpack_reinforced
from flaxclip.data.sources.array_records.layout import LayoutError
from flaxclip.data.sources.array_records.parts import (
    TAILS,
    Tail,
    count_remote_records,
    read_record,
)
from flaxclip.data.sources.captions import (
    DEFAULT_CAPTIONS,
    CaptionConfig,
    json_fields,
    make_captions,
)
from flaxclip.data.sources.empty_shards import check_empty_shards
from flaxclip.data.sources.runs import ReadsInRuns
from flaxclip.data.sources.shard_paths import expand_shards, shown
from flaxclip.data.sources.source import Pair, UnreadableExampleError
from flaxclip.data.storage.file_systems import REQUESTS_AT_ONCE, Version, is_remote, version_of
from flaxclip.data.storage.ranged_reads import Extent
from flaxclip.errors import InputError

DEFAULT_CAPTION_KEYS = ("txt", "caption")
_DOUBT = "an ArrayRecord file that was cut off or never closed looks empty too: "
_OPEN_SHARDS = 128  # kept open in each process; the usual limit is 1,024 files


def encode_record(
    key: str,
    image: bytes,
    fields: Mapping[str, Any],
    reinforced: Mapping[str, Any] | None = None,
) -> bytes:
    """One record, to be written to a shard; `reinforced` is what `pack_reinforced` makes.

    Raises:
        TypeError, ValueError: `fields` are no JSON values.
    """
    # Escaped, since the JSON of a record may name code points that no UTF-8 text holds.
    record = {"key": key, "image": image, "fields": json.dumps(fields)}
    return msgpack.packb(record if reinforced is None else {**record, "reinforced": reinforced})


def decode_record(data: bytes) -> tuple[str, bytes, dict[str, Any]]:
    """Key, image and fields.

    Raises:
        UnreadableExampleError: `encode_record` has not made this.
    """
    key, image, fields, _ = _unpack(data)
    return key, image, json_fields(fields.encode("utf-8", "surrogatepass"))


def _unpack(data: bytes) -> tuple[str, bytes, str, Any]:
    try:
        record = msgpack.unpackb(data)
        key, image, fields = record["key"], record["image"], record["fields"]
    except (ValueError, KeyError, TypeError, msgpack.UnpackException) as error:
        reason = f"no record of an image with fields: {type(error).__name__} {error}"
        raise UnreadableExampleError(reason) from None
    if not (isinstance(key, str) and isinstance(image, bytes) and isinstance(fields, str)):
        raise UnreadableExampleError("no record of an image with fields: they have other types")
    return key, image, fields, record.get("reinforced")


class ArrayRecordSource(ReadsInRuns):
    """A `Source` over ArrayRecord shards, sorted by path."""

    def __init__(
        self,
        shards: str | Sequence[str],
        captions: CaptionConfig = DEFAULT_CAPTIONS,
        allow_empty_shards: bool = False,
    ) -> None:
        """Count the records of the shards; `shards` may be patterns.

        Raises:
            InputError: a pattern matches nothing, a shard is missing or cut off, all are empty, or
                one is and that is not allowed.
        """
        self.paths = expand_shards([shards] if isinstance(shards, str) else shards, "array_record")
        self._captions = captions
        with concurrent.futures.ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            found = list(pool.map(count_records, self.paths))
        self._ends = list(itertools.accumulate(count for count, _ in found))
        self._versions = [version for _, version in found]
        pairs = zip(self.paths, found, strict=True)
        empty = [(path, version.size) for path, (count, version) in pairs if not count]
        self.empty_shards = len(empty)
        check_empty_shards(empty, len(self.paths), allow_empty_shards, _DOUBT)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Pair:
        _, image, fields = decode_record(self._read(index))
        return Pair(image, *make_captions(fields, self._captions, DEFAULT_CAPTION_KEYS))

    def reinforced(self, index: int) -> Reinforced:
        """The example with what is stored of teachers; captions are those stored with it.

        Raises:
            UnreadableExampleError: it has none, or it is damaged.
        """
        _, image, _, stored = _unpack(self._read(index))
        return unpack_reinforced(image, stored)

    def fields(self, index: int) -> dict[str, Any]:
        """The fields of the record."""
        return decode_record(self._read(index))[2]

    def name(self, index: int) -> str:
        """Shard and the record's number in it, e.g. `train-00003.array_record/17`."""
        shard, position = self._locate(index)
        return f"{os.path.basename(self.paths[shard])}/{position}"

    @property
    def nbytes(self) -> int:
        """Bytes of all shards together."""
        return sum(version.size for version in self._versions)

    def extents(self, first: int, last: int) -> list[Extent]:
        """The byte ranges that hold examples [first, last): one of each shard that has some.

        Takes a request for each shard that this process has not read of lately; or that no process
        has, if they read through a cache.

        Raises:
            UnreadableExampleError: the end of a shard, where positions are told, cannot be read.
        """
        return [
            Extent(
                self.paths[shard], *self._tail(shard).footer.chunks(*part), self._versions[shard]
            )
            for shard, part in self._parts(first, last)
        ]

    def _read(self, index: int) -> bytes:
        shard, position = self._locate(index)
        path = self.paths[shard]
        if is_remote(path):
            (extent,) = self.extents(index, index + 1)
            chunk, tail = self.fetch(index, extent), self._tail(shard)
            try:
                return read_record(tail, self._versions[shard].size, chunk, position)
            except UnreadableExampleError as error:
                raise UnreadableExampleError(f"{path}: {error}") from None
        try:
            # Not a list of one, for which the library looks at every chunk of the shard.
            return _open_shard(path, self._versions[shard]).read(position, position + 1)[0]
        except (OSError, RuntimeError, IndexError, ValueError) as error:
            raise UnreadableExampleError(f"{path}: {error}") from error

    def _tail(self, shard: int) -> Tail:
        path = self.paths[shard]
        counted = self._ends[shard] - (self._ends[shard - 1] if shard else 0)
        try:
            tail = TAILS.of(path, self._versions[shard], counted, self._cache)
        except LayoutError as error:
            raise UnreadableExampleError(f"{path}: {error}") from error
        if tail.footer.records != counted:
            raise UnreadableExampleError(f"{path} has changed since its records were counted")
        return tail

    def _parts(self, first: int, last: int) -> Iterator[tuple[int, tuple[int, int]]]:
        """The shards that hold examples [first, last), and which records of each these are."""
        while first < last:
            shard, position = self._locate(first)
            stop = min(last, self._ends[shard])
            yield shard, (position, position + stop - first)
            first = stop

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self):,}")
        shard = bisect.bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)


def count_records(path: str) -> tuple[int, Version]:
    """Number of records in a shard, and its state.

    A local file that was cut off, or never closed, may count as one without records.

    Raises:
        InputError: it is missing, or no whole ArrayRecord file.
    """
    try:
        version = version_of(path)
        if not version.size:
            return 0, version
        if is_remote(path):
            return count_remote_records(path, version), version
        with contextlib.closing(ArrayRecordReader(path)) as reader:
            return reader.num_records(), version
    except (OSError, RuntimeError, ValueError, UnreadableExampleError) as error:
        reason = (str(error).splitlines() or ["not whole"])[0].removeprefix(f"{path}: ")
        raise InputError(
            f"cannot read shard {shown(path)}: {reason}\n"
            "expected an ArrayRecord file, whole; make it or fetch it again, or leave it out"
        ) from None


@functools.lru_cache(_OPEN_SHARDS)
def _open_shard(path: str, expected: Version) -> ArrayRecordReader:
    # A file that is open stays what it is where it is replaced by another of its name.
    if version_of(path) != expected:
        raise OSError("has changed since its records were counted")
    return ArrayRecordReader(path, options="readahead_buffer_size:0", file_reader_buffer_size=32768)
