"""Files that look like data but are not: leftovers of other programs, and odd members of tars.

    cat/._a.jpg  __MACOSX/cat/._a.jpg       macOS' resource forks, on other file systems and in zips
    .ipynb_checkpoints/a-checkpoint.jpg     Jupyter's copies
    PaxHeaders.123/a.jpg                    headers that an old tar has unpacked as if files
    @eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg      a Synology server's thumbnails

None of them are read; those that have the name of an image or a text are counted and reported.
"""

import re
import tarfile
from collections.abc import Collection, Mapping, Sequence

LEFTOVERS = "leftovers_of_other_programs"
DOTTED = "names_with_further_dots"
MEMBER_REASONS = (LEFTOVERS, DOTTED, "hard_links", "symbolic_links", "special_files")
"""Reasons why a member named like part of an example is left out; counts go by these names. Links
are left out as in webdataset; sparse files, folders and devices are special."""
_FOLDERS = re.compile(r"__MACOSX|\.ipynb_checkpoints|@eaDir|PaxHeaders?(\..*)?")


def is_leftover(path: str) -> bool:
    """True if the file at `path`, relative to a data set's folder, is not part of the data set.

    Hidden files never are, as in Hugging Face's imagefolder.
    """
    parts = path.split("/")
    return _is_left_behind(path) or any(part.strip(".") and part[0] == "." for part in parts)


def describe_leftovers(paths: Sequence[str]) -> str:
    """Half a sentence on images that are leftovers by `is_leftover`; empty if there are none."""
    if not paths:
        return ""
    return f"; {len(paths):,} passed over, hidden or left by other programs: {min(paths)}, ..."


def describe_counts(counts: Mapping[str, int]) -> str:
    """Counts by reason in words: `2 hard links, 1 leftovers of other programs`."""
    return ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in counts.items())


def split_key(name: str) -> tuple[str, str]:
    """A member's key and lower-case extension, split at the base name's first dot as in webdataset.

    The extension is empty if webdataset does not take the member for part of an example.
    """
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower() if stem else ""


def member_reason(name: str, kind: str, extensions: Collection[str]) -> str | None:
    """The reason for leaving out a member of a tar: one of `MEMBER_REASONS`.

    Args:
        name: the member's.
        kind: by `member_kind`.
        extensions: of what samples are made of, in lower case.

    Returns:
        None if it is part of an example, or not named like one.
    """
    _, dot, extension = name.rpartition("/")[2].rpartition(".")
    if not dot or extension.lower() not in extensions:
        return None
    if _is_left_behind(name):
        return LEFTOVERS
    if kind:
        return kind
    return None if split_key(name)[1] in extensions else DOTTED


def member_kind(member: tarfile.TarInfo) -> str:
    """Empty for a plain file, whose data lies in one piece in the tar; else one of
    `MEMBER_REASONS`.
    """
    if member.islnk():
        return "hard_links"
    if member.issym():
        return "symbolic_links"
    return "" if member.isreg() and not member.issparse() else "special_files"


def _is_left_behind(path: str) -> bool:
    # In a tar, folders may be hidden: webdataset reads what is in them.
    *folders, base = path.split("/")
    return base.startswith(".") or any(map(_FOLDERS.fullmatch, folders))
