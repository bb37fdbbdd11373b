"""Find the file of a directory that holds a model's weights, by the names that peers use."""

import json
import re
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from flaxclip.errors import InputError

# open_clip's names before those of transformers: a repository may hold the same model in both.
_STEMS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)
# A file, or an index of those that it was too large for.
WEIGHTS = tuple(name for stem in _STEMS for name in (stem, f"{stem}.index.json"))
"""The names that open_clip and transformers give to weights in a directory."""

ADAPTER_CONFIG = "adapter_config.json"
ADAPTERS = (
    "adapter_model.safetensors",
    "adapter_model.safetensors.index.json",
    "adapter_model.bin",
)
"""The names that peft gives to an adapter's tensors, which change a model and are none."""

WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".npz", ".index.json")

# transformers' `variant="fp16"`: model.fp16.safetensors, model.safetensors.index.fp16.json
_VARIANTS = tuple(
    re.compile(pattern)
    for stem, suffix in (name.rsplit(".", 1) for name in _STEMS)
    for pattern in (
        rf"{stem}\.([\w-]+)\.{suffix}",
        rf"{stem}\.{suffix}\.index\.([\w-]+)\.json",
    )
)

_PARTS = re.compile(r"-\d+-of-\d+\.")
_UNREAD = (".msgpack", ".h5", ".gguf", ".onnx")
_RUN_FOLDER = "checkpoints"  # beside config.json, of a run of ours
_CONFIGS = ("config.json", "open_clip_config.json")


class Listing(NamedTuple):
    """The contents of a directory, local or remote."""

    where: str
    files: frozenset[str]
    folders: frozenset[str]
    read: Callable[[str], bytes]
    """Contents of a file."""
    is_module: bool = False
    """True if another directory refers to this one, as in sentence-transformers."""


def is_index(name: str) -> bool:
    """True if a file of this name lists the files that hold the weights."""
    return re.search(r"\.index(\.[\w-]+)?\.json$", name) is not None


def is_weights(name: str) -> bool:
    """True if a file of this name may hold or list weights that can be read."""
    return name.endswith(WEIGHTS_SUFFIXES) or is_index(name)


def find_weights_file(listing: Listing) -> str | None:
    """The file with the weights, or the index of several; None if no file is a peer's.

    Of a directory with an adapter, that adapter: its base may lie beside it or elsewhere.
    A directory of sentence-transformers may have them in a folder: `0_CLIPModel/model.safetensors`.

    Raises:
        InputError: what lies there is of a peer, but holds no weights that are read, or several.
    """
    folder = _clip_module(listing)
    if folder is not None and folder in listing.folders:
        return f"{folder}/"
    is_run = _RUN_FOLDER in listing.folders and "config.json" in listing.files
    if ADAPTER_CONFIG in listing.files and not is_run:
        return _adapter(listing)
    name = weights_named_as_usual(listing.files)
    if name is not None:
        return name
    if is_run:
        return None
    variant = _variant(listing)
    if variant is None:
        _refuse(listing)
    return variant


def weights_named_as_usual(files: Collection[str]) -> str | None:
    """The likeliest of these files, by their names, to hold or list a model's weights."""
    return next((name for name in WEIGHTS if name in files), None)


def _adapter(listing: Listing) -> str:
    for name in ADAPTERS:
        if name in listing.files:
            return name
    raise InputError(
        f"{listing.where} has {ADAPTER_CONFIG}, and no adapter of a name that is read\n"
        f"expected {ADAPTERS[0]} or {ADAPTERS[-1]}; or name a file of weights, to read that alone"
    )


def _variant(listing: Listing) -> str | None:
    found: dict[str, str] = {}  # the likeliest name for each
    for pattern in _VARIANTS:
        for name in sorted(listing.files):
            if (match := pattern.fullmatch(name)) and not _PARTS.search(name):
                found.setdefault(match[1], name)
    if len(found) > 1:
        raise InputError(
            f"{listing.where} holds variants of the weights: {', '.join(found.values())}\n"
            "name the file itself, to choose one"
        )
    return next(iter(found.values()), None)


def _refuse(listing: Listing) -> None:
    """Raise InputError if the directory holds a file that only peers write."""
    there = sorted(n for n in listing.files if is_weights(n) or n.endswith(_UNREAD))
    configs = [name for name in _CONFIGS if name in listing.files and _is_peers(listing, name)]
    if not there and not configs:
        return
    found = there or configs
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    advice = "name one of these files itself" if any(map(is_weights, there)) else (
        "weights of Flax and TensorFlow are not read: with transformers 4, "
        "CLIPModel.from_pretrained(folder, from_flax=True).save_pretrained(new_folder)"
        if there
        else "put the weights beside it, or name another directory"
    )  # fmt: skip
    raise InputError(
        f"{listing.where} holds no weights of a name that is read; found: {', '.join(found[:5])}"
        f"{more}\nread are {', '.join(_STEMS)}, their .index.json, and variants such as "
        f"model.fp16.safetensors\n{advice}"
    )


def _is_peers(listing: Listing, config: str) -> bool:
    """True if the config.json is a peer's; our runs also have one, with other contents."""
    value = _json(listing, config)
    return isinstance(value, dict) and bool(value.keys() & {"model_type", "model_cfg"})


def _clip_module(listing: Listing) -> str | None:
    """The folder of the CLIP in a model of sentence-transformers; None if it is no such model.

    Raises:
        InputError: what follows the CLIP there changes its embeddings.
    """
    if "modules.json" not in listing.files or listing.is_module:
        return None
    modules = _json(listing, "modules.json")
    is_list = isinstance(modules, list) and all(isinstance(module, dict) for module in modules)
    if not is_list or not modules:
        return None
    for module in modules[1:]:
        kind = str(module.get("type", "of no type")).rpartition(".")[2]
        if kind != "Normalize":  # which is done to every embedding here
            raise InputError(
                f"{listing.where} is a model of sentence-transformers, in which a module {kind} "
                "follows the first one\nthat cannot be read; a CLIP alone, or with Normalize, can"
            )
    # A name, not a path: the list must not make us read files elsewhere.
    path = str(modules[0].get("path", ""))
    return path if re.fullmatch(r"\w[\w.-]*", path) else None


def _json(listing: Listing, name: str) -> Any:
    try:
        return json.loads(listing.read(name))
    except (OSError, ValueError, RecursionError):
        return None
