"""The transformer that both towers are made of: residual blocks, stacked and scanned."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from flaxclip.models.layers import (
    MLP,
    Activation,
    Attention,
    AttentionKernel,
    BlockInit,
    layer_norm,
)
from flaxclip.sharding import constrain

Remat = Literal["auto", "none", "names", "dots", "offload", "full"]
"""What a block keeps for its backward pass. `none` recomputes nothing. `names` keeps what is dear
to repeat, `SAVED_BY_NAMES`: half the memory, at about 1% more FLOPs. `dots` keeps the results of
all matrix products with parameters. `offload` keeps what `names` does in the host's memory. `full`
keeps the block's input alone: least memory, a quarter more FLOPs. `auto`: the first of
`remat_by_speed` whose step fits the devices; whoever compiles the step chooses."""


def remat_by_speed(platform: str, is_scanned: bool) -> tuple[Remat, ...]:
    """The choices of `auto` on a JAX platform (`gpu`, `tpu`, `cpu`), the fastest first.

    Keeping everything is fastest on an H100, and on TPUs where no scan is over the blocks. Else it
    is slower than `names`, and larger: to write what all blocks keep into the scan's stacks, and to
    read it, takes longer than to repeat it. TPUs by their compiler's cost model
    (experiments/perf/remat.py), the others as timed (experiments/perf/step.py).
    """
    if platform == "gpu" or (platform == "tpu" and not is_scanned):
        return ("none", "names", "full")
    return ("names", "full")


# The large products, and the residual stream between the block's halves. Norms, activations and
# attention weights are computed again, which in a large model costs less than writing and reading.
SAVED_BY_NAMES = ("qkv", "attended", "residual", "fc1")


def _is_cudnn_attention(primitive: Any, *_: Any, **__: Any) -> bool:
    """Its backward kernel needs the statistics of its softmax, which cannot be named from here."""
    return primitive.name == "dot_product_attention_fwd_wrapper"


_policies = jax.checkpoint_policies
_POLICIES = {
    "names": _policies.save_from_both_policies(
        _policies.save_only_these_names(*SAVED_BY_NAMES), _is_cudnn_attention
    ),
    "dots": _policies.save_from_both_policies(
        _policies.dots_with_no_batch_dims_saveable, _is_cudnn_attention
    ),
    "offload": _policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=list(SAVED_BY_NAMES),
        offload_src="device",
        offload_dst="pinned_host",
    ),
    "full": _policies.nothing_saveable,
}


class TransformerBlock(nn.Module):
    """Residual block: attention, then MLP.

    Each has a norm before it, or with `post_norm` after its residual sum, as in the first
    transformers (Vaswani et al. 2017, section 3.1; Devlin et al. 2019).
    """

    heads: int
    mlp_width: int
    activation: Activation
    causal: bool
    block_init: BlockInit
    dtype: jnp.dtype
    norm_eps: float = 1e-5
    attention_kernel: AttentionKernel = "auto"
    post_norm: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "b l w"], visible: Bool[Array, "b l"] | None = None
    ) -> Float[Array, "b l w"]:
        attention = Attention(
            self.heads,
            self.causal,
            self.block_init,
            self.dtype,
            self.attention_kernel,
            name="attention",
        )
        mlp = MLP(self.mlp_width, self.activation, self.block_init, self.dtype, name="mlp")
        ln_1, ln_2 = layer_norm("ln_1", self.norm_eps), layer_norm("ln_2", self.norm_eps)
        if self.post_norm:
            x = ln_1(x + attention(x, visible)).astype(self.dtype)
            x = checkpoint_name(x, "residual")
            return ln_2(x + mlp(x)).astype(self.dtype)
        x = x + attention(ln_1(x).astype(self.dtype), visible)
        x = checkpoint_name(x, "residual")
        return x + mlp(ln_2(x).astype(self.dtype))


class Transformer(nn.Module):
    """`layers` blocks, one stacked parameter tree, one compilation of the body."""

    layers: int
    heads: int
    mlp_width: int
    activation: Activation
    causal: bool
    block_init: BlockInit
    dtype: jnp.dtype
    unroll: int = 1
    remat: Remat = "names"
    norm_eps: float = 1e-5
    attention_kernel: AttentionKernel = "auto"
    post_norm: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "b l w"], visible: Bool[Array, "b l"] | None = None
    ) -> Float[Array, "b l w"]:
        """`visible`: which positions may be attended to, where not all may."""
        # The barrier ends a fusion with its block. Unrolled, XLA would otherwise recompute the sum
        # of all earlier blocks' outputs in every norm, at a cost that grows with depth squared.
        stack = nn.scan(
            lambda block, x, visible: (
                jax.lax.optimization_barrier(constrain(block(x, visible), "batch", None, None)),
                None,
            ),
            in_axes=nn.broadcast,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.layers,
            unroll=min(self.unroll, self.layers),
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        block_type = TransformerBlock
        # Where nothing is compiled, `auto` and `none` are the same.
        if self.remat not in ("auto", "none"):
            # A scan keeps forward and backward pass apart: nothing can be merged across them.
            block_type = nn.remat(
                block_type, policy=_POLICIES[self.remat], prevent_cse=self.unroll >= self.layers
            )
        block = block_type(
            self.heads,
            self.mlp_width,
            self.activation,
            self.causal,
            self.block_init,
            self.dtype,
            self.norm_eps,
            self.attention_kernel,
            self.post_norm,
            name="blocks",
        )
        x, _ = stack(block, constrain(x, "batch", None, None), visible)
        return constrain(x, "batch", None, None)
