"""CLIP: two towers, one embedding space, and the temperature that scales their similarities."""

import dataclasses
import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, UInt8

from flaxclip.errors import InputError
from flaxclip.models.bert_text_transformer import BertTextTransformer
from flaxclip.models.layers import AttentionKernel, check_sizes
from flaxclip.models.modified_resnet import ModifiedResNet, ResNetConfig
from flaxclip.models.text_transformer import TextConfig, TextTransformer
from flaxclip.models.transformer import Remat
from flaxclip.models.vision_transformer import VisionConfig, VisionTransformer

# openai/CLIP, `clip/clip.py`: statistics of its training pictures, in units of 0..1.
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

TextCleaning = Literal[
    "lower",
    "whitespace",
    "canonicalize",
    "transformers_clip",
    "transformers_siglip",
    "transformers_siglip2",
    "big_vision",
    "unicode_lower",
    "none",
]
"""What is done to a caption before it is taken apart; `data.text_cleaning` says what each does."""

INITIAL_LOGIT_SCALE = math.log(1 / 0.07)
"""Radford et al. 2021, section 2.5; after Wu et al. 2018."""


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Everything that decides what an image and a caption turn into, preprocessing included."""

    vision: VisionConfig | ResNetConfig = VisionConfig()
    text: TextConfig = TextConfig()
    embed_dim: int = 512
    """Dimensions of the shared embedding space."""
    init_logit_scale: float = INITIAL_LOGIT_SCALE
    """The logarithm of the factor on cosine similarities that training starts with."""
    init_logit_bias: float | None = None
    """What is added to the scaled similarities at the start, for the sigmoid loss. None: nothing,
    ever; the model has no such parameter."""
    tokenizer: Literal["clip", "siglip", "siglip2", "bert"] = "clip"
    """CLIP's BPE, the SentencePiece vocabulary of SigLIP (C4, 32,000) or SigLIP 2 (Gemma), or
    BERT's WordPiece."""
    tokenizer_file: str | None = None
    """Vocabulary of SigLIP's tokenizers, a SentencePiece model or a tokenizer.json; or of BERT's, a
    text file of one token a line. CLIP's BPE needs none."""
    text_cleaning: TextCleaning | None = None
    """What is done to a caption before its tokens are looked up, by the library that does so. None:
    `lower` with CLIP's tokenizer, `canonicalize` with SigLIP's, `unicode_lower` with SigLIP 2's,
    and with BERT's the only way that it has."""
    resize: Literal["shortest", "squash"] = "shortest"
    """How a picture is made square: its shorter side resized and the middle cut out, or both sides
    resized."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    transparency: Literal["dropped", "white"] = "dropped"
    """How evaluation makes an image RGB. dropped: after the resize, without alpha, as OpenAI and
    open_clip do; white: before it, laid over white, as transformers does. Training lays images over
    white always."""
    crop_rounding: Literal["even", "down"] = "even"
    """Where the middle begins if that is at half a pixel: torchvision rounds to even, transformers
    down."""
    image_mean: tuple[float, float, float] = OPENAI_MEAN
    image_std: tuple[float, float, float] = OPENAI_STD
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations. Parameters, norms, embeddings and the loss are float32 always."""
    unroll: int = 1
    """Blocks that one iteration of a scan holds: compile time against speed."""
    remat: Remat = "names"
    """What transformer blocks keep for their backward pass: memory against recomputation."""
    attention: AttentionKernel = "auto"
    """auto: by cuDNN on NVIDIA GPUs in bfloat16, by XLA elsewhere. xla: by XLA everywhere."""

    @property
    def is_scanned(self) -> bool:
        """Whether a tower loops over its blocks; false where `unroll` is all of them."""
        image_layers = self.vision.layers
        deepest = max(image_layers) if isinstance(image_layers, tuple) else image_layers
        return self.unroll < max(deepest, self.text.layers)

    def __post_init__(self) -> None:
        check_sizes("model", {"embed_dim": self.embed_dim})
        check_sizes("model", {f"image_std[{i}]": std for i, std in enumerate(self.image_std)})
        if (
            isinstance(self.vision, VisionConfig)
            and not self.vision.has_projection
            and self.vision.width != self.embed_dim
        ):
            raise InputError(
                f"embed_dim {self.embed_dim} is not the image tower's width {self.vision.width}\n"
                f'with pool "{self.vision.pool}" that tower has no projection: the two must be the '
                "same"
            )


