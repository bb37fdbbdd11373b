"""A run on a machine: its needs and its duration."""

import dataclasses

from flaxclip.chips import Chip
from flaxclip.config import TrainConfig
from flaxclip.models.cost import model_cost
from flaxclip.planning.compiled_step import CompiledStep, Refusal
from flaxclip.planning.roofline import Roofline, roofline
from flaxclip.planning.storage_traffic import StorageTraffic, storage_traffic
from flaxclip.planning.store import stored_or_compiled
from flaxclip.planning.topology import Topology
from flaxclip.train_step import choose_remat, settle_compute, step_flops


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
    """FLOPs of the forward and backward pass; neither recomputation nor the loss."""
    step: CompiledStep | Refusal
    roofline: Roofline | None
    """None for virtual devices, and for a step that does not fit."""
    decode_rate: float
    """Images that one core of a host decodes in a second."""
    storage: StorageTraffic

    @property
    def fits(self) -> bool:
        return isinstance(self.step, CompiledStep)

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
        return self.config.batch_size / self.hosts / step_seconds


def make_plan(
    config: TrainConfig, topology: Topology, decode_rate: float, pair_bytes: float
) -> RunPlan:
    """The plan of `config` on `topology`; compiles its step unless that was done before.

    Raises:
        InputError: the mesh does not fit the devices, or the batch does not fit the mesh.
    """
    platform = topology.devices[0].platform
    config = choose_remat(
        settle_compute(config, platform, len(topology.devices)),
        platform,
        lambda tried: isinstance(stored_or_compiled(tried, topology), CompiledStep),
    )
    step = stored_or_compiled(config, topology)
    cost = model_cost(config.model, config.kept_patches)
    bounds = None
    if isinstance(step, CompiledStep) and topology.chip is not None:
        bounds = roofline(step, topology.chip)
    return RunPlan(
        topology=topology.name,
        chips=len(topology.devices),
        hosts=topology.hosts,
        chip=topology.chip,
        config=config,
        parameters=cost.parameters,
        forward_flops_per_pair=cost.forward_flops,
        model_flops_per_step=step_flops(config),
        step=step,
        roofline=bounds,
        decode_rate=decode_rate,
        storage=storage_traffic(config.steps * config.batch_size, pair_bytes),
    )
