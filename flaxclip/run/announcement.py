"""What a run says of itself before its steps, and where these find no memory."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import jax
from jax.sharding import Mesh

from flaxclip.config import TrainConfig
from flaxclip.data.order import describe_storage_order, repeated_in_batches
from flaxclip.data.sources.source import Source
from flaxclip.errors import InputError
from flaxclip.fine_tuning.lora import describe_lora
from flaxclip.losses.pairs import choose_implementation
from flaxclip.models.cost import model_cost
from flaxclip.step_shapes import (
    StepShape,
    longer_than_learned,
    pairs_until,
    step_shapes,
    token_budget,
    usual_pairs,
)
from flaxclip.teachers.weights import describe_teachers
from flaxclip.train_state import TrainState, bytes_per_device
from flaxclip.train_step import step_flops
from flaxclip.xla_errors import is_out_of_memory


def announce(
    config: TrainConfig, mesh: Mesh, source: Source, state: TrainState, start_step: int
) -> None:
    """Print a summary of the run before anything slow happens; `state` may be abstract."""
    if jax.process_index() != 0:
        return
    c, optim = config.model, config.optim
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    seen = pairs_until(config, config.steps)
    shapes = step_shapes(config)
    largest = max(shape.pairs for shape in shapes)
    flops = step_flops(config)
    every = f"every {config.checkpoint.every_steps:,} steps"
    if config.checkpoint.every_minutes is not None:
        every += f" and every {config.checkpoint.every_minutes:g} minutes"
    batches = "; ".join(
        f"{shape}, {choose_implementation(config.loss_form, shape.pairs, mesh.size)}"
        for shape in shapes
    )
    parts = "" if config.accumulate == 1 else f", embedded in {config.accumulate} parts"
    average = " on average" if len(shapes) > 1 else ""
    native = "" if config.lengths is None else ", images at their own aspect ratio"
    start = f"at step {start_step:,}, where its last checkpoint is" if start_step else "at step 0"
    if start_step >= config.steps:
        start = f"not at all: step {start_step:,} of {config.steps:,}: this run is finished"
    order = describe_storage_order(source, config.data.order, usual_pairs(config))
    lines = {
        "model": f"{model_cost(c).parameters / 1e6:.1f} M parameters, "
        f"{c.vision.image_size} px in patches of {c.vision.patch_size}{native}, "
        f"image {c.vision.layers} x {c.vision.width}, text {c.text.layers} x {c.text.width}, "
        f"{config.compute.dtype} activations",
        "data": f"{config.data.corpora}: {len(source):,} pairs, "
        f"{seen:,} seen in the run ({seen / len(source):.3g} epochs)",
        "order": "; ".join(order) or None,
        "batch": f"{batches}; {config.loss} loss over all of them{parts}",
        "teachers": describe_teachers(config, flops),
        "optim": f"{optim.optimizer}, rate {optim.peak_lr:g} after {optim.warmup_steps:,} steps, "
        f"then {optim.schedule}; weight decay {optim.weight_decay:g}",
        "lora": config.adapters and describe_lora(config.adapters, state.params),
        "devices": f"{mesh.size} x {jax.devices()[0].device_kind}, "
        f"{jax.process_count()} host(s), mesh {axes}",
        "memory": f"{_mebibytes(bytes_per_device(state))} of state a device{_memory_limit()}, "
        "activations beside it",
        "work": f"{config.steps:,} steps of {flops / 1e12:.3g} TFLOP{average}, "
        f"{config.steps * flops / 1e18:.3g} EFLOP in all; saved {every}",
        "workdir": config.workdir,
        "start": start,
    }
    for name, text in lines.items():
        if text is not None:
            print(f"{name:8} {text}", flush=True)
    too_long = longer_than_learned(config)
    for text in [*repeated_in_batches(source, largest), *([too_long] if too_long else [])]:
        print(f"warning  {text}", flush=True)


def compiling(shapes: Sequence[StepShape]) -> str:
    """A line for the terminal: what is compiled for steps of these shapes."""
    if len(shapes) == 1:
        return "compiling the training step"
    lengths = ", ".join(f"{shape.patches:,}" for shape in shapes)
    return f"compiling the training step for {len(shapes)} lengths of images: {lengths} patches"


def _mebibytes(size: float) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _memory_limit() -> str:
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return "" if limit is None else f" of {_mebibytes(limit)}"


def peak_memory(stats: Mapping[str, int] | None) -> str | None:
    """Peak memory of a device, from its `memory_stats()`; None if it keeps none."""
    if not stats or "peak_bytes_in_use" not in stats:
        return None
    text = f"memory of a device at the peak: {_mebibytes(stats['peak_bytes_in_use'])}"
    return text + (f" of {_mebibytes(stats['bytes_limit'])}" if "bytes_limit" in stats else "")


@contextlib.contextmanager
def explain_out_of_memory(config: TrainConfig) -> Iterator[None]:
    """Turn XLA's error about too little memory into an `InputError` with remedies."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        flag = "--batch-size"
        what = f"the devices' memory is too small for batch size {config.batch_size:,}"
        if config.lengths is not None:
            flag = "--data.token-budget"
            what = f"the devices' memory is too small for {token_budget(config):,} patches a step"
        raise InputError(
            f"{what}\n"
            f"{str(error).splitlines()[0]}\n"
            f"in order of cost: --compute.remat full (now {config.compute.remat or 'names'}), "
            f"--accumulate {2 * config.accumulate}, a larger --mesh.fsdp (now {config.mesh.fsdp}), "
            f"or a smaller {flag}; python -m flaxclip.plan says beforehand what fits"
        ) from error
