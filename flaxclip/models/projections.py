"""Dense layers of a transformer, those to and from heads among them."""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from flaxclip.models.initializers import Initializer
from flaxclip.sharding import constrain, is_for_one_cpu, target_platform


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
    head_channels: int | None = None
    """Channels that heads are computed with, zeros behind their own. If None, their own alone."""

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

    def fill(self, x: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
        """With zeros behind each head's channels, as `head_channels` says."""
        missing = (self.head_channels or x.shape[axis]) - x.shape[axis]
        if not missing:
            return x
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, missing)
        return jnp.pad(x.astype(self.dtype), widths)


class Projection(HeadsKernel):
    """Dense layer; `in_shape` is (heads, channels) where there are `head_channels`."""

    @nn.compact
    def __call__(self, x: Float[Array, "b l i"]) -> Float[Array, "b l o"]:
        kernel, bias = self.parameters()
        return self.project(x, kernel if self.head_channels is None else self.fill(kernel, 1), bias)


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
        parts = [(kernel, bias)]
        if cut:
            parts = [(self.fill(kernel[:, :, i], 2), self.fill(bias[:, i], 1)) for i in range(3)]
        products = [
            checkpoint_name(constrain(self.project(x, *part), "batch", None, "heads"), "qkv")
            for part in parts
        ]
        heads = self.out_shape[0]
        if cut:
            return tuple(rearrange(y, "b l (h k) -> b h l k", h=heads) for y in products)
        return tuple(rearrange(products[0], "b l (h three k) -> three b h l k", h=heads, three=3))
