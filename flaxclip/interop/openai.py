"""The architecture of OpenAI's archives, from the shapes of their tensors alone.

openai/CLIP, `clip/model.py`, `build_model`. Tensors have the names of `open_clip/names.py`.
"""

import functools
import math

from flaxclip.interop.name_table import axes_of
from flaxclip.interop.open_clip.names import Shapes, layers_in
from flaxclip.models.clip import CLIPConfig
from flaxclip.models.layers import Activation
from flaxclip.models.modified_resnet import ResNetConfig
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.vision_transformer import ViTConfig

CONSTANTS = ("input_resolution", "context_length", "vocab_size")
"""Numbers that only OpenAI's archives hold among the tensors."""

HEAD_WIDTH = 64


def config_from_shapes(shapes: Shapes, activation: Activation = "quick_gelu") -> CLIPConfig:
    """The architecture whose tensors have these shapes; heads are 64 channels wide.

    Raises:
        InputError: they are not named as OpenAI's and open_clip's are.
    """
    axes = functools.partial(axes_of, shapes)
    block = "transformer.resblocks.{}.mlp.c_fc.weight"
    text_layers = layers_in(shapes, block)
    mlp_width, text_width = axes(block.format(0), 2)
    return CLIPConfig(
        vision=_vision(shapes, activation),
        text=TextConfig(
            context_length=axes("positional_embedding", 2)[0],
            vocab_size=axes("token_embedding.weight", 2)[0],
            width=text_width,
            layers=text_layers,
            heads=text_width // HEAD_WIDTH,
            mlp_ratio=mlp_width / text_width,
            activation=activation,
        ),
        embed_dim=axes("text_projection", 2)[1],
    )


def _vision(shapes: Shapes, activation: Activation) -> ViTConfig | ResNetConfig:
    axes = functools.partial(axes_of, shapes)
    if "visual.proj" not in shapes:
        one, two, three, four = (
            layers_in(shapes, f"visual.layer{n}.{{}}.conv1.weight") for n in (1, 2, 3, 4)
        )
        positions = axes("visual.attnpool.positional_embedding", 2)[0]
        return ResNetConfig(
            image_size=32 * math.isqrt(positions - 1),
            width=axes("visual.layer1.0.conv1.weight", 4)[0],
            layers=(one, two, three, four),
        )
    block = "visual.transformer.resblocks.{}.mlp.c_fc.weight"
    layers = layers_in(shapes, block)
    mlp_width, width = axes(block.format(0), 2)
    patch_size = axes("visual.conv1.weight", 4)[-1]
    positions = axes("visual.positional_embedding", 2)[0]
    return ViTConfig(
        image_size=patch_size * math.isqrt(positions - 1),
        patch_size=patch_size,
        width=width,
        layers=layers,
        heads=width // HEAD_WIDTH,
        mlp_ratio=mlp_width / width,
        activation=activation,
    )
