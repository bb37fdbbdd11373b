"""Write our models as open_clip's and transformers', with tokenizer and preprocessing."""

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from flaxclip.errors import InputError
from flaxclip.interop.huggingface.identity_projection import lacks_projection, with_identity
from flaxclip.interop.huggingface.names import huggingface_table
from flaxclip.interop.huggingface.tips import as_theirs, has_tips
from flaxclip.interop.huggingface.write_config import huggingface_json, processor_json
from flaxclip.interop.open_clip.names import open_clip_table
from flaxclip.interop.open_clip.read_config import CONFIG_FILE
from flaxclip.interop.open_clip.write_config import open_clip_json
from flaxclip.interop.tokenizer_files import Format, write_tokenizer
from flaxclip.models.inputs import ImageTransform
from flaxclip.models.spec import ModelSpec

# What each library does to an image whatever its files say: of `transparency` and `crop_rounding`.
_FIXED = {"open_clip": ("dropped", "even"), "huggingface": ("white", "down")}


def export(
    spec: ModelSpec, variables: Mapping[str, Any], folder: Path, to: Format, overwrite: bool
) -> list[str]:
    """Write the model into `folder`, whole or not at all.

    Returns:
        Lines that say for which images and texts the other library's preprocessing will not be that
        of `spec`, and how: its files have no words for it.

    Raises:
        InputError: the other library has no such model or tokenizer, the tokenizer's file is not
            known, or `folder` exists and is not to be replaced.
    """
    is_native = spec.preprocess.resize == "native"
    if to == "open_clip":
        weights, tensors = (
            "open_clip_model.safetensors",
            open_clip_table(spec.model, native=is_native),
        )
        texts = {CONFIG_FILE: open_clip_json(spec)}
    else:
        if lacks_projection(spec):
            spec, variables = with_identity(spec, variables)
        weights, tensors = "model.safetensors", huggingface_table(spec.model, is_native)
        texts = {
            "config.json": huggingface_json(spec),
            "preprocessor_config.json": processor_json(spec),
        }
    with new_folder(folder, overwrite) as unfinished:
        found = tensors.to_theirs(variables)
        if to == "huggingface" and has_tips(spec.model):
            found = as_theirs(found)
        _write_weights(found, unfinished / weights)
        for name, value in texts.items():
            (unfinished / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        differences = write_tokenizer(spec, unfinished, to)
    return _other_preprocessing(spec.preprocess, to) + differences


def _other_preprocessing(ours: ImageTransform, to: Format) -> list[str]:
    library = "transformers" if to == "huggingface" else to
    transparency, crop_rounding = _FIXED[to]
    found = []
    if ours.transparency != transparency:
        words = {
            "dropped": "drops alpha, and makes images RGB after the resize",
            "white": "lays images over white, and makes them RGB before the resize",
        }
        found.append(
            f"transparent, palette and 1-bit images: {library} {words[transparency]}; "
            f"this model {words[ours.transparency]}"
        )
    if ours.resize == "shortest" and ours.crop_rounding != crop_rounding:
        found.append(
            f"images with an odd margin: of the two centre crops that are half a pixel beside the "
            f"middle, {library} may take the other one"
        )
    return found


def copy_tokenizer(spec: ModelSpec, folder: Path) -> ModelSpec:
    """`spec` with its vocabulary, if it has one, in `folder`, by its name alone.

    Raises:
        InputError: it has one, whose file cannot be read.
    """
    tokenizer = spec.tokenizer
    if tokenizer.file is None:
        return spec
    name = Path(tokenizer.file).name
    try:
        shutil.copyfile(tokenizer.file, folder / name)
    except OSError as error:
        raise InputError(
            f"cannot read the vocabulary in {tokenizer.file}: {error.strerror}\n"
            "put it back there, or beside the model's config.json"
        ) from None
    return spec._replace(tokenizer=dataclasses.replace(tokenizer, file=name))


@contextmanager
def new_folder(
    folder: Path, overwrite: bool, marks: Sequence[str] = ("config.json", CONFIG_FILE)
) -> Iterator[Path]:
    """A folder that gets the name `folder` when all is written, and is removed if that fails.

    `marks` are files of which one must be in a folder that is replaced.

    Raises:
        InputError: `folder` exists and is not to be replaced, or holds no model.
    """
    if folder.exists():
        if not overwrite:
            raise InputError(f"{folder} exists\nname another folder, or add --overwrite")
        if not any((folder / name).is_file() for name in marks):
            raise InputError(f"{folder} holds no model, so it is not replaced\nname another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        yield unfinished
        unfinished.chmod(0o755)  # mkdtemp's are for the owner alone
        if folder.exists():
            shutil.rmtree(folder)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write_weights(tensors: dict[str, np.ndarray], path: Path) -> None:
    # transformers refuses a file that does not say which library's layout it has.
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})
