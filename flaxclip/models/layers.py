"""The layers of transformers: norms, projections, attention, MLP."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from flaxclip.errors import InputError
from flaxclip.models.compute import AttentionKernel, ComputeConfig
from flaxclip.models.initializers import BlockInit, Initializer, logical
from flaxclip.sharding import constrain, is_for_one_cpu, target_platform

Activation = Literal["quick_gelu", "gelu", "gelu_tanh"]


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Sigmoid approximation of GELU that OpenAI trained with (openai/CLIP, `clip/model.py`)."""
    return x * jax.nn.sigmoid(1.702 * x)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """GELU by the error function (Hendrycks & Gimpel 2016, equation 1), for 16 bits in float32."""
    if x.dtype.itemsize > 2:
        return jax.nn.gelu(x, approximate=False)
    # JAX's takes 1 - erf, which keeps the digits of a small probability but is two polynomials and
    # an exponential, forward and backward. 16 bits have no room for those digits.
    y = x.astype(jnp.float32)
    return (y * (0.5 + 0.5 * jax.lax.erf(y * math.sqrt(0.5)))).astype(x.dtype)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": gelu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


MAX_LAYERS = 1000
"""The deepest published tower has 48. A file that asks for a billion is damaged, or an attack."""


def check_sizes(tower: str, sizes: Mapping[str, float]) -> None:
    """Raise `InputError` if a size is not positive, or there are absurdly many layers."""
    for name, size in sizes.items():
        most = MAX_LAYERS if name == "layers" else 2**31
        if not 0 < size < most:
            raise InputError(
                f"{tower} {name} is {size}\nexpected a positive number, below {most:,}"
            )


def check_transformer(
    tower: str, width: int, layers: int, heads: int, mlp_ratio: float, norm_eps: float
) -> None:
    """Raise `InputError` if there can be no transformer of these sizes."""
    sizes = {"width": width, "layers": layers, "heads": heads, "mlp_ratio": mlp_ratio}
    check_sizes(tower, sizes)
    if not 0 < norm_eps < 1:
        raise InputError(f"{tower} norm_eps is {norm_eps}\nexpected a small number, such as 1e-6")
    if width % heads:
        raise InputError(
            f"{tower} width {width} is not divisible by its {heads} heads\n"
            f"choose a multiple of {heads} as width, or another number of heads"
        )


def layer_norm(name: str, eps: float = 1e-5) -> nn.LayerNorm:
    """LayerNorm in float32, whatever the type of the activations.

    Two-pass variance: E[x^2] - E[x]^2 cancels if a residual stream has a large mean.
    """
    return nn.LayerNorm(
        epsilon=eps,
        dtype=jnp.float32,
        use_fast_variance=False,
        scale_init=logical(nn.initializers.ones, "embed"),
        bias_init=logical(nn.initializers.zeros, "embed"),
        name=name,
    )


def matrix_product(
    x: Float[Array, "*rows i"], kernel: Float[Array, "i o"]
) -> Float[Array, "*rows o"]:
    """`x @ kernel`, on a CPU as a product of two matrices.

    Given three axes, XLA:CPU (JAX 0.10 to 0.12) transposes the result's gradient for that of the
    kernel, and recomputes it while it does so: up to a third of a small model's step. On TPUs,
    joining axes would itself be a copy.
    """
    if not is_for_one_cpu():
        return x @ kernel
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


class HeadsKernel(nn.Module):
    """Parameters of a dense layer that keep the axes of heads, multiplied as one matrix.

    A product of more than two axes makes XLA transpose kernels, activations and gradients on the
    CPU: a tenth of a step's time.
    """

    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    kernel_init: Initializer
    bias_init: Initializer
    dtype: jnp.dtype

    def parameters(self) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """Kernel and bias."""
        kernel = self.param("kernel", self.kernel_init, self.in_shape + self.out_shape)
        return kernel, self.param("bias", self.bias_init, self.out_shape)

    def project(
        self, x: Float[Array, "b l i"], kernel: Float[Array, "..."], bias: Float[Array, "..."]
    ) -> Float[Array, "b l o"]:
        """The product with a kernel, and its bias; axes of heads are joined."""
        kernel = kernel.reshape(x.shape[-1], -1).astype(self.dtype)
        return matrix_product(x, kernel) + bias.reshape(1, 1, -1).astype(self.dtype)


class Projection(HeadsKernel):
    """Dense layer."""

    @nn.compact
    def __call__(self, x: Float[Array, "b l i"]) -> Float[Array, "b l o"]:
        return self.project(x, *self.parameters())


