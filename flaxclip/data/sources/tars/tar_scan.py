"""Read one tar shard's headers once: the members of each pair, and the positions of their data."""

import os
import tarfile
from typing import Any, NamedTuple

import numpy as np

from flaxclip.data.sources.left_out import (
    DOTTED,
    MEMBER_REASONS,
    describe_counts,
    member_kind,
    member_reason,
    split_key,
)
from flaxclip.data.sources.shard_paths import shown
from flaxclip.data.sources.tars.remote_headers import RemoteHeaders
from flaxclip.data.storage.file_systems import Version, is_remote, version_of
from flaxclip.data.storage.files import open_to_read
from flaxclip.errors import InputError

IMAGE_EXTENSIONS = ("jpg", "png", "jpeg", "webp")  # open_clip's order, where a key has several

# Offsets are those of the member's data in the tar, 0 where there is no such member (a header comes
# first). Sizes saturate at 4 GiB, far above what is ever read.
ENTRY = np.dtype(
    [
        ("shard", "<u4"),
        ("image_offset", "<u8"),
        ("image_size", "<u4"),
        ("txt_offset", "<u8"),
        ("txt_size", "<u4"),
        ("json_offset", "<u8"),
        ("json_size", "<u4"),
        ("key_end", "<u8"),  # in `keys`; a key starts where the one before ends
    ]
)
COUNTS = (
    "pairs",
    "images_without_caption",
    "captions_without_image",
    "extra_images",  # further images of a key that has one
    "repeated_keys",  # each repetition makes an example of its own, as in open_clip
)


READ_WHOLE = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)
"""Types of headers that count for the next one. tarfile reads them at once, however long they say
that they are."""
_MAX_HEADER_BYTES = 2**20
_PLAIN_FILE = tarfile.REGTYPE[0]
_EXTENSIONS = frozenset((*IMAGE_EXTENSIONS, "txt", "json"))
# DataCompDR's, which `reinforced.datacompdr` reads where training asks for them.
_BESIDE = frozenset(("paug.json", "syn.json", "url.txt"))


class ShardScan(NamedTuple):
    """The contents of one shard."""

    entries: np.ndarray
    """[pairs] of `ENTRY`; `shard` is 0 and `key_end` counts within `keys`."""
    keys: bytes
    """The pairs' keys, one after the other, in UTF-8."""
    counts: dict[str, int]
    """By the names in `COUNTS` and `MEMBER_REASONS`."""


_EMPTY = ShardScan(np.zeros(0, ENTRY), b"", dict.fromkeys((*COUNTS, *MEMBER_REASONS), 0))


def scan_shard(path: str, version: Version | None = None) -> ShardScan | InputError:
    """The pairs in a shard; or its error, returned so that those of all shards can be reported.

    No pairs if the shard has no members, or no bytes.

    Args:
        path: of the shard, or its URL.
        version: the state that it is in. If None, it is asked for.
    """
    try:
        with _open(path, version) as file:
            if not file.seek(0, os.SEEK_END):
                return _EMPTY
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:", tarinfo=Header) as tar:
                return _scan_members(tar, path)
    except InputError as error:
        return error
    except (tarfile.TarError, ValueError, OverflowError) as error:
        return InputError(f"not a tar: {shown(path)}\n{error}; {_looks_like(path)}")
    except OSError as error:
        return InputError(f"cannot read shard {shown(path)}: {error.strerror or error}")


def _open(path: str, version: Version | None = None) -> Any:
    if is_remote(path):
        return RemoteHeaders(path, version or version_of(path))
    return open_to_read(path)


