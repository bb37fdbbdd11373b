"""Low-rank pairs of a run of ours -> an adapter of peft, for the library that the base is of."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy
from jaxtyping import Float

from flaxclip.errors import InputError
from flaxclip.fine_tuning.lora import LoRA, Matrix, as_matrix
from flaxclip.interop.archives.weight_names import ADAPTER_CONFIG, ADAPTERS
from flaxclip.interop.export import new_folder
from flaxclip.interop.huggingface.names import huggingface_table
from flaxclip.interop.name_table import Binding, NameTable
from flaxclip.interop.open_clip.names import open_clip_table
from flaxclip.models.clip import CLIPConfig

_IN_PROJECTION, _OUT_PROJECTION = ".in_proj_weight", ".out_proj.weight"

Pairs = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""By a kernel's name: `lora_a` [*layers, inputs, rank] and `lora_b` [*layers, rank, outputs]."""

Adapter = dict[str, Float[np.ndarray, "..."]]


def write_adapter(
    pairs: Pairs, lora: LoRA, config: CLIPConfig, base: str, kind: str, folder: Path,
    overwrite: bool,
) -> None:  # fmt: skip
    """Write an adapter for `base`, a model of another library, into `folder`.

    Args:
        pairs: what was trained.
        lora: their rank and scale.
        config: the architecture.
        base: path or URL of the model that they are for.
        kind: its format, as `ForeignModel.kind`.
        folder: is written whole or not at all.
        overwrite: whether it may exist.

    Raises:
        InputError: peft cannot adapt what was trained in a model of that library.
    """
    table = _table(kind, config)
    tensors, modules = adapter_tensors(pairs, lora.rank, table)
    name, revision = _name_of_base(base)
    settings = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": name,
        "revision": revision,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": modules,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_dropout": 0.0,
        "use_dora": False,
        "use_rslora": False,
    }
    with new_folder(folder, overwrite, (ADAPTER_CONFIG,)) as unfinished:
        safetensors.numpy.save_file(tensors, unfinished / ADAPTERS[0], metadata={"format": "pt"})
        (unfinished / ADAPTER_CONFIG).write_text(json.dumps(settings, indent=2) + "\n")


def _name_of_base(base: str) -> tuple[str, str | None]:
    """A repository of the Hub as peft names it, and its revision; other bases are named in full.

    >>> _name_of_base("hf://openai/clip-vit-base-patch32@main")
    ('openai/clip-vit-base-patch32', 'main')
    >>> _name_of_base("hf://laion/CLIP-ViT-B-32/open_clip_model.safetensors")
    ('hf://laion/CLIP-ViT-B-32/open_clip_model.safetensors', None)
    """
    repository = re.fullmatch(r"hf://((?:[\w.-]+/)?[\w.-]+)(?:@([^/]+))?/?", base)
    return (repository[1], repository[2]) if repository else (base, None)


def _table(kind: str, config: CLIPConfig) -> NameTable:
    if kind.startswith("transformers"):
        return huggingface_table(config, flat_patches="siglip2" in kind)
    if kind.startswith(("open_clip", "OpenAI")):
        return open_clip_table(config, native="NaFlex" in kind)
    raise InputError(
        f"the run began with weights of the format {kind}\n"
        "peft adapts models of transformers and open_clip: convert this run to one of these, which "
        "merges what it has learned; or start the run from weights that are converted already"
    )


