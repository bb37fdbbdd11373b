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
from jaxtyping import Array, Bool, Float, Int

from flaxclip.errors import InputError
from flaxclip.models.attention.dot_product import dot_product_attention, uses_tpu_kernel
from flaxclip.models.attention.rotary import rotate
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.initializers import BlockInit, Initializer, logical
from flaxclip.sharding import constrain, is_for_one_cpu, target_platform

Activation = Literal["quick_gelu", "gelu", "gelu_tanh", "relu"]


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
    "relu": jax.nn.relu,
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


class LayerNorm(nn.Module):
    """LayerNorm in float32, whatever the type of the activations (Ba et al. 2016).

    Two-pass variance: E[x^2] - E[x]^2 cancels if a residual stream has a large mean. Mean and
    variance have names, so that the backward pass need not compute them again: they are a
    thousandth of what they are computed from.
    """

    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "*rows w"]) -> Float[Array, "*rows w"]:
        width = (x.shape[-1],)
        scale = self.param("scale", logical(nn.initializers.ones, "embed"), width)
        bias = self.param("bias", logical(nn.initializers.zeros, "embed"), width)
        x = x.astype(jnp.float32)
        mean = checkpoint_name(x.mean(-1, keepdims=True), "norm")
        variance = checkpoint_name(jnp.square(x - mean).mean(-1, keepdims=True), "norm")
        rows = (1,) * (x.ndim - 1)
        factor = jax.lax.rsqrt(variance + self.epsilon) * scale.reshape(*rows, -1)
        return (x - mean) * factor + bias.reshape(*rows, -1)


def layer_norm(name: str, eps: float = 1e-5) -> LayerNorm:
    """A norm of this name."""
    return LayerNorm(eps, name=name)


def take_positions(x: Float[Array, "b l w"], read: Int[Array, " b"]) -> Float[Array, "b 1 w"]:
    """One position of each example."""
    return jnp.take_along_axis(x, read[:, None, None], axis=1)


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


@jax.custom_vjp
def add_bias(y: Float[Array, "b l o"], bias: Float[Array, " o"]) -> Float[Array, "b l o"]:
    """`y + bias`, whose gradient is summed over rows as a product with ones.

    On TPUs, matrix units do that in a tenth of the time where nothing else reads the gradient just
    then: it comes from a kernel of its own, not from a product that could sum it on the way.
    """
    return y + bias[None, None]


def _add_bias_forward(y: Array, bias: Array) -> tuple[Array, None]:
    return add_bias(y, bias), None


def _add_bias_backward(_: None, dy: Array) -> tuple[Array, Array]:
    # As many rows as a register has: a single one would be no matrix product to XLA.
    ones = jnp.ones((*dy.shape[:2], 8), dy.dtype)
    sums = jnp.einsum("blo,blr->or", dy, ones, preferred_element_type=jnp.float32)
    return dy, sums[:, 0].astype(dy.dtype)


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


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
    sums_by_product: bool = False
    """True if the bias's gradient is a matrix product, `add_bias`."""
    use_bias: bool = True

    def parameters(self) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """Kernel and bias; the latter is constant if there is none."""
        kernel = self.param("kernel", self.kernel_init, self.in_shape + self.out_shape)
        if not self.use_bias:
            return kernel, jnp.zeros(self.out_shape, kernel.dtype)
        return kernel, self.param("bias", self.bias_init, self.out_shape)

    def project(
        self, x: Float[Array, "b l i"], kernel: Float[Array, "..."], bias: Float[Array, "..."]
    ) -> Float[Array, "b l o"]:
        """The product with a kernel, and its bias; axes of heads are joined."""
        kernel = kernel.reshape(x.shape[-1], -1).astype(self.dtype)
        y, bias = matrix_product(x, kernel), bias.reshape(-1).astype(self.dtype)
        return add_bias(y, bias) if self.sums_by_product else y + bias.reshape(1, 1, -1)


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
    def __call__(
        self, x: Float[Array, "b l w"], read: Int[Array, " b"] | None = None
    ) -> tuple[Float[Array, "b h #l k"], ...]:
        """With `read`, one position of each example, there are queries of these alone."""
        kernel, bias = self.parameters()
        if read is not None:
            q = self.project(take_positions(x, read), kernel[:, :, 0], bias[:, 0])
            kv = self.project(x, kernel[:, :, 1:], bias[:, 1:])
            q = rearrange(q, "b l (h k) -> b h l k", h=self.out_shape[0])
            return q, *rearrange(kv, "b l (h two k) -> two b h l k", h=self.out_shape[0], two=2)
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
    qkv_bias: bool = True
    """True if queries, keys and values have biases."""


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection to queries, keys and values."""

    config: BlockConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b l w"],
        padding_mask: Bool[Array, "b l"] | None = None,
        angles: Float[Array, "#b l half"] | None = None,
        read: Int[Array, " b"] | None = None,
    ) -> Float[Array, "b #l w"]:
        """`angles`: of rotary position embeddings. If None, there are none. `read`: one position of
        each example, whose output is the only one. If None, all.
        """
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
            sums_by_product=uses_tpu_kernel(self.compute.attention, x.shape[1], head_dim, dtype),
            use_bias=c.qkv_bias,
            name="qkv",
        )(x, read)
        if angles is not None:
            of_queries = angles
            if read is not None:
                of_each = jnp.broadcast_to(angles, (x.shape[0], *angles.shape[1:]))
                of_queries = take_positions(of_each, read)
            q, k = rotate(q, of_queries), rotate(k, angles)
        causal = c.causal
        if causal and read is not None:
            earlier = jnp.arange(x.shape[1])[None] <= read[:, None]
            padding_mask = earlier if padding_mask is None else padding_mask & earlier
            causal = False
        z = dot_product_attention(q, k, v, causal, self.compute.attention, padding_mask)
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
