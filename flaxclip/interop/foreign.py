"""Detect the peer's format of a file or directory, and the model in it."""

import dataclasses
import math
from pathlib import Path
from typing import Any, NoReturn

from flaxclip.errors import InputError
from flaxclip.interop import big_vision, lit, openai
from flaxclip.interop.archives.open_archive import open_archive
from flaxclip.interop.archives.state_dicts import WhichWeights
from flaxclip.interop.archives.stored_tensor import StoredTensor
from flaxclip.interop.files import fetch, find_weights, tokenizer_file
from flaxclip.interop.huggingface.names import huggingface_table
from flaxclip.interop.huggingface.read_config import read_config as read_huggingface_config
from flaxclip.interop.huggingface.tips import as_ours, is_tips, read_tips, tips_table
from flaxclip.interop.long_clip import is_long_clip, long_clip_tensors
from flaxclip.interop.open_clip.names import has_open_clip, open_clip_table
from flaxclip.interop.open_clip.read_config import CONFIG_FILE as OPEN_CLIP_CONFIG_FILE
from flaxclip.interop.open_clip.read_config import read_config as read_open_clip_config
from flaxclip.interop.peft.adapter_config import is_adapter, read_adapter_config
from flaxclip.interop.peft.merge import merge_adapter
from flaxclip.interop.source import ForeignModel
from flaxclip.interop.tokenizer_class import is_json_alone
from flaxclip.interop.trunks.registry import tower_as_stored
from flaxclip.models.modified_resnet import ResNetConfig
from flaxclip.models.spec import ModelSpec
from flaxclip.models.variants import VARIANTS


def find_foreign(
    path: str, model: str | None = None, which: WhichWeights | None = None
) -> ForeignModel | None:
    """The model in a file of weights, or in a directory that open_clip or transformers wrote.

    An adapter of peft is merged into its base.

    Args:
        path: the file, the directory, or the URL of one. A file's configuration may lie beside it.
        model: name of its architecture in `available_models()`, for a file that does not say. Of
            one that does, the name must be that architecture's.
        which: weights of a file that holds them and their average. If None, the average.

    Returns:
        None, if `path` does not look like weights of a peer, such as a run of ours.

    Raises:
        InputError: it does, but is damaged, has an unsupported architecture, lacks the weights
            asked for, needs `model`, which is not given, or is of another one.
    """
    local = fetch(path) if "://" in path else Path(path).expanduser()
    weights = local and find_weights(local)
    if weights is None:
        if model is not None:
            raise InputError(f"{path}: no weights of another library, for which model= is")
        return None
    model = model and model.replace("/", "-")
    if model is not None and model not in VARIANTS:
        raise InputError(f"unknown model {model!r}\nknown: {', '.join(VARIANTS)}")
    if is_adapter(weights):
        return _with_adapter(weights, model, which)
    archive = open_archive(weights, which)
    foreign = _recognise(weights.parent, weights, archive, model)
    tokenizer = foreign.spec.tokenizer
    file = tokenizer_file(weights, tokenizer.name, is_json_alone(weights.parent))
    return dataclasses.replace(
        foreign,
        spec=foreign.spec._replace(tokenizer=dataclasses.replace(tokenizer, file=file)),
        file=str(weights),
        kind=foreign.kind + archive.describe(),
        has_both=which is None and archive.is_average and bool(archive.others),
    )


def _with_adapter(adapter: Path, model: str | None, which: WhichWeights | None) -> ForeignModel:
    """The adapter's base, with the adapter merged into it."""
    config = read_adapter_config(adapter.parent)
    path = config.base()
    try:
        base = find_foreign(path, model, which)
    except InputError as error:
        raise InputError(f"{adapter} changes the model {path}:\n{error}") from None
    if base is None:
        raise InputError(
            f"{adapter} changes the model {path}\nwhich holds no weights of another library: "
            "adapters of peft have the names of those"
        )
    merged = merge_adapter(base.tensors, adapter, config)
    return dataclasses.replace(
        base,
        tensors=merged.tensors,
        kind=f"{base.kind}, with {merged.summary} of {adapter.parent} merged into it",
    )


