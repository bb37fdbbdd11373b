"""Scaled dot-product attention, by the implementation that suits a device."""

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from flaxclip.models.compute import KERNEL_CHANNELS, KERNEL_POSITIONS, AttentionKernel
from flaxclip.sharding import target_device_kind, target_platform


def has_cudnn_attention(q: Float[Array, "b h l k"]) -> bool:
    """True if the default device is an NVIDIA GPU, and cuDNN supports attention for such queries.

    It does for 16-bit types and heads of a multiple of 8 channels, on older GPUs up to 128.
    """
    on_nvidia = jax.devices()[0].device_kind.startswith("NVIDIA")
    return on_nvidia and q.dtype.itemsize == 2 and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128


def uses_tpu_kernel(kernel: AttentionKernel, length: int, head_dim: int, dtype: jnp.dtype) -> bool:
    """True if self-attention of so many positions is by our kernel, where the program is for TPUs.

    `auto` means it where it pays by the compiler's cost model (experiments/perf/README.md).
    """
    if kernel == "auto":
        has_room = length <= KERNEL_POSITIONS.get(target_device_kind(), 0)
        return has_room and head_dim <= KERNEL_CHANNELS and dtype.itemsize == 2
    return kernel == "pallas" and target_platform() == "tpu"


def channels_for_kernel(head_dim: int) -> int:
    """Channels that projections give a head whose attention is by our kernel, the last ones zero.

    It works on 128 at a time. Of heads of 72, 80 or 104, zeros behind the projections' kernels cost
    FLOPs; behind activations they would cost copies, a third of a step by the compiler's cost
    model (experiments/perf/README.md).
    """
    return KERNEL_CHANNELS if KERNEL_CHANNELS // 2 < head_dim < KERNEL_CHANNELS else head_dim


def dot_product_attention(
    q: Float[Array, "b h l k"],
    k: Float[Array, "b h m k"],
    v: Float[Array, "b h m k"],
    causal: bool,
    kernel: AttentionKernel = "auto",
    padding_mask: Bool[Array, "b m"] | None = None,
    bias: Float[Array, "1 h l m"] | None = None,
    scale: float | None = None,
) -> Float[Array, "b h l k"]:
    """Scaled dot-product attention (Vaswani et al. 2017, equation 1), softmax in float32.

    `padding_mask`: True for keys that may be attended to. If None, all. `bias` is added to the
    logits, which no kernel does. `scale`: of queries; if None, channels^-1/2.
    """
    fused = q.shape == k.shape and bias is None
    cudnn = kernel == "auto" and padding_mask is None and scale is None
    if fused and cudnn and has_cudnn_attention(q):
        return _cudnn_attention(q, k, v, causal)
    if fused and uses_tpu_kernel(kernel, q.shape[2], q.shape[3], q.dtype):
        heads = q.shape[1]
        # Importing Pallas takes a while, and all others can do without it.
        from flaxclip.models.attention.tpu_attention import attention

        # XLA drops these changes of axes: so the projections have made them.
        q, k, v = (rearrange(x, "b h l k -> b l (h k)") for x in (q, k, v))
        z = attention(q, k, v, padding_mask, heads=heads, causal=causal, scale=scale)
        return rearrange(checkpoint_name(z, "attended"), "b l (h k) -> b h l k", h=heads)
    # Heads before positions, and queries scaled rather than logits: the fewest copies.
    q = q * (q.shape[-1] ** -0.5 if scale is None else scale)
    logits = jnp.einsum("bhlk,bhmk->bhlm", q, k, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + bias
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
