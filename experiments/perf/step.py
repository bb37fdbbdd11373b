"""Time of a training step beside open_clip's: the same model, batch and optimizer, on one device.

    python -m venv peer && peer/bin/pip install torch==2.14.1 torchvision==0.29.1 open_clip_torch
    python experiments/perf/step.py --peer-python peer/bin/python
    python experiments/perf/step.py --peer-python peer/bin/python --device cuda --batch-size 1024 \
        --precision bfloat16 --remat none --unroll 12 \
        --side flaxclip open_clip 'open_clip --torchcompile'
    python experiments/perf/step.py --peer-python peer/bin/python --precision float32 \
        --model experiments/perf/small_clip.json --batch-size 256      14 million parameters

Each side runs in processes of its own, in turn, and counts its fastest steps. Rates are model FLOPs
(recomputation not counted) beside the fastest large matrix product of the same process.
Nothing else should run: two threads on two busy cores wait for each other.
"""

import argparse
import collections
import contextlib
import functools
import itertools
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


MATMUL_SIZE = {"cpu": 2048, "cuda": 8192}
# Training waits for no single step; on a GPU, waiting for each would be a part of its time.
STEPS_AT_A_TIME = {"cpu": 1, "cuda": 10}


def fastest(run: Callable[[], object], repetitions: int) -> float:
    """Seconds of the fastest of several calls, after one that warms up.

    Of fewer than `repetitions` where they take minutes, as a bfloat16 product of PyTorch's does on
    CPUs that have no instructions for it.
    """
    run()
    began, seconds = time.perf_counter(), []
    while len(seconds) < repetitions and (not seconds or time.perf_counter() - began < 60):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def flaxclip_step(args: argparse.Namespace, precision: str) -> dict[str, Any]:
    """Our step's seconds, its model FLOPs, and what a matrix product reaches, in FLOP/s."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from flaxclip.compile_cache import keep_compiled_programs
    from flaxclip.config import TrainConfig
    from flaxclip.data.batch import Batch
    from flaxclip.interop.open_clip.read_config import read_config
    from flaxclip.models.compute import ComputeConfig
    from flaxclip.models.variants import VARIANTS
    from flaxclip.optim import OptimConfig, make_optimizer
    from flaxclip.planning.compute_choice import choose_compute
    from flaxclip.sharding import MeshConfig, batch_sharding, make_mesh
    from flaxclip.train_state import init_train_state
    from flaxclip.train_step import make_train_step, step_flops

    keep_compiled_programs()
    batch_size, at_a_time = args.batch_size, STEPS_AT_A_TIME[args.device]
    is_file = args.model.endswith(".json")
    config = (read_config(Path(args.model)) if is_file else VARIANTS[args.model]).model
    compute = ComputeConfig(dtype=precision, remat=args.remat, unroll=args.unroll)
    mesh = make_mesh(MeshConfig())
    tx, schedule = make_optimizer(OptimConfig(), steps=10_000)
    rng = np.random.default_rng(0)
    side, length = config.vision.image_size, config.text.context_length
    batch = Batch(
        rng.integers(0, 256, (batch_size, side, side, 3), np.uint8),
        rng.integers(1, config.text.vocab_size, (batch_size, length), np.int32),
    )
    run_config = TrainConfig("", 1, batch_size, model=config, compute=compute)
    with jax.set_mesh(mesh):
        run_config = choose_compute(run_config, tx, schedule, mesh)
        state = init_train_state(jax.random.key(0), config, tx, mesh)
        batch = jax.device_put(batch, batch_sharding(mesh))
        step = make_train_step(run_config, tx, schedule, mesh, state)
        step = step.lower(state, batch).compile()

        def run() -> None:
            nonlocal state
            for _ in range(at_a_time):
                state, metrics = step(state, batch)
            jax.block_until_ready((state, metrics))

        seconds = fastest(run, args.steps) / at_a_time
        # A GPU's graphs are one event each, without the instructions in them.
        profile = profile_by_kind(run, step.as_text()) if args.device == "cpu" else {}
    device = jax.devices()[0]
    size = MATMUL_SIZE[args.device]
    x = jax.random.normal(jax.random.key(0), (size, size), precision)
    product = jax.jit(jnp.matmul)
    matmul = fastest(lambda: product(x, x).block_until_ready(), 20)
    return {
        "seconds": seconds,
        "flops": step_flops(run_config),
        "matmul_flops_per_second": 2 * size**3 / matmul,
        "profile": profile,
        "device": device.device_kind,
        "peak_bytes": (device.memory_stats() or {}).get("peak_bytes_in_use"),
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
    """The kind of work an instruction does, and the part of the model it is for."""
    opcodes, todo = set(), [line]
    while todo:
        current = todo.pop()
        opcodes.add(current.opcode)
        if current.opcode == "fusion":
            todo += program.computations[current.called("calls")].instructions.values()
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


def open_clip_step(args: argparse.Namespace, precision: str, compiled: bool) -> dict[str, Any]:
    """The same update by open_clip; bfloat16 is `torch.autocast`, its `--precision amp_bf16`."""
    import open_clip
    import torch

    # As `open_clip_train.main` does.
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    if args.model.endswith(".json"):
        settings = json.loads(Path(args.model).read_text())["model_cfg"]
        clip = open_clip.CLIP(**settings).to(args.device)
    else:
        clip = open_clip.create_model(args.model, device=args.device)
    optimizer = torch.optim.AdamW(
        clip.parameters(), lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2
    )
    loss = open_clip.ClipLoss()
    images = torch.randn(args.batch_size, 3, *clip.visual.image_size, device=args.device)
    shape = args.batch_size, clip.context_length
    tokens = torch.randint(1, clip.vocab_size, shape, device=args.device)
    encode = torch.compile(clip) if compiled else clip

    def step() -> None:
        optimizer.zero_grad()
        with (
            torch.autocast(args.device, torch.bfloat16)
            if precision == "bfloat16"
            else contextlib.nullcontext()
        ):
            total = loss(*encode(images, tokens))
        total.backward()
        optimizer.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(0, 4.6052)

    on_gpu, at_a_time = args.device == "cuda", STEPS_AT_A_TIME[args.device]

    def run(work: Callable[[], object], times: int) -> None:
        for _ in range(times):
            work()
        if on_gpu:
            torch.cuda.synchronize()

    seconds = fastest(lambda: run(step, at_a_time), args.steps) / at_a_time
    peak = torch.cuda.max_memory_allocated() if on_gpu else None
    size = MATMUL_SIZE[args.device]
    x = torch.randn(size, size, dtype=getattr(torch, precision), device=args.device)
    matmul = fastest(lambda: run(lambda: x @ x, 1), 20)
    return {
        "seconds": seconds,
        "matmul_flops_per_second": 2 * size**3 / matmul,
        "peak_bytes": peak,
    }


SIDES: dict[str, Callable[[argparse.Namespace, str], dict[str, Any]]] = {
    "flaxclip": flaxclip_step,
    "open_clip": functools.partial(open_clip_step, compiled=False),
    "open_clip --torchcompile": functools.partial(open_clip_step, compiled=True),
}


def main() -> None:
    """Alternate the sides, then print seconds, rates and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", help="interpreter of an environment with open_clip")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--model",
        default="ViT-B-32-quickgelu",
        help="a name both sides know, or an open_clip_config.json",
    )
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--precision", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--remat", help="flaxclip's --compute.remat; by default its own choice")
    parser.add_argument("--unroll", type=int, help="flaxclip's --compute.unroll; likewise")
    parser.add_argument("--side", nargs="+", choices=SIDES, default=["flaxclip", "open_clip"])
    parser.add_argument("--steps", type=int, default=4, help="measurements in a process")
    parser.add_argument("--rounds", type=int, default=2, help="processes for each measurement")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(SIDES[args.side[0]](args, args.precision[0])))
        return
    if not args.peer_python:
        parser.error("--peer-python is needed: an interpreter that has open_clip")
    if "flaxclip" not in args.side:
        parser.error("--side needs flaxclip, which the others are compared with")

    best: dict[tuple[str, str], dict[str, Any]] = {}
    for _ in range(args.rounds):
        for key in itertools.product(args.side, args.precision):
            found = measure(args, *key)
            if key not in best or found["seconds"] < best[key]["seconds"]:
                best[key] = found
    report(args, best)


