"""ArrayRecord shards of images and the fields beside them, as `data.prepare` writes them.

Each record of a shard is a msgpack map, made by `encode_record`:

    key      str    the example's name in the corpus that it comes from
    image    bytes  the encoded image, as a file would hold it
    fields   str    a JSON object: the texts, labels and metadata beside the image, by name

Fields have the names that `Source.fields` gives them: the text beside an image is `txt`, the rest
is as it was in the JSON or the table. JSON rather than msgpack's own types, which cannot hold every
number and every text that JSON holds.

Write with `ArrayRecordWriter(path, "group_size:1,uncompressed")`: one record a chunk, so that one
can be read alone; images are compressed already.
"""

import bisect
import concurrent.futures
import contextlib
import functools
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import msgpack
from array_record.python.array_record_module import ArrayRecordReader

from flaxclip.data.sources.captions import (
    DEFAULT_CAPTIONS,
    CaptionConfig,
    json_fields,
    make_captions,
)
from flaxclip.data.sources.empty_shards import check_empty_shards
from flaxclip.data.sources.shard_paths import expand_shards, shown
from flaxclip.data.sources.source import Pair, UnreadableExampleError
from flaxclip.data.sources.storage import Version, local_copy, version_of
from flaxclip.errors import InputError

DEFAULT_CAPTION_KEYS = ("txt", "caption")
_DOUBT = "an ArrayRecord file that was cut off or never closed looks empty too: "
_OPEN_SHARDS = 128  # kept open in each process; the usual limit is 1,024 files


def encode_record(key: str, image: bytes, fields: Mapping[str, Any]) -> bytes:
    """One record, to be written to a shard.

    Raises:
        TypeError, ValueError: `fields` are no JSON values.
    """
    # Escaped, since the JSON of a record may name code points that no UTF-8 text holds.
    return msgpack.packb({"key": key, "image": image, "fields": json.dumps(fields)})


def decode_record(data: bytes) -> tuple[str, bytes, dict[str, Any]]:
    """Key, image and fields.

    Raises:
        UnreadableExampleError: `encode_record` has not made this.
    """
    try:
        record = msgpack.unpackb(data)
        key, image, fields = record["key"], record["image"], record["fields"]
    except (ValueError, KeyError, TypeError, msgpack.UnpackException) as error:
        reason = f"no record of an image with fields: {type(error).__name__} {error}"
        raise UnreadableExampleError(reason) from None
    if not (isinstance(key, str) and isinstance(image, bytes) and isinstance(fields, str)):
        raise UnreadableExampleError("no record of an image with fields: they have other types")
    return key, image, json_fields(fields.encode("utf-8", "surrogatepass"))


class ArrayRecordSource:
    """A `Source` over ArrayRecord shards, sorted by path; remote ones are copied into the cache."""

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
        # The library reads local files alone.
        self._files = [local_copy(path) for path in self.paths]
        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            counts = list(pool.map(count_records, self._files))
        self._ends = list(itertools.accumulate(counts))
        self._versions = [version_of(file) for file in self._files]
        found = zip(self.paths, counts, self._versions, strict=True)
        empty = [(path, version.size) for path, count, version in found if not count]
        self.empty_shards = len(empty)
        check_empty_shards(empty, len(self.paths), allow_empty_shards, _DOUBT)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Pair:
        _, image, fields = self._read(index)
        return Pair(image, *make_captions(fields, self._captions, DEFAULT_CAPTION_KEYS))

    def fields(self, index: int) -> dict[str, Any]:
        """The fields of the record."""
        return self._read(index)[2]

    def name(self, index: int) -> str:
        """Shard and the record's number in it, e.g. `train-00003.array_record/17`."""
        shard, position = self._locate(index)
        return f"{os.path.basename(self.paths[shard])}/{position}"

    def _read(self, index: int) -> tuple[str, bytes, dict[str, Any]]:
        shard, position = self._locate(index)
        try:
            (data,) = _open_shard(self._files[shard], self._versions[shard]).read([position])
        except (OSError, RuntimeError, IndexError, ValueError) as error:
            raise UnreadableExampleError(f"{self.paths[shard]}: {error}") from error
        return decode_record(data)

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self):,}")
        shard = bisect.bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)


def count_records(path: str) -> int:
    """Number of records in a shard.

    A file that was cut off, or that its writer never closed, may count as one without records.

    Raises:
        InputError: it is missing, or no whole ArrayRecord file.
    """
    try:
        if not os.path.getsize(path):
            return 0
        with contextlib.closing(ArrayRecordReader(path)) as reader:
            return reader.num_records()
    except (OSError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or ["not whole"])[0]
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