def check_tensor_divides(config: CLIPConfig, tensor: int) -> None:
    """Raise `InputError` unless `tensor` devices get equally many heads and MLP channels."""
    towers: dict[str, VisionConfig | ResNetConfig | TextConfig] = {
        "vision": config.vision,
        "text": config.text,
    }
    transformers = {name: c for name, c in towers.items() if not isinstance(c, ResNetConfig)}
    counts = {
        f"the {name} tower's {count} {what}": count
        for name, c in transformers.items()
        for what, count in (("heads", c.heads), ("MLP channels", c.mlp_width))
    }
    for what, count in counts.items():
        if count % tensor:
            common = math.gcd(*counts.values())
            fitting = [str(n) for n in range(1, common + 1) if common % n == 0]
            raise InputError(
                f"{what} are not divisible by mesh.tensor {tensor}\n"
                f"--mesh.tensor can be {', '.join(fitting)} with this model"
            )


class CLIP(nn.Module):
    """`apply(variables, x, method=...)` with `encode_image` or `encode_text`."""

    config: CLIPConfig

    def setup(self) -> None:
        c = self.config
        dtype = jnp.dtype(c.dtype)
        if isinstance(c.vision, ResNetConfig):
            self.vision = ModifiedResNet(c.vision, c.embed_dim, dtype, c.unroll)
        else:
            self.vision = VisionTransformer(
                c.vision, c.embed_dim, dtype, c.unroll, c.remat, c.attention
            )
        text = BertTextTransformer if c.text.pool == "class" else TextTransformer
        self.text = text(c.text, c.embed_dim, dtype, c.unroll, c.remat, c.attention)
        self.logit_scale = self.param(
            "logit_scale", nn.initializers.constant(c.init_logit_scale), ()
        )
        if c.init_logit_bias is not None:
            self.logit_bias = self.param(
                "logit_bias", nn.initializers.constant(c.init_logit_bias), ()
            )

    def encode_image(
        self,
        images: UInt8[Array, "b h w 3"],
        train: bool = False,
        kept: Int[Array, "b k"] | None = None,
    ) -> Float[Array, "b d"]:
        """Unit vectors of pictures that are still bytes: they travel to the device four times
        smaller than floats, and are normalised there.

        With `train`, batch norms use the batch's statistics and update `batch_stats`. With `kept`
        a vision transformer sees those patches alone (`models.patch_dropout`).
        """
        mean, std = (
            jnp.array(statistic).reshape(1, 1, 1, 3)
            for statistic in (self.config.image_mean, self.config.image_std)
        )
        pixels = (images.astype(jnp.float32) / 255 - mean) / std
        only = {} if kept is None else {"kept": kept}
        return l2_normalise(self.vision(pixels, train, **only))

    def encode_text(self, tokens: Int[Array, "b l"]) -> Float[Array, "b d"]:
        """Unit vectors of captions."""
        return l2_normalise(self.text(tokens))

    def __call__(
        self,
        images: UInt8[Array, "b h w 3"],
        tokens: Int[Array, "b l"],
        train: bool = False,
        kept: Int[Array, "b k"] | None = None,
    ) -> tuple[Float[Array, "b d"], Float[Array, "b d"], Float[Array, ""]]:
        """Both embeddings and the log of the logit scale."""
        return self.encode_image(images, train, kept), self.encode_text(tokens), self.logit_scale


def l2_normalise(z: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Scale to unit length, in float32."""
    z = z.astype(jnp.float32)
    return z / jnp.linalg.norm(z, axis=-1, keepdims=True)


def example_inputs(
    config: CLIPConfig, batch_size: int = 1
) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Shapes and types of a batch's images and tokens."""
    side = config.vision.image_size
    images = jax.ShapeDtypeStruct((batch_size, side, side, 3), jnp.uint8)
    tokens = jax.ShapeDtypeStruct((batch_size, config.text.context_length), jnp.int32)
    return images, tokens


def init_variables(key: Array, config: CLIPConfig) -> dict[str, Any]:
    """What `CLIP.apply` reads, fresh, in float32: `params`, and with a ResNet `batch_stats`."""
    inputs = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), example_inputs(config))
    return nn.unbox(CLIP(config).init(key, *inputs))


def init_params(key: Array, config: CLIPConfig) -> dict[str, Any]:
    """Fresh parameters alone, as a plain nested dict of arrays."""
    return init_variables(key, config)["params"]


@functools.cache
def _abstract_boxed(config: CLIPConfig) -> dict[str, Any]:
    return jax.eval_shape(CLIP(config).init, jax.random.key(0), *example_inputs(config))


def abstract_variables(config: CLIPConfig) -> dict[str, Any]:
    """Shapes and types of `init_variables`, nothing allocated."""
    return nn.unbox(_abstract_boxed(config))


def logical_axes(config: CLIPConfig) -> dict[str, Any]:
    """The tree of `init_params` with a `PartitionSpec` of logical axis names at each leaf."""
    return nn.get_partition_spec(_abstract_boxed(config)["params"])