class Header(tarfile.TarInfo):
    """tarfile's header, with a bound on its length: a damaged header can claim any."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "Header":
        header = super().frombuf(buf, encoding, errors)
        if header.type in READ_WHOLE and not 0 <= header.size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"header of {header.size:,} bytes")
        return header


class _Member(NamedTuple):
    name: str
    kind: str
    """By `member_kind`."""
    offset: int
    """Offset of its data."""
    size: int


def _scan_members(tar: tarfile.TarFile, path: str) -> ShardScan:
    groups: list[tuple[str, dict[str, tuple[int, int]]]] = []
    last_of_key: dict[str, dict[str, tuple[int, int]]] = {}
    counts = dict.fromkeys((*COUNTS, *MEMBER_REASONS), 0)
    file: Any = tar.fileobj
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    members, first, dotted, beside = 0, None, set(), 0
    while (member := _next_member(tar, path, members, size)) is not None:
        members += 1
        first = first or member.name
        key, extension = split_key(member.name)
        reason = member_reason(member.name, member.kind, _EXTENSIONS)
        if reason == DOTTED and extension in _BESIDE:
            beside += 1
        elif reason == DOTTED:  # an image and its caption are one
            dotted.add(member.name.rpartition(".")[0])
        elif reason:
            counts[reason] += 1
        if reason or extension not in _EXTENSIONS:
            continue
        group = last_of_key.get(key)
        if group is None or extension in group:
            counts["repeated_keys"] += group is not None
            group = last_of_key[key] = {}
            groups.append((key, group))
        group[extension] = member.offset, min(member.size, 2**32 - 1)

    rows, keys, absent = [], bytearray(), (0, 0)
    for key, group in groups:
        images = [group[extension] for extension in IMAGE_EXTENSIONS if extension in group]
        txt, json = group.get("txt", absent), group.get("json", absent)
        if not images:
            counts["captions_without_image"] += 1
        elif txt == json == absent:
            counts["images_without_caption"] += 1
        else:
            counts["extra_images"] += len(images) - 1
            keys += key.encode("utf-8", "surrogateescape")
            rows.append((0, *images[0], *txt, *json, len(keys)))
    counts["pairs"], counts[DOTTED] = len(rows), len(dotted)
    if not members:
        return _EMPTY
    if not rows:
        first = f"first member: {first}. " if first else ""
        odd = describe_counts({name: counts[name] for name in MEMBER_REASONS if counts[name]})
        odd = f"left out: {odd}\n" if odd else ""
        odd += "names end at their first dot: rename such files\n" if dotted else ""
        odd += "DataCompDR has no images: join its files with yours by key\n" if beside else ""
        raise InputError(
            f"no image–caption pairs in {shown(path)}\n"
            f"{members} members, none of .jpg .jpeg .png .webp with a .txt or .json of the same "
            f"name\n{odd}{first}Expected the layout that img2dataset writes with --output_format "
            "webdataset"
        )
    return ShardScan(np.array(rows, ENTRY), bytes(keys), counts)


def _next_member(tar: tarfile.TarFile, path: str, number: int, size: int) -> _Member | None:
    """The next member; None only if the archive marks its end.

    tarfile itself takes a bad header, or the end of the file, for the end of the archive.
    """
    start = tar.offset
    # Not the first, which tarfile has read already; nor under headers that are meant for all.
    plain = _plain_file(tar) if number and not tar.pax_headers else None
    if plain is not None:
        if tar.offset > size:
            raise _broken(path, number, size, f"in {plain.name}, which ends at {tar.offset:,}")
        return plain
    try:
        member = tar.next()
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise _broken(path, number, start, str(error)) from None
    # tarfile would keep every header, in a list that its type stubs leave out.
    tar.members.clear()  # type: ignore[attr-defined]
    if member is not None:
        if member.size < 0:  # would send tarfile round in circles
            raise _broken(path, number, member.offset, f"{member.name} has a negative size")
        if tar.offset > size:
            raise _broken(path, number, size, f"in {member.name}, which ends at {tar.offset:,}")
        return _Member(member.name, member_kind(member), member.offset_data, member.size)
    tar.fileobj.seek(tar.offset)
    end = tar.fileobj.read(tarfile.BLOCKSIZE)
    if end != bytes(tarfile.BLOCKSIZE):
        reason = "a bad header" if len(end) == tarfile.BLOCKSIZE else "no end-of-archive mark"
        raise _broken(path, number, tar.offset, reason)
    if tar.fileobj.read(2**20).strip(b"\0"):
        raise InputError(
            f"data after the end of the archive in {shown(path)}\n"
            f"it ends at byte {tar.offset:,} of {size:,}. Concatenated tars? Unpack with "
            "tar --ignore-zeros, and pack again"
        )
    return None


def _plain_file(tar: tarfile.TarFile) -> _Member | None:
    """The next member, if it is a file whose header has only a name and a size.

    Nearly all are, and tarfile, which reads the others, takes far longer over each.
    """
    start = tar.offset
    tar.fileobj.seek(start)
    buf = tar.fileobj.read(tarfile.BLOCKSIZE)
    # Type, and the prefix of a long name.
    if len(buf) < tarfile.BLOCKSIZE or buf[156] != _PLAIN_FILE or buf[345]:
        return None
    total, digits = buf[148:156].strip(b"\0 "), buf[124:136].strip(b"\0 ")
    if not (total.isdigit() and digits.isdigit()):
        return None
    try:
        size, expected = int(digits, 8), int(total, 8)
    except ValueError:
        return None
    # The sum is taken as if its own field held blanks.
    if expected != sum(buf) - sum(buf[148:156]) + 8 * ord(" "):
        return None
    offset = start + tarfile.BLOCKSIZE
    tar.offset = offset + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return _Member(buf[:100].split(b"\0", 1)[0].decode(tar.encoding, tar.errors), "", offset, size)


def _broken(path: str, number: int, position: int, reason: str) -> InputError:
    return InputError(
        f"truncated or damaged tar: {shown(path)}\n"
        f"breaks off at byte {position:,}, after {number:,} members: {reason}\n"
        "fetch the shard again, or leave it out"
    )


def _looks_like(path: str) -> str:
    magics = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd"}
    with _open(path) as file:
        start = file.read(16)
    for magic, program in magics.items():
        if start.startswith(magic):
            return f"compressed by {program}. Random access needs plain tars: decompress it"
    return f"starts with {start!r}" if start else "fetch the shard again, or leave it out"
