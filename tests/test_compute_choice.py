"""The settings of computation that a run leaves open, and what is chosen for them."""

import jax
import pytest

from flaxclip.models.clip import CLIPConfig
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.modified_resnet import ResNetConfig
from flaxclip.optim import make_optimizer
from flaxclip.planning.compute_choice import choose_compute
from flaxclip.planning.estimate import estimated_memory
from flaxclip.planning.topology import Topology
from flaxclip.sharding import make_mesh
from flaxclip.train_state import abstract_train_state
from flaxclip.train_step import compile_train_step, settle_compute
from tests.helpers.tiny_run import TINY_MODEL, tiny_config


@pytest.mark.parametrize(
    ("given", "platform", "devices", "unroll", "remat"),
    [
        (ComputeConfig(), "cpu", 1, 4, "auto"),
        (ComputeConfig(), "cpu", 8, 1, "names"),
        (ComputeConfig(), "gpu", 1, 1, "names"),
        (ComputeConfig(), "tpu", 256, 1, "names"),
        # Unrolled for nothing, if blocks recompute; scanned, keeping everything is slower.
        (ComputeConfig(remat="full"), "cpu", 1, 1, "full"),
        (ComputeConfig(unroll=2), "cpu", 1, 2, "names"),
        (ComputeConfig(unroll=4), "cpu", 1, 4, "auto"),
        (ComputeConfig(remat="none"), "cpu", 1, 4, "none"),
        (ComputeConfig(remat="none"), "gpu", 1, 1, "none"),
        (ComputeConfig(unroll=12), "gpu", 1, 12, "names"),
    ],
)
def test_what_is_left_open_is_unrolled_and_kept_on_a_single_cpu(
    given, platform, devices, unroll, remat
):
    settled = given.for_training(platform, devices, blocks=4)
    assert settled == ComputeConfig(unroll=unroll, remat=remat)


def test_a_resnet_stays_scanned():
    model = CLIPConfig(ResNetConfig(32, 8, (1, 2, 1, 1)), TINY_MODEL.text, 16)
    settled = settle_compute(tiny_config("unused", model=model), jax.devices()[0], 1)
    assert settled.compute == ComputeConfig(unroll=1, remat="names")


def test_a_cpu_keeps_all_activations_that_fit_its_memory(capsys):
    def chosen(devices, batch_size, compute=ComputeConfig()):
        config = tiny_config("unused", batch_size=batch_size, compute=compute)
        mesh = make_mesh(config.mesh, jax.devices()[:devices])
        compute = choose_compute(config, *make_optimizer(config.optim, config.steps), mesh).compute
        return compute.unroll, compute.remat, capsys.readouterr().out

    said = "compute  chosen for this CPU: --compute.unroll 2, --compute.remat "
    assert chosen(1, 16) == (2, "none", f"{said}none\n")
    assert chosen(1, 2**30) == (2, "full", f"{said}full\n")
    # As everywhere else.
    open_fields = "--compute.unroll 1, --compute.remat names"
    assert chosen(8, 16) == (1, "names", f"compute  chosen for this CPU: {open_fields}\n")
    assert chosen(1, 2**30, ComputeConfig(unroll=1, remat="names")) == (1, "names", "")


def test_the_memory_that_a_cpu_must_have_is_about_what_its_step_takes():
    config = tiny_config("unused", batch_size=512, compute=ComputeConfig(unroll=2, remat="none"))
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    tx, schedule = make_optimizer(config.optim, config.steps)
    with jax.set_mesh(mesh):
        state = abstract_train_state(config.model, tx, mesh)
        step = compile_train_step(config, tx, schedule, mesh, state)
    memory = step.memory_analysis()  # on a CPU its peak leaves the temporaries out
    used = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    estimated = estimated_memory(config, Topology("cpu:1", jax.devices()[:1], None)).total
    assert 0.5 * used < estimated < 2 * used
