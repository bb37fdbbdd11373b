"""Time of a training step beside open_clip's: the same model, batch and optimizer, on this CPU.

    python -m venv peer && peer/bin/pip install torch==2.14.1 torchvision==0.29.1 open_clip_torch
    python experiments/perf/step.py --peer-python peer/bin/python

Each side runs in processes of its own, in turn, and counts its fastest step. Rates are model FLOPs
(recomputation not counted) beside the fastest 2,048 x 2,048 matrix product of the same process.
Nothing else should run: two threads on two busy cores wait for each other.
"""

import argparse
import collections
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Both sides keep freed memory, as `python -m flaxclip.train` does for itself: page faults in
# fresh buffers would otherwise be a part of every step.
MALLOC = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "MALLOC_ARENA_MAX": "1",
}


def fastest(run: Callable[[], object], repetitions: int) -> float:
    """Seconds of the fastest of several calls, after one that warms up."""
    run()
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def flaxclip_step(
    model: str, batch_size: int, precision: str, steps: int, remat: str = "none", unroll: int = 1
) -> dict[str, Any]:
    """Our step's seconds, its model FLOPs, and what a matrix product reaches, in FLOP/s."""
    import dataclasses

    import jax
    import jax.numpy as jnp
    import numpy as np

    from flaxclip.config import TrainConfig
    from flaxclip.data.batch import Batch
    from flaxclip.models.variants import VARIANTS
    from flaxclip.optim import OptimConfig, make_optimizer
    from flaxclip.sharding import MeshConfig, batch_sharding, make_mesh
    from flaxclip.startup import keep_compiled_programs
    from flaxclip.train_state import init_train_state
    from flaxclip.train_step import make_train_step, step_flops

    keep_compiled_programs()
    config = dataclasses.replace(VARIANTS[model], dtype=precision, remat=remat, unroll=unroll)
    mesh, tx = make_mesh(MeshConfig()), make_optimizer(OptimConfig(), steps=10_000)
    rng = np.random.default_rng(0)
    side, length = config.vision.image_size, config.text.context_length
    batch = Batch(
        rng.integers(0, 256, (batch_size, side, side, 3), np.uint8),
        rng.integers(1, config.text.vocab_size, (batch_size, length), np.int32),
    )
    run_config = TrainConfig("", 1, batch_size, model=config)
    with jax.set_mesh(mesh):
        state = init_train_state(jax.random.key(0), config, tx, mesh)
        batch = jax.device_put(batch, batch_sharding(mesh))
        step = make_train_step(run_config, tx, mesh, state).lower(state, batch).compile()

        def run() -> None:
            nonlocal state
            state, metrics = step(state, batch)
            jax.block_until_ready((state, metrics))

        seconds = fastest(run, steps)
        profile = profile_by_kind(run, step.as_text())
    size = 2048
    x = jnp.ones((size, size), precision)
    product = jax.jit(jnp.matmul)
    matmul = fastest(lambda: product(x, x).block_until_ready(), 20)
    return {
        "seconds": seconds,
        "flops": step_flops(run_config),
        "matmul_flops_per_second": 2 * size**3 / matmul,
        "profile": profile,
    }


def profile_by_kind(run: Callable[[], object], program_text: str) -> dict[str, float]:
    """Shares of the time of one `run` that kinds of instructions of its program take."""
    import jax

    from flaxclip.planning.hlo import parse_program

    program = parse_program(program_text)
    kinds = {
        line.name: kind_of(program, line)
        for computation, _ in program.running()
        for line in computation.instructions.values()
        if line.opcode not in ("while", "call", "conditional")
    }
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        (path,) = Path(folder).rglob("*.xplane.pb")
        events = [
            (dict(event.stats).get("hlo_op"), event.duration_ns)
            for plane in jax.profiler.ProfileData.from_file(str(path)).planes
            for line in plane.lines
            for event in line.events
        ]
    seconds: dict[str, float] = collections.defaultdict(float)
    for name, duration in events:
        if name in kinds:
            seconds[kinds[name]] += duration
    total = sum(seconds.values())
    return {kind: s / total for kind, s in sorted(seconds.items(), key=lambda item: -item[1])}


def kind_of(program: Any, line: Any) -> str:
    """What an instruction does, and for which part of the model."""
    opcodes, todo = set(), [line]
    while todo:
        current = todo.pop()
        opcodes.add(current.opcode)
        name = current.called("calls")
        todo += program.computations[name].instructions.values() if name else []
    if opcodes & {"dot", "convolution", "custom-call"}:
        return "matrix products"
    scopes = {
        "norms": r"/ln_\w+/",
        "attention's softmax": r"/attention/",
        "activations": r"/mlp/",
        "towers' rest": r"(CLIP|transformer)",
    }
    traced = re.search(r'op_name="([^"]*)"', line.attributes)
    for kind, pattern in scopes.items():
        if traced and re.search(pattern, traced.group(1)):
            return kind
    return "optimizer, loss, copies"


