"""LiT's checkpoints (.npz): two towers of big_vision, of which the text tower is flaxformer's BERT.

Zhai et al. 2022, "LiT: Zero-shot transfer with locked-image text tuning". The same models are in
google-research/vision_transformer, whose image tower has its positions elsewhere.
"""

import functools
import math
import re
from collections.abc import Mapping

import numpy as np

from flaxclip.errors import InputError
from flaxclip.interop.archives.stored_tensor import StoredTensor
from flaxclip.interop.big_vision import SCALARS, VISION, blocks, is_stacked, tower_sizes
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
from flaxclip.models.inputs import CENTRED_MEAN, CENTRED_STD, ImageTransform, TokenizerConfig
from flaxclip.models.spec import ModelSpec
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.vision_transformer import ViTConfig

CONTEXT_LENGTH = 16
"""Tokens of a caption with which the published models were trained (`pp.max_len` of
vision_transformer's `configs/models.py`); BERT has embeddings for 512."""

# flaxformer's `bert.configs`: 12 heads of 768 channels, 16 of 1024. Its kernels are matrices, which
# do not tell.
_HEAD_WIDTH = 64
_POSITIONS = (
    "img/pos_embedding",  # big_vision: of the patches alone, the class token has none
    "img/Transformer/posembed_input/pos_embedding",  # vision_transformer: of the class token, too
    "img/Transformer/pos_embedding",  # big_vision before 2022: likewise
)
# Flax once numbered all layers of a block together; now those of a kind. The published image towers
# of vision_transformer ("AugReg"), from which LiT started, have the old numbers.
OLD_NUMBERS = {
    "MultiHeadDotProductAttention_1": "MultiHeadDotProductAttention_0",
    "LayerNorm_2": "LayerNorm_1",
    "MlpBlock_3": "MlpBlock_0",
}
_BERT = "txt/BertEncoder_0/"
_LAYER = f"{_BERT}encoder_block/layer_sequence/layers_"
_ATTENTION = "attention_block/attention_layer/{part}"


def _norm(ours: str, theirs: str, axes: str) -> list[Rule]:
    return [Rule(f"{ours}/{kind}", f"{theirs}/{kind}", axes) for kind in ("scale", "bias")]


_VISION = (
    *(rule for rule in VISION if not rule.ours.startswith(("pool/", "position_embedding"))),
    Rule("class_embedding", "cls", "1 1 w -> w"),
)
_HEAD = (
    Rule("projection/kernel", "head/kernel", "w embed -> w embed"),
    Rule("projection/bias", "head/bias", "embed -> embed"),
)
_TEXT_LAYER = (
    Rule("attention/qkv/kernel", f"{_ATTENTION}/kernel", "w (head k) -> layer w head part k"),
    Rule("attention/qkv/bias", f"{_ATTENTION}/bias", "(head k) -> layer head part k"),
    Rule(
        "attention/out/kernel", "attention_block/dense_layer/kernel", "(head k) w -> layer head k w"
    ),
    Rule("attention/out/bias", "attention_block/dense_layer/bias", "w -> layer w"),
    *_norm("ln_1", "attention_block/layer_norm", "w -> layer w"),
    Rule("mlp/fc1/kernel", "mlp_block/mlp/dense_layer/kernel", "w mlp -> layer w mlp"),
    Rule("mlp/fc1/bias", "mlp_block/mlp/dense_layer/bias", "mlp -> layer mlp"),
    Rule("mlp/fc2/kernel", "mlp_block/dense_layer/kernel", "mlp w -> layer mlp w"),
    Rule("mlp/fc2/bias", "mlp_block/dense_layer/bias", "w -> layer w"),
    *_norm("ln_2", "mlp_block/layer_norm", "w -> layer w"),
)
_TEXT = (
    Rule("token_embedding", f"{_BERT}embedder/embedders_token_ids/embedding", "vocab w -> vocab w"),
    Rule(
        "position_embedding",
        f"{_BERT}embedder/embedders_position_ids/embedding",
        "position w -> position w",
    ),
    Rule(
        "segment_embedding",
        f"{_BERT}embedder/embedders_segment_ids/embedding",
        "segment w -> segment w",
    ),
    *_norm("ln_embedding", f"{_BERT}layer_norm", "w -> w"),
    *prefixed(_TEXT_LAYER, "transformer/blocks/", f"{_LAYER}{{layer}}/"),
    *prefixed(_HEAD, "", "txt/"),
)


def is_lit(tensors: Mapping[str, StoredTensor]) -> bool:
    """True if it is a LiT, rather than a SigLIP."""
    return "img/cls" in tensors or any(name.startswith(_BERT) for name in tensors)