def adapter_tensors(pairs: Pairs, rank: int, table: NameTable) -> tuple[Adapter, list[str]]:
    """The tensors of an adapter, by peft's names, and the modules that they belong to.

    Raises:
        InputError: a kernel is no module's weight in the other library.
    """
    bindings = {name: b for b in table.bindings for name in b.our_names()}
    tensors: Adapter = {}
    modules, attentions = set(), set()
    for kernel, (a, b) in pairs.items():
        for name, (a_layer, b_layer) in _in_their_layout(kernel, a, b, bindings).items():
            if name.endswith((_IN_PROJECTION, _OUT_PROJECTION)) and _is_fused(name, table):
                module = name.removesuffix(_IN_PROJECTION).removesuffix(_OUT_PROJECTION)
                attentions.add(module)
                if name.endswith(_OUT_PROJECTION):
                    # peft adds the product of this one twice; see `merge`.
                    b_layer, module_of_pair = b_layer / 2, f"{module}.base_layer.out_proj"
                else:
                    module_of_pair = module
            elif name.endswith(".weight"):
                module = module_of_pair = name.removesuffix(".weight")
            else:
                raise InputError(
                    f"{kernel.removeprefix('params/')} is {name} in {table.peer}, a parameter of "
                    "no module, which peft does not adapt\n"
                    "convert the run to that library, which merges what it has learned"
                )
            if f"base_model.model.{module_of_pair}.lora_A.weight" in tensors:
                raise InputError(
                    f"{kernel.removeprefix('params/')} and others are one matrix in {table.peer}, "
                    "for which peft has one pair\n"
                    "convert the run to that library, which merges what it has learned"
                )
            modules.add(module)
            tensors |= _named(module_of_pair, a_layer, b_layer)
    shapes = table.their_shapes()
    for module in attentions:  # of which peft adapts both, or none
        outputs, inputs = shapes[f"{module}{_IN_PROJECTION}"]
        for of_pair, out in ((module, outputs), (f"{module}.base_layer.out_proj", inputs)):
            empty = np.zeros((rank, inputs), np.float32), np.zeros((out, rank), np.float32)
            tensors = _named(of_pair, *empty) | tensors
    return tensors, sorted(modules)


def _named(module: str, a: np.ndarray, b: np.ndarray) -> Adapter:
    names = (f"base_model.model.{module}.lora_{side}.weight" for side in "AB")
    return dict(zip(names, (np.ascontiguousarray(a), np.ascontiguousarray(b)), strict=True))


def _is_fused(name: str, table: NameTable) -> bool:
    module = name.removesuffix(_IN_PROJECTION).removesuffix(_OUT_PROJECTION)
    return f"{module}{_IN_PROJECTION}" in table.their_shapes()


def _in_their_layout(
    kernel: str, a: np.ndarray, b: np.ndarray, bindings: Mapping[str, Binding]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each of their tensors in a kernel, [rank, *inputs] and [outputs, rank, 1, ...].

    Which inputs and outputs are whose is read off a kernel of their numbers, in their layout.
    """
    binding = bindings[kernel]
    shape = binding.our_shape()
    matrix = as_matrix(kernel.removeprefix("params/"), shape)
    assert matrix is not None, "only matrices are adapted"
    where = dict(zip(("layer", "input", "output"), _indices(matrix, shape), strict=True))
    ours = {
        what: [numbers if name == kernel else np.zeros(shape) for name in binding.our_names()]
        for what, numbers in where.items()
    }
    # Where several kernels of ours are one tensor of theirs, only a part of it is this one's.
    ours["mine"] = [np.full(shape, name == kernel) for name in binding.our_names()]
    theirs = {what: binding.to_theirs(arrays) for what, arrays in ours.items()}
    found = {}
    for number, name in enumerate(binding.their_names()):
        layer, inputs, outputs, mine = (
            theirs[what][number].astype(int) for what in ("layer", "input", "output", "mine")
        )
        if not mine.any():
            continue
        tensor = layer.shape
        rows = mine.reshape(tensor[0], -1)[:, 0].astype(bool)
        layers = (int(layer[rows].flat[0]),) if matrix.layers else ()
        columns = inputs[rows][0]
        side_a = np.moveaxis(a[layers][columns], -1, 0)
        side_b = np.zeros((tensor[0], a.shape[-1]), np.float32)
        side_b[rows] = b[layers].T[outputs.reshape(tensor[0], -1)[rows, 0]]
        found[name] = side_a, side_b.reshape(*side_b.shape, *[1] * (len(tensor) - 2))
    return found


def _indices(matrix: Matrix, shape: tuple[int, ...]) -> list[np.ndarray]:
    """Number of the layer, the input and the output of each number in a kernel."""
    layers = int(np.prod(matrix.layers, dtype=int))
    grid = np.indices((layers, matrix.inputs, matrix.outputs))
    return [numbers.reshape(shape) for numbers in grid]
