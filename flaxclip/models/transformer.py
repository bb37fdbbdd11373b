"""The transformer that both towers are made of: residual blocks, stacked and scanned."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from flaxclip.models.compute import ComputeConfig
from flaxclip.models.initializers import Initializer, logical
from flaxclip.models.layers import (
    MLP,
    Attention,
    BlockConfig,
    layer_norm,
)
from flaxclip.models.projections import Projection, take_positions
from flaxclip.sharding import constrain

# The large products, the residual stream between the block's halves, and mean and variance of the
# norms. What they normalise, activations and attention weights are computed again, which in a large
# model costs less than writing and reading.
SAVED_BY_NAMES = ("qkv", "attended", "residual", "fc1", "norm")


def _is_cudnn_attention(primitive: Any, *_: Any, **__: Any) -> bool:
    """True for cuDNN attention, whose backward kernel needs softmax statistics without a name."""
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
        names_which_can_be_saved=["norm"],
        names_which_can_be_offloaded=[name for name in SAVED_BY_NAMES if name != "norm"],
        offload_src="device",
        offload_dst="pinned_host",
    ),
    "full": _policies.nothing_saveable,
}


class GatedMLP(nn.Module):
    """Three dense layers: one, through an activation, multiplies another (Shazeer 2020)."""

    config: BlockConfig
    compute: ComputeConfig
    activation: Callable[[Array], Array]
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "b l w"]) -> Float[Array, "b l w"]:
        c, width = self.config, x.shape[-1]
        x = constrain(x, "batch", None, None)

        def dense(name: str, outputs: int, init: Initializer, bias: Initializer) -> Projection:
            axes = ("mlp", "embed") if name == "fc2" else ("embed", "mlp")
            return Projection(
                (c.mlp_width if name == "fc2" else width,),
                (outputs,),
                kernel_init=logical(init, *axes),
                bias_init=logical(bias, axes[1]),
                dtype=self.compute.activation_dtype,
                use_bias=self.use_bias,
                name=name,
            )

        def wide(name: str) -> Array:
            h = dense(name, c.mlp_width, c.init.fc1_kernel, c.init.fc1_bias)(x)
            return checkpoint_name(constrain(h, "batch", None, "mlp"), "fc1")

        h = self.activation(wide("gate")) * wide("fc1")
        h = dense("fc2", width, c.init.fc2_kernel, c.init.fc2_bias)(h)
        return constrain(h, "batch", None, None)


class TransformerBlock(nn.Module):
    """Residual block: attention, then MLP."""

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
        """With `read`, one position of each example, the output is that of these positions."""
        c, dtype = self.config, self.compute.activation_dtype
        attention = Attention(c, self.compute, name="attention")
        mlp = MLP(c, self.compute, name="mlp")
        ln_1, ln_2 = layer_norm("ln_1", c.norm_eps), layer_norm("ln_2", c.norm_eps)
        stream = x if read is None else take_positions(x, read)
        if c.post_norm:
            x = ln_1(stream + attention(x, padding_mask, angles, read)).astype(dtype)
            x = checkpoint_name(x, "residual")
            return ln_2(x + mlp(x)).astype(dtype)
        x = stream + attention(ln_1(x).astype(dtype), padding_mask, angles, read)
        x = checkpoint_name(x, "residual")
        return x + mlp(ln_2(x).astype(dtype))


class Transformer(nn.Module):
    """`layers` blocks, one stacked parameter tree, one compilation of the body."""

    layers: int
    block: BlockConfig
    compute: ComputeConfig
    block_type: type[nn.Module] = TransformerBlock
    """Called as `TransformerBlock` is."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b l w"],
        padding_mask: Bool[Array, "b l"] | None = None,
        places: Float[Array, "..."] | None = None,
        read: Int[Array, " b"] | None = None,
    ) -> Float[Array, "b #l w"]:
        """`padding_mask`: True for positions that may be attended to. If None, all. `places`: what
        tells all blocks alike where positions are, such as angles of rotary position embeddings.
        `read`: of each example, the one position whose output is wanted, for inference: the last
        block computes no other, a fourteenth of a tower of 12 blocks.
        """
        if read is not None:
            return self._read(constrain(x, "batch", None, None), padding_mask, places, read)
        unroll = min(self.compute.unroll or 1, self.layers)
        remat = self.compute.remat or "names"
        # The barrier ends a fusion with its block. Unrolled, XLA would otherwise recompute the sum
        # of all earlier blocks' outputs in every norm, at a cost that grows with depth squared.
        stack = nn.scan(
            lambda block, x, padding_mask, places: (
                jax.lax.optimization_barrier(
                    constrain(block(x, padding_mask, places), "batch", None, None)
                ),
                None,
            ),
            in_axes=nn.broadcast,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.layers,
            unroll=unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        block_type = self.block_type
        # Where nothing is compiled, `auto` and `none` are the same.
        if remat not in ("auto", "none"):
            # A scan keeps forward and backward pass apart: nothing can be merged across them.
            block_type = nn.remat(
                block_type,
                policy=_POLICIES[remat],
                prevent_cse=unroll == self.layers,
            )
        x, _ = stack(
            block_type(self.block, self.compute, name="blocks"),
            constrain(x, "batch", None, None),
            padding_mask,
            places,
        )
        return constrain(x, "batch", None, None)

    def _read(
        self,
        x: Float[Array, "b l w"],
        padding_mask: Bool[Array, "b l"] | None,
        places: Float[Array, "..."] | None,
        read: Int[Array, " b"],
    ) -> Float[Array, "b 1 w"]:
        """The last block is another program than the others: parameters come from where the stack
        of all blocks has them, which is what is saved and trained.
        """
        params: Any = self.get_variable("params", "blocks")
        block = self.block_type(self.block, self.compute, parent=None)

        def run(number: Int[Array, ""] | int, *arguments: Any) -> Any:
            of_block = jax.tree.map(lambda stacked: stacked[number], params)
            return block.apply({"params": of_block}, *arguments)

        def all_positions(x: Array, number: Int[Array, ""]) -> tuple[Array, None]:
            x = constrain(run(number, x, padding_mask, places), "batch", None, None)
            return jax.lax.optimization_barrier(x), None

        last = self.layers - 1
        unroll = min(self.compute.unroll or 1, max(last, 1))
        x, _ = jax.lax.scan(all_positions, x, jnp.arange(last), unroll=unroll)
        if self.block_type is TransformerBlock:
            return run(last, x, padding_mask, places, read)
        return take_positions(run(last, x, padding_mask, places), read)
