"""big_vision's two-tower checkpoints (.npz): SigLIP and SigLIP 2, named by Flax modules.

NaFlex's image tower (`models/proj/image_text/naflex_vit.py`) differs in two tensors: patches come
flattened, and position embeddings have an axis for rows and one for columns.
"""

import functools
import math
import re
from collections.abc import Mapping
from typing import Any

from flaxclip.errors import InputError
from flaxclip.interop.archives.stored_tensor import StoredTensor
from flaxclip.interop.name_table import (
    NameTable,
    Rule,
    axes_of,
    bind,
    prefixed,
    text_axes,
    vision_axes,
)
from flaxclip.models.clip import CLIPConfig
from flaxclip.models.inputs import (
    CENTRED_MEAN,
    CENTRED_STD,
    ImageTransform,
    TextCleaning,
    TokenizerConfig,
)
from flaxclip.models.spec import ModelSpec
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.vision_transformer import ViTConfig

TEXT_CLEANING: TextCleaning = "big_vision"
NATIVE_IMAGES = ImageTransform("native", "bilinear", "white", "down", CENTRED_MEAN, CENTRED_STD)
"""Of NaFlex, as in transformers' files of the same weights."""
_ATTENTION = "MultiHeadDotProductAttention_0"
_MLP = (
    Rule("mlp/fc1/kernel", "MlpBlock_0/Dense_0/kernel", "w mlp -> w mlp"),
    Rule("mlp/fc1/bias", "MlpBlock_0/Dense_0/bias", "mlp -> mlp"),
    Rule("mlp/fc2/kernel", "MlpBlock_0/Dense_1/kernel", "mlp w -> mlp w"),
    Rule("mlp/fc2/bias", "MlpBlock_0/Dense_1/bias", "w -> w"),
    Rule("attention/out/kernel", f"{_ATTENTION}/out/kernel", "head k w -> head k w"),
    Rule("attention/out/bias", f"{_ATTENTION}/out/bias", "w -> w"),
)
_BLOCK = (
    Rule("ln_1/scale", "LayerNorm_0/scale", "w -> w"),
    Rule("ln_1/bias", "LayerNorm_0/bias", "w -> w"),
    Rule("attention/qkv/kernel", f"{_ATTENTION}/{{part}}/kernel", "w head k -> w head part k"),
    Rule("attention/qkv/bias", f"{_ATTENTION}/{{part}}/bias", "head k -> head part k"),
    Rule("ln_2/scale", "LayerNorm_1/scale", "w -> w"),
    Rule("ln_2/bias", "LayerNorm_1/bias", "w -> w"),
    *_MLP,
)
VISION = (
    Rule("patch_embedding/kernel", "embedding/kernel", "p q rgb w -> (p q rgb) w"),
    Rule("patch_embedding/bias", "embedding/bias", "w -> w"),
    Rule("position_embedding", "pos_embedding", "1 position w -> position w"),
    Rule("ln_post/scale", "Transformer/encoder_norm/scale", "w -> w"),
    Rule("ln_post/bias", "Transformer/encoder_norm/bias", "w -> w"),
    Rule("pool/probe", "MAPHead_0/probe", "1 1 w -> 1 w"),
    Rule(
        "pool/attention/{part}/kernel",
        f"MAPHead_0/{_ATTENTION}/{{part}}/kernel",
        "w head k -> w head k",
    ),
    Rule("pool/attention/{part}/bias", f"MAPHead_0/{_ATTENTION}/{{part}}/bias", "head k -> head k"),
    Rule("pool/ln/scale", "MAPHead_0/LayerNorm_0/scale", "w -> w"),
    Rule("pool/ln/bias", "MAPHead_0/LayerNorm_0/bias", "w -> w"),
    *prefixed(_MLP, "pool/", "MAPHead_0/"),
)
_NATIVE = {
    "patch_embedding/kernel": "(p q rgb) w -> (p q rgb) w",
    "position_embedding": "grid_y grid_x w -> (grid_y grid_x) w",
}
_TEXT = (
    Rule("token_embedding", "Embed_0/embedding", "vocab w -> vocab w"),
    Rule("position_embedding", "pos_embedding", "1 position w -> position w"),
    Rule("ln_final/scale", "Encoder_0/encoder_norm/scale", "w -> w"),
    Rule("ln_final/bias", "Encoder_0/encoder_norm/bias", "w -> w"),
)
_TEXT_HEAD = (
    Rule("projection/kernel", "head/kernel", "w embed -> w embed"),
    Rule("projection/bias", "head/bias", "embed -> embed"),
)
SCALARS = (
    Rule("params/logit_scale", "t", "1 ->"),
    Rule("params/logit_bias", "b", "1 ->"),
)


def blocks(theirs: str, stacked: bool) -> list[Rule]:
    """A tower's blocks, which big_vision saves one by one or stacked."""
    rules = []
    for rule in _BLOCK:
        before, after = rule.axes.split(" -> ")
        axes = f"layer {before} -> layer {after}" if stacked else f"{before} -> layer {after}"
        rules.append(rule._replace(axes=axes))
    block = "encoderblock" if stacked else "encoderblock_{layer}"
    return prefixed(rules, "transformer/blocks/", f"{theirs}/{block}/")


