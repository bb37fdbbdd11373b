"""Find the first value that is not finite, for `--debug-nans`."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxclip.models.clip import CLIP


class _FoundError(Exception):
    """Carries the answer out of the forward pass."""


def find_nonfinite(
    model: CLIP, params: dict[str, Any], batch_stats: dict[str, Any], batch: Sequence[Any]
) -> str:
    """The first layer whose output is not finite in a forward pass, in words.

    Runs operation by operation, since a compiled program has no layers; slow, but with the same
    numbers, up to rounding. Parameters that are not finite themselves are named instead.
    """
    if bad := [name for name, leaf in _named(params) if not _finite(leaf)]:
        return f"parameters {', '.join(bad)}"
    calls: Counter[str] = Counter()

    def watch(
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        out = call(*args, **kwargs)
        leaves = jax.tree.leaves(out)
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return out
        name = "/".join((*context.module.path, context.method_name)).removesuffix("/__call__")
        calls[name] += 1  # the layers of a scanned stack share their name, and come in order
        if not all(_finite(leaf) for leaf in leaves):
            raise _FoundError(f"{name}, call {calls[name]}")
        return out

    try:
        with jax.disable_jit(), nn.intercept_methods(watch):
            variables = {"params": params, "batch_stats": batch_stats}
            model.apply(variables, *batch, train=True, mutable=["batch_stats"])
    except _FoundError as found:
        return f"output of {found} (the layers of a stack are called in order)"
    return "every layer's output is finite: it is the loss or a gradient that overflows"


def _finite(leaf: Any) -> bool:
    return not jnp.issubdtype(leaf.dtype, jnp.floating) or bool(jnp.isfinite(leaf).all())


def _named(tree: Any) -> list[tuple[str, Any]]:
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