def open_clip_step(model: str, batch_size: int, precision: str, steps: int) -> dict[str, Any]:
    """The same update by open_clip; bfloat16 is `torch.autocast`, its `--precision amp_bf16`."""
    import open_clip
    import torch

    clip = open_clip.create_model(model)
    optimizer = torch.optim.AdamW(
        clip.parameters(), lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2
    )
    loss = open_clip.ClipLoss()
    side = clip.visual.image_size[0]
    images = torch.randn(batch_size, 3, side, side)
    tokens = torch.randint(1, clip.vocab_size, (batch_size, clip.context_length))

    def run() -> None:
        optimizer.zero_grad()
        with (
            torch.autocast("cpu", torch.bfloat16)
            if precision == "bfloat16"
            else contextlib.nullcontext()
        ):
            total = loss(*clip(images, tokens))
        total.backward()
        optimizer.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(0, 4.6052)

    seconds = fastest(run, steps)
    x = torch.ones(2048, 2048, dtype=getattr(torch, precision))
    return {"seconds": seconds, "matmul_flops_per_second": 2 * 2048**3 / fastest(lambda: x @ x, 20)}


SIDES = {"flaxclip": flaxclip_step, "open_clip": open_clip_step}


def main() -> None:
    """Alternate the sides, then print seconds, rates and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", help="interpreter of an environment with open_clip")
    parser.add_argument("--model", default="ViT-B-32-quickgelu", help="a name both sides know")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4, help="timed steps in a process")
    parser.add_argument("--rounds", type=int, default=2, help="processes for each measurement")
    parser.add_argument("--measure", nargs=2, metavar=("SIDE", "PRECISION"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        side, precision = args.measure
        print(json.dumps(SIDES[side](args.model, args.batch_size, precision, args.steps)))
        return
    if not args.peer_python:
        parser.error("--peer-python is needed: an interpreter that has open_clip")

    best: dict[tuple[str, str], dict[str, Any]] = {}
    for _ in range(args.rounds):
        for precision in ("float32", "bfloat16"):
            for side in SIDES:
                found = measure(args, side, precision)
                key = side, precision
                if key not in best or found["seconds"] < best[key]["seconds"]:
                    best[key] = found
    report(args, best)
    for precision in ("float32", "bfloat16"):
        profile = best["flaxclip", precision]["profile"]
        shares = ", ".join(f"{kind} {share:.0%}" for kind, share in profile.items())
        print(f"flaxclip {precision}, time by kind of instruction: {shares}")


def measure(args: argparse.Namespace, side: str, precision: str) -> dict[str, Any]:
    """One measurement in a process of its own."""
    interpreter = sys.executable if side == "flaxclip" else args.peer_python
    command = [interpreter, __file__, "--measure", side, precision, "--model", args.model]
    command += ["--batch-size", str(args.batch_size), "--steps", str(args.steps)]
    output = subprocess.check_output(command, env=os.environ | MALLOC, text=True)
    return json.loads(output.splitlines()[-1])


def report(args: argparse.Namespace, best: dict[tuple[str, str], dict[str, Any]]) -> None:
    """Print what was found: a line a measurement, then the two ratios."""
    flops = best["flaxclip", "float32"]["flops"]
    print(f"{args.model}, batch {args.batch_size}: {flops / 1e9:,.0f} model GFLOP a step")
    for (side, precision), found in best.items():
        rate, matmul = flops / found["seconds"], found["matmul_flops_per_second"]
        print(
            f"{side:10}{precision:10}{found['seconds']:7.2f} s a step{rate / 1e9:6.0f} GFLOP/s, "
            f"{rate / matmul:4.0%} of its 2048-matmul's {matmul / 1e9:,.0f}"
        )
    float32 = [best[side, "float32"]["seconds"] for side in ("open_clip", "flaxclip")]
    fastest_of = [
        min(best[side, precision]["seconds"] for precision in ("float32", "bfloat16"))
        for side in ("open_clip", "flaxclip")
    ]
    print(f"open_clip / flaxclip, float32:                    {float32[0] / float32[1]:.2f}")
    print(f"open_clip / flaxclip, each in its best precision: {fastest_of[0] / fastest_of[1]:.2f}")


if __name__ == "__main__":
    main()
