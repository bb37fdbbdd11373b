"""A plan for people and programs: tables, and JSON."""

import json
from collections.abc import Sequence
from typing import Any

import pydantic
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from flaxclip.data.sources import scenes
from flaxclip.planning.compiled_step import CompiledStep, Refusal
from flaxclip.planning.roofline import network_seconds
from flaxclip.planning.run_plan import RunPlan
from flaxclip.planning.search import Trial, pairs_per_second
from flaxclip.planning.storage_traffic import describe
from flaxclip.planning.topology import Topology
from flaxclip.sharding import make_mesh
from flaxclip.step_shapes import mean_pairs, pairs_until, token_budget
from flaxclip.teachers.weights import describe_teachers

_UNITS = (("Ti", 2**40), ("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10))


def plan_json(plan: RunPlan) -> str:
    """All figures of the plan, and those derived from them, as indented JSON."""
    figures = pydantic.TypeAdapter(RunPlan).dump_python(plan, mode="json")
    return json.dumps(figures | {"derived": derived(plan)}, indent=2)


def derived(plan: RunPlan) -> dict[str, Any]:
    """Step time, MFU, cost and demand on the hosts, at the bound and as expected."""
    return {
        name: {
            "step_seconds": seconds,
            "mfu": plan.mfu(seconds),
            "pairs_per_second": plan.pairs_per_step / seconds,
            "run_days": plan.run_seconds(seconds) / 86400,
            "chip_hours": plan.chip_hours(seconds),
            "host_images_per_second": plan.host_images_per_second(seconds),
            "host_cores": plan.host_images_per_second(seconds) / plan.decode_rate,
            "host_storage_bytes_per_second": plan.storage.host_bytes_per_second(
                plan.host_images_per_second(seconds)
            ),
        }
        for name, seconds in plan.seconds.items()
    }


def print_plan(plan: RunPlan, topology: Topology, console: Console) -> None:
    """The whole report of a step that fits."""
    step, config, chips = _fitting(plan), plan.config, plan.chips
    mesh = make_mesh(config.mesh, topology.devices)
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    what = plan.chip.device_kind if plan.chip else "virtual CPU devices"
    if plan.chip is not None and plan.chip.devices > 1:
        what += f" (each 1/{plan.chip.devices} of a chip, and called a chip below)"
    lines = {
        "machine": f"{plan.topology}: {chips} x {what}, {plan.hosts} host(s), mesh {axes}",
        "model": f"{plan.parameters / 1e6:,.2f} M parameters, "
        f"{plan.forward_flops_per_pair / 1e9:,.2f} GFLOPs forward a pair, "
        f"{config.compute.dtype} activations",
        "batch": f"{_batch(plan)}; "
        f"{plan.model_flops_per_step / 1e12:,.4g} TFLOPs a step (forward and backward, "
        "nothing recomputed, loss left out)",
        "memory": _memory(plan),
    }
    if teachers := describe_teachers(config, plan.model_flops_per_step):
        lines["teachers"] = teachers
    if config.data.path[0] not in scenes.PATHS:  # those are in no bucket
        lines["bucket"] = describe(plan.storage)
    for name, text in lines.items():
        console.print(f"{name:9} {text}", soft_wrap=True, highlight=False)
    if plan.lengths:
        console.print(_lengths_table(plan))
    if step.traffic:
        console.print(_traffic_table(plan))
    if plan.roofline is not None:
        console.print(_roofline_table(plan))
        console.print(_run_table(plan))


def _fitting(plan: RunPlan) -> CompiledStep:
    assert isinstance(plan.step, CompiledStep), "a step that is refused has no report"
    return plan.step


def _batch(plan: RunPlan) -> str:
    if not plan.lengths:
        return f"{plan.step_pairs:,} pairs, {plan.step_pairs / plan.chips:g} a chip"
    lengths = ", ".join(f"{length.patches:,}" for length in plan.lengths)
    return (
        f"{token_budget(plan.config):,} patches, in images of {lengths}; on average "
        f"{plan.pairs_per_step:,.0f} pairs, {plan.pairs_per_step / plan.chips:,.4g} a chip"
    )


def _of_length(plan: RunPlan) -> str:
    """Which step a table is about."""
    if not plan.lengths:
        return ""
    return f", at {plan.step_patches:,} patches, which take most"


def _lengths_table(plan: RunPlan) -> Table:
    table = Table(
        box=SIMPLE_HEAD,
        title="Steps by the length of their images, all equally often",
        title_justify="left",
    )
    for column in ("patches", "pairs", "a chip", "TFLOPs", "GiB a chip", "ms bound", "expected"):
        table.add_column(column, justify="right")
    for length in plan.lengths:
        roof = length.roofline
        table.add_row(
            f"{length.patches:,}",
            f"{length.pairs:,}",
            f"{length.pairs / plan.chips:g}",
            f"{length.model_flops / 1e12:,.4g}",
            f"{length.peak_bytes / 2**30:.2f}",
            "" if roof is None else f"{1e3 * roof.bound:.1f}",
            "" if roof is None else f"{1e3 * roof.expected:.1f}",
        )
    return table


def _memory(plan: RunPlan) -> str:
    step = _fitting(plan)
    text = (
        f"{binary(step.peak_bytes)}B a chip at the peak{_of_length(plan)}: "
        f"{binary(step.argument_bytes)}B arguments ({_arguments(plan)}), "
        f"{binary(step.peak_bytes - step.argument_bytes)}B temporaries"
    )
    if plan.chip is not None and plan.chip.hbm_bytes is not None:
        free = plan.chip.hbm_bytes - step.peak_bytes
        text += f"; fits {binary(plan.chip.hbm_bytes)}B with {binary(free)}B to spare"
    return text


def _arguments(plan: RunPlan) -> str:
    return "state, batch and teachers" if plan.config.teacher else "state and batch"


def _traffic_table(plan: RunPlan) -> Table:
    table = Table(
        box=SIMPLE_HEAD,
        title=f"Collectives of a step, one chip{_of_length(plan)}",
        title_justify="left",
    )
    table.add_column("kind")
    for column in ("over", "chips", "torus axes", "times", "puts in", "receives", "ms"):
        table.add_column(column, justify="right")
    for row in _fitting(plan).traffic:
        seconds = None if plan.chip is None else network_seconds(row, plan.chip)
        table.add_row(
            row.kind,
            row.network,
            str(row.group_size),
            str(row.torus_axes),
            str(row.exchanges),
            f"{binary(row.operand_bytes)}B",
            f"{binary(row.received_bytes)}B",
            "" if seconds is None else f"{1e3 * seconds:.3f}",
        )
    return table


def _roofline_table(plan: RunPlan) -> Table:
    step, chip, roof = _fitting(plan), plan.chip, plan.roofline
    assert chip is not None, "virtual devices have no figures"
    assert roof is not None, "virtual devices have no figures"
    table = Table(
        box=SIMPLE_HEAD,
        title=f"What limits a step, one chip{_of_length(plan)}",
        title_justify="left",
        caption=f"chip figures: {chip.source}" + _unpriced(step),
        caption_justify="left",
    )
    table.add_column("resource", no_wrap=True)
    for column in ("demand", "supply", "ms"):
        table.add_column(column, justify="right")
    received = {
        network: sum(row.received_bytes for row in step.traffic if row.network == network)
        for network in ("ICI", "DCN")
    }
    for name, demand, supply, unit, seconds in (
        ("matrix units", step.matrix_flops, chip.peak_flops, "TFLOP", roof.matrix_units),
        ("HBM", step.hbm_bytes, chip.hbm_bandwidth, "TB", roof.hbm),
        ("ICI", received["ICI"], chip.ici_bandwidth, "TB", roof.ici),
        ("DCN", received["DCN"], chip.dcn_bandwidth, "TB", roof.dcn),
    ):
        if demand:
            assert supply is not None, "`roofline` has divided by it"
            table.add_row(
                name,
                f"{demand / 1e12:.4g} {unit}",
                f"{supply / 1e12:.4g} {unit}/s",
                f"{1e3 * seconds:.2f}",
            )
    if roof.compiler is not None and step.estimated_cycles is not None and chip.clock is not None:
        table.add_row(
            "the compiler's cost model",
            f"{step.estimated_cycles / 1e6:.4g} Mcycles",
            f"{chip.clock / 1e9:.3g} GHz",
            f"{1e3 * roof.compiler:.2f}",
        )
    return table


def _unpriced(step: CompiledStep) -> str:
    if not step.unpriced_kernels:
        return ""
    return (
        f"\n{step.unpriced_kernels:,} runs of custom kernels are not in the compiler's cost model: "
        "they state no pallas.CostEstimate"
    )


def _run_table(plan: RunPlan) -> Table:
    config = plan.config
    table = Table(
        box=SIMPLE_HEAD,
        title=f"The run: {config.steps:,} steps, {pairs_until(config, config.steps):,} pairs",
        title_justify="left",
        caption="bound: by the slowest resource, if all overlap. expected: by the compiler's cost "
        "model, or the networks. Hosts decode "
        f"{plan.decode_rate:g} images a core and second.",
        caption_justify="left",
    )
    table.add_column("")
    names = (
        "ms a step", "MFU", "pairs/s", "days", "chip-hours", "images/s a host", "cores a host",
        "MB/s a host",
    )  # fmt: skip
    for column in names:
        table.add_column(column, justify="right")
    roof = plan.roofline
    assert roof is not None, "virtual devices have no figures"
    for name, figures in derived(plan).items():
        table.add_row(
            f"bound ({roof.limit})" if name == "bound" and not plan.lengths else name,
            f"{1e3 * figures['step_seconds']:.1f}",
            f"{figures['mfu']:.1%}",
            f"{figures['pairs_per_second']:,.0f}",
            f"{figures['run_days']:.3g}",
            f"{figures['chip_hours']:,.1f}",
            f"{figures['host_images_per_second']:,.0f}",
            f"{figures['host_cores']:.1f}",
            f"{figures['host_storage_bytes_per_second'] / 1e6:,.0f}",
        )
    return table


def trials_table(trials: Sequence[Trial], topology: Topology) -> Table:
    """The configurations that a search compiled, the fastest first."""
    table = Table(box=SIMPLE_HEAD, title="Search", title_justify="left")
    for column in ("fsdp", "batch", "pairs a chip", "GiB a chip", "ms a step", "pairs/s"):
        table.add_column(column, justify="right")
    for trial in trials:
        step, config = trial.step, trial.config
        seconds, rate = "does not fit", ""
        if not isinstance(step, Refusal):
            assert topology.chip is not None, "a search has a machine with figures"
            per_second = pairs_per_second(trial, topology)
            seconds = f"{1e3 * mean_pairs(config) / per_second:.1f}"
            rate = f"{per_second:,.0f}"
        table.add_row(
            str(config.mesh.fsdp),
            f"{mean_pairs(config):,.0f}",
            f"{mean_pairs(config) / len(topology.devices):g}",
            f"{trial.used_bytes / 2**30:.2f}",
            seconds,
            rate,
        )
    return table


def binary(amount: float) -> str:
    """`13.5 Gi`: three digits and a binary prefix."""
    for prefix, unit in _UNITS:
        if abs(amount) >= unit:
            return f"{amount / unit:.3g} {prefix}"
    return f"{amount:.3g} "