def big_vision_table(config: CLIPConfig, stacked: bool, native: bool = False) -> NameTable:
    """The tensors of the two-tower model that is this architecture; if `native`, of NaFlex."""
    own = VISION
    if native:
        own = tuple(rule._replace(axes=_NATIVE.get(rule.ours, rule.axes)) for rule in VISION)
    vision = [*own, *blocks("Transformer", stacked)]
    head = () if config.text.traits.projection == "none" else _TEXT_HEAD
    text = [*_TEXT, *head, *blocks("Encoder_0", stacked)]
    return NameTable(
        "a two-tower model of big_vision",
        [
            *bind(prefixed(vision, "params/vision/", "img/"), vision_axes(config)),
            *bind(prefixed(text, "params/text/", "txt/"), text_axes(config)),
            *bind(SCALARS, {}),
        ],
    )


def without_root(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors of the model alone: some files have them under `params/`."""
    under = {name: t for name, t in tensors.items() if name.startswith("params/")}
    return {name.removeprefix("params/"): t for name, t in (under or tensors).items()}


def is_native(tensors: Mapping[str, StoredTensor]) -> bool:
    """True for the image tower of NaFlex."""
    kernel = tensors.get("img/embedding/kernel")
    return kernel is not None and len(kernel.shape) == 2


def is_stacked(tensors: Mapping[str, StoredTensor]) -> bool:
    """True if the layers are stacked in one tensor."""
    return any("/encoderblock/" in name for name in tensors)


def tower_sizes(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> dict[str, Any]:
    """Layers, heads and width of the MLP of the tower whose blocks begin with `prefix`.

    Raises:
        InputError: a tensor that tells is missing, or has a shape that cannot be.
    """
    numbers = {int(m[1]) for name in shapes if (m := re.match(f"{prefix}_(\\d+)/", name))}
    block, extra = (f"{prefix}_0", 0) if numbers else (prefix, 1)
    mlp_in, mlp_out = axes_of(shapes, f"{block}/MlpBlock_0/Dense_0/kernel", 2 + extra)[extra:]
    query = axes_of(shapes, f"{block}/{_ATTENTION}/query/kernel", 3 + extra)
    return {
        "layers": len(numbers) or query[0],
        "heads": query[extra + 1],
        "mlp_ratio": mlp_out / mlp_in,
    }


def spec_from_tensors(tensors: Mapping[str, StoredTensor]) -> ModelSpec:
    """The architecture whose tensors have these shapes.

    Images are prepared as open_clip does for these weights. big_vision's own resize has no
    antialiasing, and no counterpart in Pillow. Texts are lower-cased as big_vision does (`lower`
    and `tokenize` of its `pp/ops_text.py`, `SigLIP_demo.ipynb`, `SigLIP2_demo.ipynb`), which keeps
    their punctuation; its zero-shot evaluator removes that of class names and prompts beforehand.

    Raises:
        InputError: not a SigLIP.
    """
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if "img/head/kernel" in shapes:
        raise InputError(
            "the file has a tensor img/head/kernel: a two-tower model, but not a SigLIP\n"
            "image towers with attention pooling and no head can be read, such as SigLIP's, and "
            "those of LiT"
        )

    axes = functools.partial(axes_of, shapes)
    native = is_native(tensors)
    if native:
        pixels, width = axes("img/embedding/kernel", 2)
        patch_size = math.isqrt(pixels // 3)
        grid, columns, _ = axes("img/pos_embedding", 3)
        if 3 * patch_size**2 != pixels or grid != columns:
            raise InputError(
                f"patches have {pixels} values, and position embeddings a grid of {grid} x "
                f"{columns}\nexpected squares of 3 colours, and a square grid"
            )
    else:
        patch_size, _, _, width = axes("img/embedding/kernel", 4)
        grid = math.isqrt(axes("img/pos_embedding", 3)[1])
    vocab_size, text_width = axes("txt/Embed_0/embedding", 2)
    # 27 patches of 14 are what SigLIP sees of 384 pixels; SigLIP 2 was given 378.
    unseen = 6 if (patch_size, grid, vocab_size) == (14, 27, 32_000) else 0

    config = CLIPConfig(
        vision=ViTConfig(
            image_size=grid * patch_size + unseen,
            patch_size=patch_size,
            width=width,
            activation="gelu_tanh",
            norm_eps=1e-6,
            family="siglip",
            **tower_sizes(shapes, "img/Transformer/encoderblock"),
        ),
        text=TextConfig(
            context_length=axes("txt/pos_embedding", 3)[1],
            vocab_size=vocab_size,
            width=text_width,
            activation="gelu_tanh",
            norm_eps=1e-6,
            family="siglip" if "txt/head/kernel" in shapes else "siglip_i18n",
            **tower_sizes(shapes, "txt/Encoder_0/encoderblock"),
        ),
        embed_dim=width,
        init_logit_scale=math.log(10),
        init_logit_bias=-10.0,
    )
    tokenizer = TokenizerConfig(
        "siglip2" if vocab_size == 256_000 else "siglip", cleaning=TEXT_CLEANING
    )
    squares = ImageTransform("squash", mean=CENTRED_MEAN, std=CENTRED_STD)
    return ModelSpec(config, NATIVE_IMAGES if native else squares, tokenizer)
