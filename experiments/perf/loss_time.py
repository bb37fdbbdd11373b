"""Time of the contrastive loss with its gradients, by implementation.

    python experiments/perf/loss_time.py                                        # virtual devices
    python experiments/perf/loss_time.py --platform cuda --batch-size 32768     # real GPUs

They take turns in one process; the fastest turn of each counts, as ratios. The named alternative
is a matrix for each direction (`two_matrices.py`). Run it on an otherwise idle machine.
"""

import dataclasses
import os
import time
from typing import Literal

import tyro


@dataclasses.dataclass(frozen=True)
class Options:
    batch_size: int = 8192
    """Pairs over all devices."""
    embed_dim: int = 512
    platform: Literal["cpu", "cuda"] = "cpu"
    devices: int = 8
    """Virtual CPU devices that share this machine's cores."""
    rounds: int = 5
    """Turns of every implementation."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    os.environ["JAX_PLATFORMS"] = options.platform
    if options.platform == "cpu":
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={options.devices}"
    import jax
    import jax.numpy as jnp
    from two_matrices import two_matrix_loss

    from flaxclip.losses.sigmoid import sigmoid_contrastive_loss
    from flaxclip.losses.softmax import softmax_contrastive_loss
    from flaxclip.sharding import BATCH_AXES, MeshConfig, batch_sharding, make_mesh

    mesh = make_mesh(MeshConfig())
    keys = jax.random.split(jax.random.key(0))
    shape = options.batch_size, options.embed_dim
    zimg, ztxt = (jax.random.normal(key, shape) / shape[1] ** 0.5 for key in keys)
    inputs = (*jax.device_put((zimg, ztxt), batch_sharding(mesh)), jnp.log(1 / 0.07))
    bias = jnp.float32(-10)
    losses = {
        "softmax, two matrices": lambda *z: two_matrix_loss(*z, BATCH_AXES),
        "softmax, gathered": lambda *z: softmax_contrastive_loss(*z, BATCH_AXES, "gathered").loss,
        "softmax, tiled": lambda *z: softmax_contrastive_loss(*z, BATCH_AXES, "tiled").loss,
        "sigmoid, gathered": lambda *z: (
            sigmoid_contrastive_loss(*z, bias, BATCH_AXES, "gathered").loss
        ),
        "sigmoid, tiled": lambda *z: sigmoid_contrastive_loss(*z, bias, BATCH_AXES, "tiled").loss,
    }
    seconds = dict.fromkeys(losses, float("inf"))
    with jax.set_mesh(mesh):
        steps = {
            name: jax.jit(jax.grad(loss, (0, 1, 2))).lower(*inputs).compile()
            for name, loss in losses.items()
        }
        for step in steps.values():
            jax.block_until_ready(step(*inputs))
        for _ in range(options.rounds):
            for name, step in steps.items():
                start = time.perf_counter()
                jax.block_until_ready(step(*inputs))
                seconds[name] = min(seconds[name], time.perf_counter() - start)

    kind = jax.devices()[0].device_kind
    print(f"B {shape[0]}, d {shape[1]}, {mesh.size} x {kind}, forward and backward")
    two, gathered = seconds["softmax, two matrices"], seconds["softmax, gathered"]
    for name, value in seconds.items():
        temporary = steps[name].memory_analysis().temp_size_in_bytes
        print(
            f"{name:22} {value:8.4f} s   {value / two:.2f} of two matrices   "
            f"{value / gathered:.2f} of gathered softmax   {temporary / 2**20:9,.0f} MiB a device"
        )


if __name__ == "__main__":
    main()
