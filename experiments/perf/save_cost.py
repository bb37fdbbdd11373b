"""Measure the cost of saving every 50 steps: time that saves block the loop, and slow it down.

    python experiments/perf/save_cost.py --out D

Trains a ViT-B/32 on random images, without saving and then with two saves, and counts every
second that the steps after a save take beyond what they took before. Nothing else should run.
"""

import argparse
import shutil
import statistics
import time
from pathlib import Path

import jax
import numpy as np

from flaxclip.checkpoint.layout import saved_steps
from flaxclip.checkpoint.manager import CheckpointConfig, CheckpointManager
from flaxclip.config import TrainConfig
from flaxclip.data.batch import Batch
from flaxclip.models.variants import VARIANTS
from flaxclip.optim import OptimConfig, make_optimizer
from flaxclip.run.process import keep_freed_memory
from flaxclip.sharding import MeshConfig, batch_sharding, make_mesh
from flaxclip.train_state import init_train_state
from flaxclip.train_step import make_train_step

EVERY = 50
"""Steps from save to save that the cost is spread over."""


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-B-32-quickgelu")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10, help="without a save, and after each")
    parser.add_argument("--out", type=Path, required=True, help="workdir, made anew")
    args = parser.parse_args()
    keep_freed_memory()
    shutil.rmtree(args.out, ignore_errors=True)

    model = VARIANTS[args.model].model
    config = TrainConfig(str(args.out), 10_000, args.batch_size, model=model)
    mesh = make_mesh(MeshConfig())
    tx, schedule = make_optimizer(OptimConfig(), config.steps)
    rng = np.random.default_rng(0)
    side, length = model.vision.image_size, model.text.context_length
    batch = Batch(
        rng.integers(0, 256, (args.batch_size, side, side, 3), np.uint8),
        rng.integers(1, model.text.vocab_size, (args.batch_size, length), np.int32),
    )
    with jax.set_mesh(mesh):
        state = init_train_state(jax.random.key(0), model, tx, mesh)
        train_step = make_train_step(config, tx, schedule, mesh, state)
        batch = jax.device_put(batch, batch_sharding(mesh))
        checkpoints = CheckpointManager(args.out, CheckpointConfig(keep=1), {})

        def train(steps: int, save: bool) -> tuple[list[float], float]:
            """Seconds of each step, the first with the save before it; and until it was written."""
            nonlocal state
            seconds, written, start = [], 0.0, time.perf_counter()
            for _ in range(steps):
                began = time.perf_counter()
                if save and not seconds:
                    checkpoints.save(int(state.step), state.trees, {})
                state, metrics = train_step(state, batch)
                jax.block_until_ready((state, metrics))
                seconds.append(time.perf_counter() - began)
                if save and not written and saved_steps(args.out)[-1:] == [before]:
                    written = time.perf_counter() - start
            return seconds, written

        before = 0
        train(2, save=False)
        step = statistics.median(train(args.steps, save=False)[0])
        gigabytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e9
        print(f"{args.model}, batch {args.batch_size}: {step:.2f} s a step, {gigabytes:.2f} GB")
        for number in (1, 2):
            before = int(state.step)
            seconds, written = train(args.steps, save=True)
            stall = checkpoints.take_stall_seconds()
            extra = sum(seconds) - args.steps * step
            print(
                f"save {number}: held up {stall:.2f} s, written after "
                f"{written:.1f} s, {args.steps} steps took {extra:.2f} s longer: "
                f"{extra / (EVERY * step):.2%} of {EVERY} steps "
                f"(held up alone {stall / (EVERY * step):.2%})"
            )
        checkpoints.close()


if __name__ == "__main__":
    main()
