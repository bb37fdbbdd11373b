"""The files of a peer's model: weights, and the files beside them; local or remote.

Remote ones, at gs://, s3://, hf:// and other protocols of fsspec, are copied to a cache:
`$XDG_CACHE_HOME` or `~/.cache`, in `flaxclip/weights`, one folder for each state of the remote file
or directory. If that changes, it is copied anew.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import fsspec

from flaxclip.data.storage.hub_refusals import hub_refusal
from flaxclip.errors import InputError
from flaxclip.interop.archives.weight_names import (
    ADAPTER_CONFIG,
    ADAPTERS,
    Listing,
    find_weights_file,
    is_index,
    is_weights,
    weights_named_as_usual,
)

# SentencePiece models first: where both are there, they are what a tokenizer.json was made from.
_TOKENIZER_FILES = ("spiece.model", "tokenizer.model", "sentencepiece.model", "tokenizer.json")

_BERT_VOCABULARY = "vocab.txt"

COMPANIONS = (
    "open_clip_config.json",
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    ADAPTER_CONFIG,
    *_TOKENIZER_FILES,
    _BERT_VOCABULARY,
)
"""Files that define how to use the weights beside them."""

# The package that reads the protocols that people use; fsspec names others itself.
_EXTRAS = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "hf": "huggingface_hub"}


def find_weights(path: Path, is_module: bool = False) -> Path | None:
    """The file that holds a peer's weights, or lists those that do; None if `path` has no peer's.

    `is_module`: True if another directory refers to this one.

    Raises:
        InputError: there is no such file, or the directory is a peer's and holds no weights that
            are read.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        if is_weights(path.name):
            raise InputError(f"no file or directory {path}")
        return None
    try:
        entries = list(path.iterdir())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    listing = Listing(
        str(path),
        frozenset(entry.name for entry in entries if entry.is_file()),
        frozenset(entry.name for entry in entries if entry.is_dir()),
        lambda name: (path / name).read_bytes(),
        is_module,
    )
    name = find_weights_file(listing)
    if name is not None and name.endswith("/"):
        return find_weights(path / name, is_module=True)
    return None if name is None else path / name


def tokenizer_file(weights: Path, tokenizer: str, json_first: bool = False) -> str | None:
    """The vocabulary of the tokenizer of that name beside the weights; None if there is none."""
    names = {
        "clip": (),
        "bert": _bert_vocabularies(weights.name),
        "xlm_v": ("tokenizer.json",),
        "nllb": ("tokenizer.json",),
        "bert_uncased": (_BERT_VOCABULARY, "tokenizer.json"),
    }.get(tokenizer, _TOKENIZER_FILES)
    if json_first:
        names = tuple(sorted(names, key=lambda name: not name.endswith(".json")))
    found = [weights.with_name(name) for name in names if weights.with_name(name).is_file()]
    return str(found[0]) if found else None


def _bert_vocabularies(weights: str) -> tuple[str, str]:
    """LiT-B16B.npz has LiT-B16B.txt beside it (big_vision, README_lit.md); BERT has vocab.txt."""
    return str(PurePosixPath(weights).with_suffix(".txt")), _BERT_VOCABULARY


def _open(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of `url`, and the path in it."""
    protocol = url.split("://", 1)[0]
    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        package = _EXTRAS.get(protocol)
        advice = f"pip install {package}" if package else "see the protocols of fsspec"
        raise InputError(f"cannot read {url}: {error}\n{advice}") from None


@contextmanager
def _errors_of(url: str) -> Iterator[None]:
    """Turn all errors into InputError; every protocol has its own."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if refusal := hub_refusal(error, url):
            raise InputError(refusal.message) from None
        raise InputError(f"cannot read {url}: {type(error).__name__}: {error}") from None


def fetch(url: str, is_module: bool = False) -> Path | None:
    """A local copy of the weights at `url`, with the files beside them that define how to use them.

    `url` is a file, or a directory as open_clip or transformers writes it. Returns None for a
    directory without weights, such as a run of ours. `is_module`: True if another directory refers
    to this one.

    Raises:
        InputError: the protocol is not known or its package not installed, or nothing is there, or
            the directory is a peer's and holds no weights that are read.
    """
    files, root = _open(url)
    with _errors_of(url):
        if is_weights(root):
            folder, weights = str(PurePosixPath(root).parent), PurePosixPath(root).name
            listing = _listing(files, folder, url)
            if weights not in listing.files:
                raise InputError(f"there is no file {url}")
        else:
            folder, listing = root, _listing(files, root, url)._replace(is_module=is_module)
            found = find_weights_file(listing)
            if found is None:
                return None
            weights = found
            if weights.endswith("/"):
                return fetch(f"{url.rstrip('/')}/{weights.rstrip('/')}", is_module=True)
        beside = (*COMPANIONS, _bert_vocabularies(weights)[0])
        wanted = [weights, *(name for name in beside if name in listing.files - {weights})]
        if "tokenizer.json" not in listing.files and "vocab.json" in listing.files:
            wanted.append("vocab.json")
        holding = [weights]
        # An adapter's base may lie beside it.
        if weights in ADAPTERS and (base := weights_named_as_usual(listing.files)):
            holding.append(base)
            wanted.append(base)
        for name in filter(is_index, holding):
            # Shards of an index are known only once that is read.
            listed = json.loads(listing.read(name)).get("weight_map", {})
            wanted += sorted({str(name) for name in listed.values()} & listing.files)
        states = [(name, files.ukey(f"{folder}/{name}")) for name in wanted]
        return _copied(files, folder, states) / weights


def _listing(files: fsspec.AbstractFileSystem, folder: str, url: str) -> Listing:
    names: dict[str, set[str]] = {}
    for info in files.ls(folder, detail=True):
        names.setdefault(info["type"], set()).add(PurePosixPath(info["name"]).name)
    return Listing(
        url,
        frozenset(names.get("file", ())),
        frozenset(names.get("directory", ())),
        lambda name: files.cat_file(f"{folder}/{name}"),
    )


def fetch_tree(url: str, choose: Callable[[Sequence[str]], Sequence[str]]) -> Path:
    """A local copy of the files under `url` that `choose` selects from all their names.

    Raises:
        InputError: the protocol is not known or its package not installed, or they cannot be read;
            and what `choose` raises.
    """
    files, root = _open(url)
    with _errors_of(url):
        found = files.find(root)
        names = [name[len(root) :].lstrip("/") for name in found]
        for name in names:
            if ".." in PurePosixPath(name).parts:
                raise InputError(f"{url} has a file {name!r}, outside of it")
        wanted = choose(names)
        return _copied(files, root, [(name, files.ukey(f"{root}/{name}")) for name in wanted])


def _copied(
    files: fsspec.AbstractFileSystem, folder: str, states: Sequence[tuple[str, str]]
) -> Path:
    """The folder in the cache with the files of these names in these states."""
    key = hashlib.sha256(repr((files.protocol, folder, states)).encode()).hexdigest()[:32]
    target = _cache() / key
    if not target.is_dir():
        _copy(files, folder, [name for name, _ in states], target)
    return target


def _cache() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache) / "flaxclip" / "weights"


def _copy(files: fsspec.AbstractFileSystem, folder: str, names: list[str], target: Path) -> None:
    """Copy all files or none: the folder gets its name when it is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=target.parent, prefix="unfinished-"))
    try:
        for name in names:
            (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
            files.get_file(f"{folder}/{name}", str(unfinished / name))
        unfinished.rename(target)
    except OSError:
        if not target.is_dir():  # otherwise another process was faster
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
