"""Exact gradient of a loss over a whole batch, with activations of only a part of it in memory.

GradCache (Gao et al. 2021, section 3.2): embed the batch part by part and keep no activations,
compute the loss over the whole batch and its gradient with respect to the embeddings, then embed
each part again and backpropagate that gradient. Averaging the losses of the parts instead would
drop the negatives between them.
"""

from collections.abc import Callable
from typing import Any

import jax
from einops import rearrange
from jaxtyping import Array, Float, Shaped

from flaxclip.sharding import constrain, count_shards

Params = dict[str, Any]
Stats = dict[str, Any]
Embeddings = tuple[Array, ...]


def loss_and_gradients(
    embed: Callable[[Params, Stats, Any], tuple[Embeddings, Stats]],
    loss: Callable[[Embeddings, Params], tuple[Float[Array, ""], Any]],
    params: Params,
    stats: Stats,
    inputs: Any,
    parts: int,
) -> tuple[Params, Stats, Any]:
    """Gradients of `loss(embed(inputs))` for `params`, new `stats`, and what else `loss` returns.

    Args:
        embed: `(params, stats, inputs) -> (embeddings, new stats)`. An embedding depends on its own
            example alone, except through statistics: those of a part, updated part after part.
        loss: `(embeddings, params) -> (loss, more)` over the whole batch.
        params: parameters of `embed` and `loss`.
        stats: running statistics of batch norms.
        inputs: arrays `[b ...]`, divided over the mesh's batch axes.
        parts: number of parts that the batch is embedded in; 1 keeps all activations in memory.

    Memory: activations of `b / parts` examples, embeddings of all, and a second set of gradients.
    Time: one more forward pass, unless `parts` is 1.
    """
    if parts == 1:

        def embed_and_loss(params: Params) -> tuple[Float[Array, ""], Any]:
            embeddings, new_stats = embed(params, stats, inputs)
            value, more = loss(embeddings, params)
            return value, (new_stats, more)

        gradients, (new_stats, more) = jax.grad(embed_and_loss, has_aux=True)(params)
        return gradients, new_stats, more

    def embed_part(stats: Stats, part: Any) -> tuple[Stats, Embeddings]:
        embeddings, stats = embed(params, stats, part)
        return stats, embeddings

    def pull_back(gradients: Params, part: tuple[Any, Embeddings]) -> tuple[Params, None]:
        inputs, cotangents = part
        _, pull = jax.vjp(lambda params: embed(params, stats, inputs)[0], params)
        return jax.tree.map(jax.numpy.add, gradients, pull(cotangents)[0]), None

    inputs = _split(inputs, parts)
    new_stats, embeddings = jax.lax.scan(embed_part, stats, inputs)
    (by_embeddings, gradients), more = jax.grad(loss, (0, 1), has_aux=True)(
        _join(embeddings), params
    )
    gradients, _ = jax.lax.scan(pull_back, gradients, (inputs, _split(by_embeddings, parts)))
    return gradients, new_stats, more


def in_parts(function: Callable[[Any], Any], inputs: Any, parts: int) -> Any:
    """`function(inputs)`, with temporary arrays of only a part of the batch in memory at a time.

    `inputs` and results are arrays `[b ...]`, and an example's result depends on it alone.
    """
    if parts == 1:
        return function(inputs)
    return _join(jax.lax.map(function, _split(inputs, parts)))


# A device cuts up what it holds and puts together what it made: every part is spread over all
# devices, and no example travels.


def _split(tree: Any, parts: int) -> Any:
    """Arrays `[b ...]` as `[parts, b / parts, ...]`."""

    def split(x: Shaped[Array, "b ..."]) -> Shaped[Array, "parts part ..."]:
        x = rearrange(x, "(n parts k) ... -> parts (n k) ...", n=_shards(), parts=parts)
        return constrain(x, None, "batch")

    return jax.tree.map(split, tree)


def _join(tree: Any) -> Any:
    """The inverse of `_split`."""

    def join(x: Shaped[Array, "parts part ..."]) -> Shaped[Array, "b ..."]:
        x = rearrange(x, "parts (n k) ... -> (n parts k) ...", n=_shards())
        return constrain(x, "batch")

    return jax.tree.map(join, tree)


def _shards() -> int:
    """Number of devices that a batch is divided over, on the context's mesh."""
    return count_shards("batch", jax.sharding.get_abstract_mesh())
