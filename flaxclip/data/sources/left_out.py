"""What looks like data but is none: files that other programs leave, and odd members of tars.

    cat/._a.jpg  __MACOSX/cat/._a.jpg       macOS' resource forks, on other file systems and in zips
    .ipynb_checkpoints/a-checkpoint.jpg     Jupyter's copies
    PaxHeaders.123/a.jpg                    headers that an old tar has unpacked as if files
    @eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg      a Synology server's thumbnails

None of it is read; all that has the name of an image or a text is counted, and reported.
"""

import re
import tarfile
from collections.abc import Collection, Mapping, Sequence

LEFTOVERS = "leftovers_of_other_programs"
DOTTED = "names_with_further_dots"
MEMBER_REASONS = (LEFTOVERS, DOTTED, "hard_links", "symbolic_links", "special_files")
"""Why a member that is named like part of a sample is none; counts go by these names. Links are
none as in webdataset; sparse files, folders and devices are special."""
_FOLDERS = re.compile(r"__MACOSX|\.ipynb_checkpoints|@eaDir|PaxHeaders?(\..*)?")


def is_leftover(path: str) -> bool:
    """Whether the file at `path`, below a data set's folder, is none of its own.

    Nothing hidden is, as for Hugging Face's imagefolder.
    """
    parts = path.split("/")
    return _is_left_behind(path) or any(part.strip(".") and part[0] == "." for part in parts)


def describe_leftovers(paths: Sequence[str]) -> str:
    """Half a sentence on images that `is_leftover` takes for such; empty if there are none."""
    if not paths:
        return ""
    return f"; {len(paths):,} passed over, hidden or left by other programs: {min(paths)}, ..."


def describe_counts(counts: Mapping[str, int]) -> str:
    """Counts by reason in words: `2 hard links, 1 leftovers of other programs`."""
    return ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in counts.items())


def split_key(name: str) -> tuple[str, str]:
    """A member's key and lower-case extension: as webdataset does, at the base name's first dot.

    The extension is empty where webdataset takes the member for no part of a sample.
    """
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower() if stem else ""


def member_reason(name: str, kind: str, extensions: Collection[str]) -> str | None:
    """Why a member of a tar is left out, one of `MEMBER_REASONS`.

    Args:
        name: the member's.
        kind: by `member_kind`.
        extensions: of what samples are made of, in lower case.

    Returns:
        None for part of a sample, and for what is not named like one.
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