def _recognise(
    folder: Path, weights: Path, tensors: dict[str, StoredTensor], model: str | None
) -> ForeignModel:
    named = VARIANTS[model] if model is not None else None
    if is_long_clip(tensors):
        tensors = long_clip_tensors(tensors)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if "vision_model.post_layernorm.weight" in tensors:
        if not (folder / "config.json").is_file():
            raise InputError(
                f"{weights} has no config.json beside it\n"
                "these are weights of transformers, whose shapes do not tell heads and activation: "
                "copy config.json and preprocessor_config.json from where the weights are from"
            )
        spec, kind = read_huggingface_config(folder)
        _check_named(weights, spec, model)
        table = huggingface_table(spec.model, flat_patches=kind == "siglip2")
        return ForeignModel(f"transformers, {kind}", spec, tensors, table)
    if is_tips(tensors):
        spec = read_tips(folder)
        _check_named(weights, spec, model)
        tensors = as_ours(tensors, spec.model)
        return ForeignModel("transformers, tipsv2", spec, tensors, tips_table(spec.model))
    if any(name.endswith("img/embedding/kernel") for name in tensors):
        if named is not None and isinstance(named.model.vision, ResNetConfig):
            raise InputError(f"{weights} has a vision transformer\n{model} has a ResNet")
        tensors = big_vision.without_root(tensors)
        if lit.is_lit(tensors):
            tensors = lit.lit_tensors(tensors)
            spec = named or lit.spec_from_tensors(tensors)
            table = lit.lit_table(spec.model, tensors)
            return ForeignModel("big_vision, LiT", spec, tensors, table)
        spec = named or big_vision.spec_from_tensors(tensors)
        # That of named architectures is open_clip's.
        tokenizer = dataclasses.replace(spec.tokenizer, cleaning=big_vision.TEXT_CLEANING)
        spec = spec._replace(tokenizer=tokenizer)
        native = big_vision.is_native(tensors)
        if not native and spec.preprocess.resize == "native":
            raise InputError(
                f"{weights} has an image tower of squares\n{model} is one of images at their own "
                "aspect ratio"
            )
        if native and spec.preprocess.resize != "native":
            spec = spec._replace(preprocess=big_vision.NATIVE_IMAGES)
        table = big_vision.big_vision_table(spec.model, big_vision.is_stacked(tensors), native)
        return ForeignModel("big_vision", spec, tensors, table)
    if all(name in tensors for name in openai.CONSTANTS):
        # TorchScript archives of OpenAI: all were trained with QuickGELU.
        tensors = {n: tensor for n, tensor in tensors.items() if n not in openai.CONSTANTS}
        spec = ModelSpec(openai.config_from_shapes(shapes))
        _check_named(weights, spec, model)
        return ForeignModel("OpenAI", spec, tensors, open_clip_table(spec.model, shapes))
    config_file = folder / OPEN_CLIP_CONFIG_FILE
    if config_file.is_file():
        spec = read_open_clip_config(config_file)
        _check_named(weights, spec, model)
    elif named is not None:
        spec = named
    else:
        _refuse_bare(weights, shapes)
    vision = tower_as_stored(spec.model.vision, shapes)
    spec = spec._replace(model=dataclasses.replace(spec.model, vision=vision))
    native = spec.preprocess.resize == "native"
    table = open_clip_table(spec.model, shapes, native)
    return ForeignModel("open_clip" + ", NaFlex" * native, spec, tensors, table)


def _check_named(weights: Path, spec: ModelSpec, name: str | None) -> None:
    """Check that the architecture of that name is that of `spec`, which the files themselves say.

    Raises:
        InputError: it is another one. With another activation, weights would load without an error.
    """
    if name is None:
        return
    found, named = _towers(spec), _towers(VARIANTS[name])
    differing = [
        f"{field}: {found.get(field)!r} by the files, {named.get(field)!r} in {name}"
        for field in {**found, **named}
        if not _is_same(found.get(field), named.get(field))
    ]
    if differing:
        fitting = [
            other
            for other, known in VARIANTS.items()
            if _towers(known).keys() == found.keys()
            and all(_is_same(value, found[field]) for field, value in _towers(known).items())
        ]
        raise InputError(
            f"{weights} is of another architecture than {name}\n"
            + "\n".join(differing)
            + "\nleave the name out: these weights say theirs"
            + (f", which is that of {', '.join(fitting)}" if fitting else "")
        )


def _towers(spec: ModelSpec) -> dict[str, object]:
    """All settings that the numbers of a model depend on."""
    fields: dict[str, object] = {"embed_dim": spec.model.embed_dim}
    towers: dict[str, Any] = {"vision": spec.model.vision, "text": spec.model.text}
    for name, tower in towers.items():
        fields |= {f"{name}.{f.name}": getattr(tower, f.name) for f in dataclasses.fields(tower)}
    # That one says how to train.
    return {n: value for n, value in fields.items() if n != "vision.frozen_statistics"}


def _is_same(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float):  # ratios of two sizes are rounded
        return math.isclose(one, other, rel_tol=1e-6)
    return one == other


def _refuse_bare(weights: Path, shapes: dict[str, tuple[int, ...]]) -> NoReturn:
    fitting = [name for name, spec in VARIANTS.items() if _fits(spec, shapes)]
    if not fitting and "text.token_embedding.weight" not in shapes:
        openai.config_from_shapes(shapes)  # says so if these are no weights of a CLIP
    raise InputError(
        f"{weights} is a bare state dict: it does not tell whether the model was trained with "
        "QuickGELU or GELU, nor how its images were normalised\n"
        "a wrong guess would cost accuracy and show no error; name the architecture (model=, "
        "--model or --teacher-model), or put its open_clip_config.json beside the file\n"
        + (f"its shapes are those of: {', '.join(fitting)}" if fitting else "its shapes are those "
           "of no architecture that flaxclip knows by name")
    )  # fmt: skip


def _fits(spec: ModelSpec, shapes: dict[str, tuple[int, ...]]) -> bool:
    if not has_open_clip(spec.model):
        return False
    native = spec.preprocess.resize == "native"
    expected = open_clip_table(spec.model, shapes, native).their_shapes()
    return all(shapes.get(name) == shape for name, shape in expected.items())