def measure(args: argparse.Namespace, side: str, precision: str) -> dict[str, Any]:
    """One measurement in a process of its own."""
    interpreter = sys.executable if side == "flaxclip" else args.peer_python
    command = [interpreter, __file__, "--measure", "--side", side, "--precision", precision]
    for name in ("model", "batch_size", "steps", "device", "remat", "unroll"):
        if getattr(args, name) is not None:
            command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    output = subprocess.check_output(command, env=os.environ | MALLOC, text=True)
    return json.loads(output.splitlines()[-1])


def report(args: argparse.Namespace, best: dict[tuple[str, str], dict[str, Any]]) -> None:
    """Print what was found: a line a measurement, then ratios and where our time goes."""
    ours = next(found for (side, _), found in best.items() if side == "flaxclip")
    flops, size = ours["flops"], MATMUL_SIZE[args.device]
    print(
        f"{args.model}, batch {args.batch_size} on {ours['device']}, "
        f"{flops / 1e9:,.0f} model GFLOP a step"
    )
    for (side, precision), found in best.items():
        rate, matmul = flops / found["seconds"], found["matmul_flops_per_second"]
        memory = f", {found['peak_bytes'] / 2**30:.1f} GiB" if found["peak_bytes"] else ""
        print(
            f"{side:25}{precision:10}{found['seconds']:8.3f} s a step"
            f"{args.batch_size / found['seconds']:8,.0f} pairs/s{rate / 1e9:9,.0f} GFLOP/s, "
            f"{rate / matmul:4.0%} of its {size}-matmul's {matmul / 1e9:,.0f}{memory}"
        )
    for side in args.side:
        if side == "flaxclip":
            continue
        for precision in args.precision:
            ratio = best[side, precision]["seconds"] / best["flaxclip", precision]["seconds"]
            print(f"{side} / flaxclip, {precision}: {ratio:.2f}")
        theirs, own = (
            min(best[name, precision]["seconds"] for precision in args.precision)
            for name in (side, "flaxclip")
        )
        print(f"{side} / flaxclip, each in its best precision: {theirs / own:.2f}")
    for (side, precision), found in best.items():
        if found.get("profile"):
            shares = ", ".join(f"{kind} {share:.0%}" for kind, share in found["profile"].items())
            print(f"{side} {precision}, time by kind of instruction: {shares}")


if __name__ == "__main__":
    main()