def lit_tensors(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors as `lit_table` expects them.

    Layers have today's numbers, and the class token has a position, zero if the file has none.

    Raises:
        InputError: the image tower has no position embedding.
    """
    tensors = _renumbered(tensors)
    name = _positions(tensors)
    stored = tensors[name]
    if len(stored.shape) != 3 or math.isqrt(stored.shape[1]) ** 2 != stored.shape[1]:
        return dict(tensors)
    one, patches, width = stored.shape

    def read() -> np.ndarray:
        return np.pad(np.asarray(stored), ((0, 0), (1, 0), (0, 0)))

    return {**tensors, name: StoredTensor(name, (one, 1 + patches, width), stored.dtype, read)}


def _renumbered(tensors: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
    if not any("/MultiHeadDotProductAttention_1/" in name for name in tensors):
        return tensors
    old = re.compile("|".join(OLD_NUMBERS))
    named = {old.sub(lambda m: OLD_NUMBERS[m[0]], name): t for name, t in tensors.items()}
    # Both numbers in one file are of another model: the table will say which are unknown.
    return named if len(named) == len(tensors) else tensors


def lit_table(config: CLIPConfig, tensors: Mapping[str, StoredTensor]) -> NameTable:
    """The tensors of the LiT that is this architecture, in the layout that `tensors` have."""
    positions = _positions(tensors).removeprefix("img/")
    vision = [
        *_VISION,
        Rule("position_embedding", positions, "1 position w -> position w"),
        *blocks("Transformer", is_stacked(tensors)),
        *(_HEAD if getattr(config.vision, "head", False) else ()),
    ]
    scalars = SCALARS if config.init_logit_bias is not None else SCALARS[:1]
    return NameTable(
        "a LiT of big_vision",
        [
            *bind(prefixed(vision, "params/vision/", "img/"), vision_axes(config)),
            *bind(prefixed(_TEXT, "params/text/", ""), text_axes(config)),
            *bind(scalars, {}),
        ],
    )


def _positions(tensors: Mapping[str, StoredTensor]) -> str:
    for name in _POSITIONS:
        if name in tensors:
            return name
    raise InputError(
        f"the file has no position embedding of its image tower\nexpected {' or '.join(_POSITIONS)}"
    )


def spec_from_tensors(tensors: Mapping[str, StoredTensor]) -> ModelSpec:
    """The architecture whose tensors, out of `lit_tensors`, have these shapes.

    Both sides of an image are resized, bilinearly, as big_vision measures LiT on retrieval. Its
    own resize has no antialiasing, and no counterpart in Pillow.

    Raises:
        InputError: the text tower is no BERT, the image tower has no class token, or a tensor that
            the architecture is read from has a shape that cannot be.
    """
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    axes = functools.partial(axes_of, shapes)
    if not any(name.startswith(_BERT) for name in shapes):
        raise InputError(
            "the image tower has a class token (img/cls) and the text tower is no BERT\n"
            "of LiT, those with a BERT can be read: LiT-B16B, LiT-B16B_2, LiT-L16L and the like; "
            "not LiT-L16S and LiT-L16Ti"
        )
    if "img/cls" not in shapes:
        raise InputError(
            "the text tower is a BERT and the image tower has no class token (img/cls)\n"
            "image towers of LiT with a class token can be read"
        )
    patch_size, _, _, width = axes("img/embedding/kernel", 4)
    grid = math.isqrt(axes(_positions(tensors), 3)[1] - 1)
    vocab_size, text_width = axes(f"{_BERT}embedder/embedders_token_ids/embedding", 2)
    positions, _ = axes(f"{_BERT}embedder/embedders_position_ids/embedding", 2)
    _, embed_dim = axes("txt/head/kernel", 2)
    _, mlp_width = axes(f"{_LAYER}0/mlp_block/mlp/dense_layer/kernel", 2)
    if text_width % _HEAD_WIDTH:
        raise InputError(
            f"the text tower has width {text_width}\n"
            f"expected a multiple of {_HEAD_WIDTH}: the file tells no heads, and those of BERT "
            f"have {_HEAD_WIDTH} channels"
        )
    config = CLIPConfig(
        vision=ViTConfig(
            image_size=grid * patch_size,
            patch_size=patch_size,
            width=width,
            activation="gelu_tanh",
            norm_eps=1e-6,
            family="vit",
            head="img/head/kernel" in shapes,
            **tower_sizes(shapes, "img/Transformer/encoderblock"),
        ),
        text=TextConfig(
            context_length=min(CONTEXT_LENGTH, positions),
            vocab_size=vocab_size,
            width=text_width,
            layers=len({m[1] for name in shapes if (m := re.match(rf"{_LAYER}(\d+)/", name))}),
            heads=text_width // _HEAD_WIDTH,
            mlp_ratio=mlp_width / text_width,
            activation="gelu_tanh",
            norm_eps=1e-12,
            family="bert",
            positions=positions,
        ),
        embed_dim=embed_dim,
        init_logit_scale=math.log(10),
        # big_vision, `configs/proj/image_text/siglip_lit_coco.py`; the published ones have none.
        init_logit_bias=-2.71 if "b" in shapes else None,
    )
    return ModelSpec(
        config,
        ImageTransform("squash", "bilinear", mean=CENTRED_MEAN, std=CENTRED_STD),
        TokenizerConfig("bert"),
    )