class QKVProjection(HeadsKernel):
    """Queries, keys and values of all heads; `out_shape` is (heads, 3, channels).

    On TPUs each is a product of its own. Cut out of one, they would be copied, and their gradients
    joined by further copies: by the compiler's cost model a tenth of a step.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "b l w"]) -> tuple[Float[Array, "b h l k"], ...]:
        kernel, bias = self.parameters()
        cut = target_platform() == "tpu"
        parts = [(kernel[:, :, i], bias[:, i]) for i in range(3)] if cut else [(kernel, bias)]
        products = [
            checkpoint_name(constrain(self.project(x, *part), "batch", None, "heads"), "qkv")
            for part in parts
        ]
        heads = self.out_shape[0]
        if cut:
            return tuple(rearrange(y, "b l (h k) -> b h l k", h=heads) for y in products)
        return tuple(rearrange(products[0], "b l (h three k) -> three b h l k", h=heads, three=3))


def has_cudnn_attention(q: Float[Array, "b h l k"]) -> bool:
    """True if the default device is an NVIDIA GPU, and cuDNN supports attention for such queries.

    It does for 16-bit types and heads of a multiple of 8 channels, on older GPUs up to 128.
    """
    on_nvidia = jax.devices()[0].device_kind.startswith("NVIDIA")
    return on_nvidia and q.dtype.itemsize == 2 and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128


def dot_product_attention(
    q: Float[Array, "b h l k"],
    k: Float[Array, "b h m k"],
    v: Float[Array, "b h m k"],
    causal: bool,
    kernel: AttentionKernel = "auto",
    padding_mask: Bool[Array, "b m"] | None = None,
) -> Float[Array, "b h l k"]:
    """Scaled dot-product attention (Vaswani et al. 2017, equation 1), softmax in float32.

    `padding_mask`: True for keys that may be attended to. If None, all.
    """
    if kernel == "auto" and padding_mask is None and q.shape == k.shape and has_cudnn_attention(q):
        return _cudnn_attention(q, k, v, causal)
    # Heads before positions, and queries scaled rather than logits: the fewest copies.
    q = q * q.shape[-1] ** -0.5
    logits = jnp.einsum("bhlk,bhmk->bhlm", q, k, preferred_element_type=jnp.float32)
    if causal:
        position = jnp.arange(q.shape[2])
        earlier = position[:, None] >= position[None, :]
        logits = jnp.where(earlier[None, None], logits, jnp.finfo(jnp.float32).min)
    if padding_mask is not None:
        logits = jnp.where(padding_mask[:, None, None], logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    z = jnp.einsum("bhlm,bhmk->bhlk", weights, v)
    # Named in the layout that the next product takes: rows of one head's 64 channels, were they
    # what is kept, would be padded to 128 on TPUs.
    z = checkpoint_name(rearrange(z, "b h l k -> b l (h k)"), "attended")
    return rearrange(z, "b l (h k) -> b h l k", h=q.shape[1])


def _cudnn_attention(
    q: Float[Array, "b h l k"], k: Float[Array, "b h l k"], v: Float[Array, "b h l k"], causal: bool
) -> Float[Array, "b h l k"]:
    """Attention by cuDNN's fused kernel, in which the matrix of weights never exists in memory."""
    batch, _, length, _ = q.shape
    q, k, v = (rearrange(x, "b h l k -> b l h k") for x in (q, k, v))
    lengths = None
    if length % 2:
        # JAX 0.10 refuses gradients of odd lengths, and a class token makes nearly all lengths
        # odd: one position more, which none attends to.
        q, k, v = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (q, k, v))
        lengths = jnp.full(batch, length, jnp.int32)
    z = jax.nn.dot_product_attention(
        q,
        k,
        v,
        is_causal=causal,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation="cudnn",
    )
    return rearrange(z[:, :length], "b l h k -> b h l k")


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """One transformer block; all blocks of a tower are alike."""

    heads: int
    mlp_width: int
    activation: Activation
    init: BlockInit
    causal: bool = False
    """True if a position attends to itself and those before it alone."""
    norm_eps: float = 1e-5
    post_norm: bool = False
    """True if norms follow the residual sums, as in the first transformers (Vaswani et al. 2017,
    section 3.1; Devlin et al. 2019), instead of preceding attention and MLP."""


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection to queries, keys and values."""

    config: BlockConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "b l w"], padding_mask: Bool[Array, "b l"] | None = None
    ) -> Float[Array, "b l w"]:
        x = constrain(x, "batch", None, None)
        c, dtype = self.config, self.compute.activation_dtype
        width = x.shape[-1]
        head_dim = width // c.heads
        q, k, v = QKVProjection(
            (width,),
            (c.heads, 3, head_dim),
            kernel_init=logical(c.init.qkv_kernel, "embed", "heads", None, None),
            bias_init=logical(nn.initializers.zeros, "heads", None, None),
            dtype=dtype,
            name="qkv",
        )(x)
        z = dot_product_attention(q, k, v, c.causal, self.compute.attention, padding_mask)
        z = constrain(rearrange(z, "b h l k -> b l (h k)"), "batch", None, "heads")
        z = Projection(
            (c.heads, head_dim),
            (width,),
            kernel_init=logical(c.init.out_kernel, "heads", None, "embed"),
            bias_init=logical(nn.initializers.zeros, "embed"),
            dtype=dtype,
            name="out",
        )(z)
        return constrain(z, "batch", None, None)


class MLP(nn.Module):
    """Two dense layers around the activation."""

    config: BlockConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b l w"]) -> Float[Array, "b l w"]:
        c, dtype = self.config, self.compute.activation_dtype
        x = constrain(x, "batch", None, None)
        width = x.shape[-1]
        h = Projection(
            (width,),
            (c.mlp_width,),
            kernel_init=logical(c.init.fc1_kernel, "embed", "mlp"),
            bias_init=logical(c.init.fc1_bias, "mlp"),
            dtype=dtype,
            name="fc1",
        )(x)
        h = checkpoint_name(constrain(h, "batch", None, "mlp"), "fc1")
        h = Projection(
            (c.mlp_width,),
            (width,),
            kernel_init=logical(c.init.fc2_kernel, "mlp", "embed"),
            bias_init=logical(c.init.fc2_bias, "embed"),
            dtype=dtype,
            name="fc2",
        )(ACTIVATIONS[c.activation](h))
        return constrain(h, "batch", None, None)
