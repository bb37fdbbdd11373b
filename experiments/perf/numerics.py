"""What each lever for TPUs does to losses, gradients and parameters, against float32.

    python experiments/perf/numerics.py

A small CLIP with heads as wide as ViT-B's, on the CPU: the kernel is interpreted. Levers are added
one by one to what build ba0bdcf computed in bfloat16. Errors are norms of differences from a
float32 run over the norm of what that run has: of gradients at the first step, and of the changes
of parameters after ten. The mean over seeds, with the largest in brackets.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from flaxclip.config import TrainConfig
from flaxclip.models import layers, projections
from flaxclip.models.attention import dot_product, tpu_attention
from flaxclip.models.clip import CLIP, CLIPConfig, init_params
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.vision_transformer import ViTConfig
from flaxclip.optim import OptimConfig, make_optimizer
from flaxclip.sharding import MeshConfig, make_mesh
from flaxclip.train_step import make_loss

MODEL = CLIPConfig(
    ViTConfig(image_size=56, patch_size=8, width=128, layers=2, heads=2, activation="gelu"),
    TextConfig(context_length=24, vocab_size=200, width=128, layers=2, heads=2, activation="gelu"),
    embed_dim=64,
)


@dataclasses.dataclass(frozen=True)
class Options:
    seeds: int = 3
    steps: int = 10
    batch_size: int = 16


def _always(*_: object) -> bool:
    return True


def levers() -> dict[str, Callable[[], contextlib.AbstractContextManager]]:
    """What makes a trace of the model do without, or with, each lever."""
    plain_gelu = functools.partial(jax.nn.gelu, approximate=False)
    interpreted = functools.partial(tpu_attention.attention, interpret=True)

    @contextlib.contextmanager
    def kernel() -> Iterator[None]:
        with (
            mock.patch.object(dot_product, "uses_tpu_kernel", _always),
            mock.patch.object(tpu_attention, "attention", interpreted),
        ):
            yield

    return {
        "ba0bdcf": lambda: mock.patch.dict(layers.ACTIVATIONS, gelu=plain_gelu),
        "GELU of 16 bits by erf": contextlib.nullcontext,
        "q, k and v as three products": lambda: mock.patch.object(
            projections, "target_platform", return_value="tpu"
        ),
        "attention by the kernel": kernel,
        "gradients of biases as products": lambda: mock.patch.object(
            layers, "uses_tpu_kernel", _always
        ),
    }


def make_run(options: Options, dtype: Any, patches: list) -> Callable[[int], tuple]:
    """Of a seed: the first loss and its gradients, and how parameters have changed at the end."""
    config = TrainConfig("", options.steps, options.batch_size, model=MODEL)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    model = CLIP(MODEL, ComputeConfig(dtype=dtype))
    # Larger steps than a run's first: what they add up to is then more than rounding of parameters.
    tx, _ = make_optimizer(OptimConfig(warmup_steps=0), options.steps)
    compute_loss = make_loss(config, mesh)

    @jax.jit
    def gradients(params, images, tokens):
        def loss(params):
            zimg, ztxt, _ = model.apply({"params": params}, images, tokens)
            return compute_loss(zimg, ztxt, params).loss

        return jax.value_and_grad(loss)(params)

    @jax.jit
    def update(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def run(seed: int) -> tuple:
        rng = np.random.default_rng(seed)
        side, text = MODEL.vision.image_size, MODEL.text
        images = rng.integers(0, 256, (options.batch_size, side, side, 3), np.uint8)
        tokens = rng.integers(
            1, text.vocab_size, (options.batch_size, text.context_length), np.int32
        )
        with contextlib.ExitStack() as stack:
            stack.enter_context(jax.set_mesh(mesh))
            for patch in patches:
                stack.enter_context(patch())
            start = params = init_params(jax.random.key(seed), MODEL)
            state = tx.init(params)
            first = None
            for _ in range(options.steps):
                loss, grads = gradients(params, images, tokens)
                first = first or (loss, grads)
                params, state = update(params, state, grads)
        assert first is not None, "there is a step"
        return *first, jax.tree.map(jnp.subtract, params, start)

    return run


def distance(found: Any, exact: Any) -> float:
    """Norm of the difference over that of what is exact."""
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, found, exact))
    return float(difference / optax.tree.norm(exact))


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    seeds = range(options.seeds)
    reference = make_run(options, "float32", [])
    exact = [reference(seed) for seed in seeds]
    print("| bfloat16, with | loss | gradients | ten steps |\n|---|---|---|---|")
    names, makers = zip(*levers().items(), strict=True)
    for count, name in enumerate(names, 1):
        # The first is what was before, and is not added to.
        patches = list(makers[:1]) if count == 1 else list(makers[1:count])
        run = make_run(options, "bfloat16", patches)
        errors = np.array(
            [
                [
                    distance(found, whole)
                    for found, whole in zip(run(seed), exact[seed], strict=True)
                ]
                for seed in seeds
            ]
        )
        cells = (f"{column.mean():.2e} ({column.max():.2e})" for column in errors.T)
        print(f"| {'+ ' * (count > 1)}{name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
