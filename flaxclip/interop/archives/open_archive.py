"""Files of weights -> tensors by name, without torch and without running what a file contains.

A file's tensors are listed when it is opened; the numbers of one are read when they are asked for.
Zip archives carry checksums, so a flipped bit in them is found then; safetensors and torch's format
before 1.6 have none, nor has what torch saved with its checksums turned off.
"""

import io
import json
import re
import zipfile
from pathlib import Path

from flaxclip.errors import InputError
from flaxclip.interop.archives.numpy_archive import open_npz
from flaxclip.interop.archives.safetensors_file import is_safetensors, open_safetensors
from flaxclip.interop.archives.state_dicts import WhichWeights, choose_weights, without_wrappers
from flaxclip.interop.archives.stored_tensor import DAMAGED, StoredTensor
from flaxclip.interop.archives.torch_legacy import open_torch_legacy
from flaxclip.interop.archives.torch_storages import Storages, stored_tensors
from flaxclip.interop.archives.torch_zip import open_torch_zip

# What else people take for weights, by how it begins.
_OTHERS = {
    b"version https://git-lfs": (
        "a pointer of Git LFS, not the file that it stands for\nfetch that: git lfs pull"
    ),
    b"\x89HDF\r\n\x1a\n": "an HDF5 file, as Keras and TensorFlow write",
    b"GGUF": "a GGUF file, as llama.cpp reads",
    b"<": "a web page: the download went wrong",
    b"PK\5\6": "a zip archive with nothing in it",
}


class Archive(dict[str, StoredTensor]):
    """Tensors by name, with the choice that was made among a file's weights."""

    key = ""
    """Key of these weights in a file that also holds others."""
    is_average = False
    """True if the file marks them as an average (EMA)."""
    others: tuple[str, ...] = ()
    """Keys of the file's other weights, which were not loaded."""

    def describe(self) -> str:
        """Text to follow the name of a format: the weights chosen, empty if there is no choice."""
        if not self.is_average and not self.others:
            return ""
        kind = "averaged weights" if self.is_average else "weights"
        name = f" {self.key!r}" if self.key else ""
        others = f", not {' or '.join(map(repr, self.others))}" if self.others else ""
        return f", {kind}{name}{others}"


def open_archive(path: Path, which: WhichWeights | None = None) -> Archive:
    """The tensors of a safetensors file, an index of several, a torch file, or an .npz.

    The kind is detected from the contents, whatever the file's name. Prefixes that training adds to
    the names, such as `module.` and `_orig_mod.`, are removed.

    Args:
        path: the file.
        which: of a checkpoint that holds weights and their average. If None, the average.

    Raises:
        InputError: none of these, damaged, or with contents that weights do not have; or it does
            not hold the weights that are asked for.
    """
    try:
        start = _start(path)
        is_index = start.lstrip().startswith(b"{") and not is_safetensors(start)
        archive = _open_sharded(path) if is_index else _open_file(path, start, which)
        tensors, is_average = without_wrappers(archive)
        result = Archive(tensors)
        result.key, result.others = archive.key, archive.others
        result.is_average = archive.is_average or is_average
        if which == "raw" and result.is_average:
            raise InputError(
                "the file holds an average of weights alone, as AveragedModel saves it"
            )
        if which == "ema" and not result.is_average:
            raise InputError(
                "the file holds one set of weights, and does not say that they are an average\n"
                "leave out the choice between ema and raw"
            )
        return result
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def open_archive_in_memory(data: bytes) -> dict[str, StoredTensor]:
    """The tensors of an .npz, or of a dict that torch has saved.

    Raises:
        InputError: neither of these, or damaged, or with more in it than tensors.
    """
    if data.startswith(b"\x80"):
        return _open_torch(*open_torch_legacy(data), None)
    if not data.startswith(b"PK\3\4"):
        raise InputError(f"neither an .npz nor a torch file: starts with {data[:16]!r}")
    return _open_zip(data, None)


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(512)


def _open_file(path: Path, start: bytes, which: WhichWeights | None) -> Archive:
    """Open one file of weights, recognised by its first bytes."""
    if is_safetensors(start):  # first: its length may look like any of the others
        return Archive(open_safetensors(path))
    if start.startswith(b"PK\3\4"):
        return _open_zip(path, which)
    if start.startswith(b"\x80"):
        return _open_torch(*open_torch_legacy(path), which)
    raise InputError(
        next((kind for begin, kind in _OTHERS.items() if start.startswith(begin)), None)
        or (f"no file of weights: starts with {start[:16]!r}" if start else "an empty file")
        + "\nexpected safetensors, a torch file (.pt, .bin), or an .npz of big_vision"
    )


def _open_sharded(path: Path) -> Archive:
    """All files that a `model.safetensors.index.json` or `pytorch_model.bin.index.json` lists."""
    try:
        files = json.loads(path.read_text())["weight_map"]
        named = {str(name): str(file) for name, file in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"no index of weights: {type(error).__name__}: {error}\nexpected JSON with a weight_map"
        ) from None
    tensors = Archive()
    for file in sorted(set(named.values())):
        # A name, not a path: an index must not make us read files elsewhere.
        if not re.fullmatch(r"\w[\w.-]*\.(safetensors|bin)", file):
            raise InputError(
                f"the index names the file {file!r}\n"
                "expected the name of a .safetensors or .bin beside it"
            )
        part = path.parent / file
        try:
            found = _open_file(part, _start(part), None)
        except (InputError, OSError) as error:
            raise InputError(f"{file}, which the index names: {error}") from None
        if both := found.keys() & tensors.keys():
            raise InputError(f"tensor {min(both)} is in {file} and in another file of the index")
        tensors.update(found)
    if missing := sorted(named.keys() - tensors.keys()):
        raise InputError(f"tensor {missing[0]} is in the index, but not in {named[missing[0]]}")
    return tensors


def _open_zip(file: Path | bytes, which: WhichWeights | None) -> Archive:
    try:
        archive = zipfile.ZipFile(io.BytesIO(file) if isinstance(file, bytes) else file)
    except DAMAGED as error:
        raise InputError(f"a zip archive that is damaged or cut off: {error}") from None
    entries = {}
    for entry in archive.infolist():
        if entry.filename.startswith("/") or ".." in re.split(r"[/\\]", entry.filename):
            raise InputError(f"the archive has an entry {entry.filename!r}, outside of its folder")
        if entry.filename in entries:
            raise InputError(f"the archive has two entries {entry.filename!r}")
        entries[entry.filename] = entry
    roots = {name.removesuffix("data.pkl") for name in entries if re.match("[^/]+/data.pkl$", name)}
    if len(roots) == 1:
        return _open_torch(*open_torch_zip(file, archive, entries, roots.pop()), which)
    if entries and all(name.endswith(".npy") for name in entries):
        return Archive(open_npz(file, archive, entries))
    raise InputError(
        "a zip archive that is neither a torch file nor an .npz\n"
        "expected FOLDER/data.pkl with FOLDER/data/..., or NAME.npy"
    )


def _open_torch(value: object, storages: Storages, which: WhichWeights | None) -> Archive:
    chosen = choose_weights(value, which)
    archive = Archive(stored_tensors(chosen.tensors, storages))
    archive.key, archive.is_average, archive.others = chosen.key, chosen.is_average, chosen.others
    return archive
