"""A run on a machine: its needs and its duration."""

import dataclasses
from collections.abc import Iterable

from flaxclip.chips import Chip
from flaxclip.config import TrainConfig
from flaxclip.models.cost import model_cost
from flaxclip.planning.compiled_step import CompiledStep, Refusal, ShapedStep
from flaxclip.planning.roofline import Roofline, roofline
from flaxclip.planning.storage_traffic import StorageTraffic, storage_traffic
from flaxclip.planning.store import steps_of_all_shapes
from flaxclip.planning.topology import Topology
from flaxclip.step_shapes import pairs_until, step_shapes
from flaxclip.teachers.weights import teacher_flops
from flaxclip.train_step import choose_remat, pair_flops, settle_compute, step_flops


@dataclasses.dataclass(frozen=True)
class LengthPlan:
    """Steps of one length, at native aspect ratio."""

    patches: int
    pairs: int
    peak_bytes: int
    model_flops: int
    """Of images that fill their places, as `RunPlan.model_flops_per_step`."""
    roofline: Roofline | None
    """None for virtual devices."""


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """All figures of a plan, in bytes, FLOPs and seconds; the file that `--json` prints."""

    topology: str
    chips: int
    """JAX's devices: chips, or the halves of TPU7x chips."""
    hosts: int
    chip: Chip | None
    config: TrainConfig
    parameters: int
    forward_flops_per_pair: int
    model_flops_per_step: int
    """FLOPs of the forward and backward pass, and of teachers forward; neither recomputation nor
    the loss. If images have several lengths, the mean over steps, of images that fill them; so is
    the one before."""
    teacher_flops_per_step: int
    """The part of them that is of teachers."""
    step: CompiledStep | Refusal
    """If steps have several shapes, the one that needs the most memory."""
    step_pairs: int
    """Pairs of that step."""
    step_patches: int | None
    """Places for patches in its images; None if they are squares."""
    roofline: Roofline | None
    """Of that step. None for virtual devices, and for a step that does not fit."""
    pairs_per_step: float
    """Of any, on average."""
    lengths: tuple[LengthPlan, ...]
    """From the shortest to the longest; empty if images are squares, or a step does not fit."""
    decode_rate: float
    """Images that one core of a host decodes in a second."""
    storage: StorageTraffic

    @property
    def fits(self) -> bool:
        return isinstance(self.step, CompiledStep)

    @property
    def seconds(self) -> dict[str, float]:
        """Of a step, at the `bound` and as `expected`; the mean over the lengths of images."""
        rooflines = [length.roofline for length in self.lengths] or [self.roofline]
        known = [roofline for roofline in rooflines if roofline is not None]
        if not known:
            return {}
        return {
            "bound": sum(roofline.bound for roofline in known) / len(known),
            "expected": sum(roofline.expected for roofline in known) / len(known),
        }

    def mfu(self, step_seconds: float) -> float:
        """Model FLOPs utilisation (Chowdhery et al. 2022, appendix B)."""
        assert self.chip is not None, "virtual devices take no time"
        return self.model_flops_per_step / (self.chips * self.chip.peak_flops * step_seconds)

    def run_seconds(self, step_seconds: float) -> float:
        return self.config.steps * step_seconds

    def chip_hours(self, step_seconds: float) -> float:
        assert self.chip is not None, "virtual devices take no time"
        return self.run_seconds(step_seconds) * self.chips / self.chip.devices / 3600

    def host_images_per_second(self, step_seconds: float) -> float:
        """Images that each host must decode per second to keep its chips busy."""
        return self.pairs_per_step / self.hosts / step_seconds


def make_plan(
    config: TrainConfig, topology: Topology, decode_rate: float, pair_bytes: float
) -> RunPlan:
    """The plan of `config` on `topology`; compiles its steps unless that was done before.

    Raises:
        InputError: the mesh does not fit the devices, or the batch does not fit the mesh.
    """
    device = topology.devices[0]
    config = choose_remat(
        settle_compute(config, device, len(topology.devices)),
        device.platform,
        lambda tried: all(
            isinstance(step, CompiledStep) for _, step in steps_of_all_shapes(tried, topology)
        ),
    )
    steps = steps_of_all_shapes(config, topology)
    hardest = max(steps, key=lambda shaped: shaped.used_bytes)
    costs = {
        shape: model_cost(config.model, config.kept_patches, shape.patches)
        for shape in step_shapes(config)
    }
    pairs = sum(shape.pairs for shape in costs)
    return RunPlan(
        topology=topology.name,
        chips=len(topology.devices),
        hosts=topology.hosts,
        chip=topology.chip,
        config=config,
        parameters=next(iter(costs.values())).parameters,
        forward_flops_per_pair=sum(
            shape.pairs * cost.forward_flops for shape, cost in costs.items()
        )
        // pairs,
        model_flops_per_step=step_flops(config),
        teacher_flops_per_step=teacher_flops(config),
        step=hardest.step,
        step_pairs=hardest.shape.pairs,
        step_patches=hardest.shape.patches,
        roofline=_roofline(hardest.step, topology),
        pairs_per_step=pairs / len(costs),
        lengths=_length_plans(config, topology, steps),
        decode_rate=decode_rate,
        storage=storage_traffic(pairs_until(config, config.steps), pair_bytes),
    )


def _roofline(step: CompiledStep | Refusal, topology: Topology) -> Roofline | None:
    if isinstance(step, Refusal) or topology.chip is None:
        return None
    return roofline(step, topology.chip)


def _length_plans(
    config: TrainConfig, topology: Topology, steps: Iterable[ShapedStep]
) -> tuple[LengthPlan, ...]:
    plans: list[LengthPlan] = []
    for shape, step in steps:
        if shape.patches is None or isinstance(step, Refusal):
            return ()
        flops = shape.pairs * pair_flops(config, shape.patches)
        bounds = _roofline(step, topology)
        plans.append(LengthPlan(shape.patches, shape.pairs, step.peak_bytes, flops, bounds))
    return tuple(sorted(plans, key=lambda plan: plan.patches))
