"""What the planner reads out of compiled programs, against programs whose content is known."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from flaxclip import sharding
from flaxclip.chips import find_chip
from flaxclip.data.sources.runs import RUN_BYTES
from flaxclip.errors import InputError
from flaxclip.flops import count_bfloat16_passes, count_flops
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.inputs import ImageTransform
from flaxclip.planning import search, store
from flaxclip.planning.account.memory_traffic import hbm_traffic
from flaxclip.planning.advice import refusal_explained, refusal_message
from flaxclip.planning.collectives import (
    find_collectives,
    parse_groups,
    parse_slices,
    parse_transfer_kind,
    torus_axes,
)
from flaxclip.planning.compiled_step import (
    CompiledStep,
    Refusal,
    ShapedStep,
    Traffic,
    parse_refusal,
)
from flaxclip.planning.estimate import EstimatedMemory
from flaxclip.planning.hlo import parse_program
from flaxclip.planning.roofline import roofline
from flaxclip.planning.storage_traffic import describe, storage_traffic
from flaxclip.planning.topology import Topology
from flaxclip.step_shapes import step_shapes
from flaxclip.train_step import choose_remat
from tests.helpers.tiny_run import tiny_config

P = PartitionSpec
V5E = find_chip("TPU v5 lite")
TPU7X = find_chip("TPU7x")


def make_mesh(*sizes):
    names = ("a", "b")[: len(sizes)]
    return jax.make_mesh(sizes, names, axis_types=(AxisType.Auto,) * len(sizes))


def compile_on(mesh, function, in_specs, out_specs, *shapes):
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
    compiled = jax.jit(mapped).lower(*(jax.ShapeDtypeStruct(s, "float32") for s in shapes))
    return parse_program(compiled.compile().as_text())


def test_a_sum_in_a_loop_counts_as_often_as_the_loop_runs():
    def five_sums(x):
        return jax.lax.scan(lambda x, _: (jax.lax.psum(x, "a") / 8, None), x, length=5)[0]

    program = compile_on(make_mesh(8), five_sums, P("a"), P("a"), (64, 32))
    (exchange,) = find_collectives(program)
    assert (exchange.kind, exchange.repeats) == ("all-reduce", 5)
    assert exchange.operand_bytes == 4 * 8 * 32
    assert exchange.groups == (tuple(range(8)),)
    assert exchange.received_bytes == 2 * 4 * 8 * 32 * 7 / 8


def test_each_kind_of_exchange_is_found_with_its_bytes_and_groups():
    def exchanges(x):
        gathered = jax.lax.all_gather(x, "b", tiled=True)  # [4, 16] -> [16, 16]
        scattered = jax.lax.psum_scatter(gathered, "a", tiled=True)  # -> [8, 16]
        swapped = jax.lax.all_to_all(scattered, "b", 0, 1, tiled=True)  # -> [2, 64]
        return jax.lax.ppermute(swapped, "b", [(i, (i + 1) % 4) for i in range(4)])

    program = compile_on(make_mesh(2, 4), exchanges, P(("a", "b")), P(("a", "b")), (32, 16))
    found = {exchange.kind: exchange for exchange in find_collectives(program)}
    one_row = 4 * 16
    assert {kind: exchange.operand_bytes for kind, exchange in found.items()} == {
        "all-gather": 4 * one_row,
        "reduce-scatter": 16 * one_row,
        "all-to-all": 8 * one_row,
        "collective-permute": 8 * one_row,
    }
    assert {kind: exchange.received_bytes for kind, exchange in found.items()} == {
        "all-gather": 3 * 4 * one_row,
        "reduce-scatter": 16 * one_row / 2,
        "all-to-all": 8 * one_row * 3 / 4,
        "collective-permute": 8 * one_row,
    }
    assert found["all-gather"].groups == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert found["reduce-scatter"].groups == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert (0, 1) in found["collective-permute"].groups


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}, dimensions={0}", ((0, 2), (1, 3))),
        ("replica_groups=[2,2]<=[4]", ((0, 1), (2, 3))),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x", ((0, 2), (1, 3))),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_1'}, x", ((0, 1), (2, 3))),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0'}, x", ((0, 2), (1, 3))),
        (
            "replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}, x",
            ((0, 2), (1, 3)),
        ),
        ("source_target_pairs={{0,1},{1,0}}, x", ((0, 1), (1, 0))),
    ],
)
def test_groups_of_devices_are_read_in_all_of_the_ways_that_xla_writes_them(text, groups):
    assert parse_groups(text) == groups


def test_groups_that_cannot_be_read_are_not_guessed():
    with pytest.raises(ValueError, match="no groups of devices"):
        parse_groups("replica_groups=something_new")


@pytest.mark.parametrize(
    ("target", "slices"),
    [
        ('"{1,2}x{0:3}"', (0, 1)),
        ('"{1,2,3,4}x{0:3}"', (0, 1, 2, 3)),
        ("{{100002->200000},{200002->100000}}", (0, 1)),
    ],
)
def test_slices_that_exchange_are_read_as_the_tpu_compiler_writes_them(target, slices):
    attributes = f"{{_xla_megascale_target={target},_xla_megascale_transfer_type="
    assert parse_slices(attributes) == slices
    assert parse_transfer_kind(attributes + '"ALL_REDUCE"}') == "all-reduce"
    with pytest.raises(ValueError, match="no kind of transfer"):
        parse_transfer_kind(attributes + '"SOMETHING_NEW"}')


def test_a_group_has_the_links_of_the_dimensions_that_it_extends_along():
    coords = [[x, y, 0] for x in range(2) for y in range(4)]
    program = compile_on(make_mesh(2, 4), lambda x: jax.lax.psum(x, "b"), P("b"), P(), (32, 16))
    (exchange,) = find_collectives(program)
    assert torus_axes(exchange, coords) == 1
    everyone = dataclasses.replace(exchange, groups=(tuple(range(8)),))
    assert torus_axes(everyone, coords) == 2
    some = dataclasses.replace(exchange, kind="collective-permute", groups=((0, 0), (1, 5)))
    assert torus_axes(some, coords) == 1


def test_a_loop_over_stacked_layers_reads_each_layer_once():
    layers, width = 10, 256

    def apply(x, kernels):
        return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0]

    lowered = jax.jit(apply).lower(
        jax.ShapeDtypeStruct((width, width), "float32"),
        jax.ShapeDtypeStruct((layers, width, width), "float32"),
    )
    matrix = 4 * width * width
    traffic = hbm_traffic(parse_program(lowered.compile().as_text())) / (layers * matrix)
    # At least kernel, operand and product each layer; all kernels each time would be 10 more.
    assert 3 <= traffic < 9


def test_products_count_on_all_devices_and_in_passes_of_their_precision():
    mesh = make_mesh(8)
    x = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=NamedSharding(mesh, P("a")))

    def similarities(x, y):
        return jax.shard_map(
            lambda x, y: jnp.matmul(x, y.T, precision="highest"),
            mesh=mesh, in_specs=(P("a"), P()), out_specs=P("a"),
        )(x, y)  # fmt: skip

    assert count_flops(jax.make_jaxpr(similarities)(x, x)) == 2 * 64 * 64 * 32
    assert count_bfloat16_passes(jax.make_jaxpr(similarities)(x, x)) == 6 * 2 * 64 * 64 * 32
    assert count_bfloat16_passes(jax.make_jaxpr(lambda x: x @ x.T)(x)) == 2 * 64 * 64 * 32


@pytest.mark.parametrize(
    ("message", "gib"),
    [
        ("temporaries (100.50G) exceeds available HBM (15.75G). HLO module: x", (100.5, 15.75)),
        ("Ran out of memory in memory space hbm. Used 17.50G of 15.75G hbm.", (17.5, 15.75)),
        ("total memory required (16384.00M) exceeds available HBM (15.75G)", (16, 15.75)),
        ("INVALID_ARGUMENT: something else", None),
    ],
)
def test_a_refusal_for_want_of_memory_is_told_from_other_errors(message, gib):
    refusal = parse_refusal(message)
    assert refusal == (None if gib is None else Refusal(gib[0] * 2**30, gib[1] * 2**30))


def compiled_step(**changes):
    step = CompiledStep(
        argument_bytes=2**20,
        peak_bytes=2**21,
        matrix_flops=197e9,
        hbm_bytes=819_000_000,
        estimated_cycles=None,
        traffic=(),
        account=(),
        unpriced_kernels=0,
        compile_seconds=1.0,
    )
    return dataclasses.replace(step, **changes)


def test_a_step_is_no_faster_than_its_slowest_resource():
    roof = roofline(compiled_step(), V5E)
    assert roof.matrix_units == pytest.approx(1e-3)
    assert roof.hbm == pytest.approx(1e-3)
    one_axis = Traffic("all-reduce", "ICI", 8, 1, 1, 2**20, 200e6)
    roof = roofline(compiled_step(traffic=(one_axis,)), V5E)
    assert (roof.ici, roof.bound, roof.limit) == (pytest.approx(2e-3), roof.ici, "ICI")
    within_a_chip = Traffic("all-reduce", "ICI", 2, 0, 1, 2**20, 600e6)
    assert roofline(compiled_step(traffic=(within_a_chip,)), TPU7X).ici == pytest.approx(1e-3)
    roof = roofline(compiled_step(estimated_cycles=int(3e-3 * V5E.clock)), V5E)
    assert roof.expected == pytest.approx(3e-3)


@pytest.fixture
def machine(monkeypatch):
    """Eight chips whose compiler takes 1 GiB a pair, and four times that without FSDP."""
    compiled = []

    def fake_compile(config, topology):
        compiled.append(config)
        (shape,) = step_shapes(config)
        scale = 2**30 if config.mesh.fsdp > 1 else 4 * 2**30
        peak = scale * config.batch_size / len(topology.devices)
        available = topology.chip.hbm_bytes
        if peak > available:
            return (ShapedStep(shape, Refusal(peak, available)),)
        cycles = int(V5E.clock * config.batch_size * config.mesh.fsdp)
        return (ShapedStep(shape, compiled_step(peak_bytes=int(peak), estimated_cycles=cycles)),)

    monkeypatch.setattr(search, "steps_of_all_shapes", fake_compile)
    return Topology("v5e:2x4", jax.devices(), V5E), compiled


def test_the_largest_batch_is_one_that_fits_while_its_double_does_not(machine):
    topology, compiled = machine
    trial = search.largest_batch(tiny_config("unused"), topology, say=lambda line: None)
    assert trial.config.batch_size == 8 * 2  # of 15.75 GiB, at 4 GiB a pair
    assert {config.batch_size for config in compiled} >= {8 * 2, 8 * 4}


def test_a_search_compiles_no_more_than_it_may_and_puts_the_fastest_first(machine):
    topology, compiled = machine
    lines = []
    config = tiny_config("unused")
    trials = search.search(config, topology, ["mesh", "batch"], 6, lines.append)
    assert len(compiled) == len(set(compiled)) == len(lines) <= 6
    rates = [search.pairs_per_second(trial, topology) for trial in trials]
    assert rates == sorted(rates, reverse=True)
    assert isinstance(trials[0].step, CompiledStep)


def test_a_step_that_does_not_fit_comes_with_numbers_that_should():
    topology = Topology("v5e:2x4", jax.devices(), V5E)
    config = dataclasses.replace(tiny_config("unused"), batch_size=8 * 4096, loss_form="tiled")
    message = refusal_message(config, topology, Refusal(62 * 2**30, 15.75 * 2**30))
    assert "needs 62 GiB of 15.8 GiB a chip" in message
    assert "try --batch-size 8192 (1024 pairs a chip)" in message


def test_a_run_whose_step_does_not_fit_says_the_same():
    config = dataclasses.replace(tiny_config("unused"), batch_size=8 * 4096, loss_form="tiled")
    mesh = sharding.make_mesh(config.mesh)
    with (
        pytest.raises(InputError, match=r"(?s)does not fit 8 x cpu.*try --batch-size 8192"),
        refusal_explained(config, mesh),
    ):
        # The words of the TPU compiler; a CPU never refuses.
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Used 62.00G of 15.75G hbm.")
    with pytest.raises(jax.errors.JaxRuntimeError), refusal_explained(config, mesh):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_auto_takes_the_fastest_rematerialisation_that_fits():
    def chosen(platform, *fitting, unroll=1):
        compute = ComputeConfig(remat="auto", unroll=unroll)
        fits = lambda tried: tried.compute.remat in fitting  # noqa: E731
        return choose_remat(tiny_config("unused", compute=compute), platform, fits).compute.remat

    assert chosen("gpu", "none", "names", "full") == "none"
    assert chosen("gpu", "names", "full") == "names"
    assert chosen("tpu", "none", "names", "full") == "names"
    assert chosen("tpu", "none", "names", "full", unroll=2) == "none"
    assert chosen("tpu") == "full"
    named = tiny_config("unused")
    assert choose_remat(named, "tpu", lambda _: False) is named


def test_what_was_compiled_is_not_compiled_again(tmp_path, monkeypatch):
    topology, calls = Topology("cpu:8", jax.devices(), None), []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(store, "compile_step", lambda step: calls.append(step) or compiled_step())
    config = tiny_config("unused")
    assert store.stored_or_compiled(config, topology) == compiled_step()
    elsewhere = dataclasses.replace(config, workdir="another", log_every=7)
    assert store.stored_or_compiled(elsewhere, topology) == compiled_step()
    assert len(calls) == 1
    store.stored_or_compiled(dataclasses.replace(config, batch_size=32), topology)
    assert len(calls) == 2


def test_what_a_run_asks_of_object_storage():
    traffic = storage_traffic(12_800_000_000, 40_000)
    assert traffic.bytes == 5.12e14
    assert traffic.requests == 5.12e14 / RUN_BYTES
    # Google's example: 50,000 requests for $0.02, a GB to the internet for $0.12.
    assert storage_traffic(50_000, RUN_BYTES).request_dollars == pytest.approx(0.02)
    assert storage_traffic(1000, 1e6).internet_dollars == pytest.approx(0.12)
    assert traffic.host_bytes_per_second(10_000) == 4e8
    text = describe(traffic)
    assert text.startswith("at 40 kB a pair, 512 TB in 97,656,250 requests, which cost $39.06;")


def test_a_search_at_native_aspect_ratio_varies_the_budget(monkeypatch):
    """Memory by the length that needs the most, and speed by the mean over all lengths."""
    config = tiny_config("unused", preprocess=ImageTransform("native"))
    data = dataclasses.replace(config.data, sequence_lengths=(2, 4, 8))
    config = dataclasses.replace(config, data=data)
    topology = Topology("v5e:2x4", jax.devices(), V5E)

    def fake_compile(config, _):
        """A chip has room for 8 of the longest images, and needs a second for each."""
        steps = []
        for shape in step_shapes(config):
            patches = shape.pairs * shape.patches / 8 if shape.patches == 8 else 1
            peak = int(patches * V5E.hbm_bytes / 64)
            if peak > V5E.hbm_bytes:
                return (*steps, ShapedStep(shape, Refusal(peak, V5E.hbm_bytes)))
            cycles = int(V5E.clock * shape.pairs / 8)
            step = compiled_step(peak_bytes=peak, estimated_cycles=cycles)
            steps.append(ShapedStep(shape, step))
        return tuple(steps)

    monkeypatch.setattr(search, "steps_of_all_shapes", fake_compile)
    trials = search.search(config, topology, ["batch"], 6, lambda line: None)
    assert {trial.config.batch_size for trial in trials} == {16}
    budgets = [trial.config.data.token_budget for trial in trials]
    assert len(set(budgets)) == len(budgets) > 1
    fitting = [trial for trial in trials if isinstance(trial.step, CompiledStep)]
    assert max(trial.config.data.token_budget for trial in fitting) <= 8 * 8 * 8
    for trial in fitting:
        assert trial.pairs_per_second(V5E) == pytest.approx(8)  # of each length, and so of all
        assert trial.used_bytes == max(step.peak_bytes for _, step in trial.steps)
        assert search.describe(trial.config, topology).startswith("--mesh.fsdp 1")
        assert f"--data.token-budget {trial.config.data.token_budget}" in search.describe(
            trial.config, topology
        )


def test_the_smallest_budget_tried_has_room_for_the_longest_images(monkeypatch):
    config = tiny_config("unused", preprocess=ImageTransform("native"))
    data = dataclasses.replace(config.data, sequence_lengths=(2, 16))
    config = dataclasses.replace(config, batch_size=32, data=data)
    topology, tried = Topology("v5e:2x4", jax.devices(), V5E), []

    def refuse(config, _):
        tried.append(config.data.token_budget)
        return tuple(ShapedStep(x, Refusal(2**60, V5E.hbm_bytes)) for x in step_shapes(config))

    monkeypatch.setattr(search, "steps_of_all_shapes", refuse)
    monkeypatch.setattr(search, "estimated_memory", lambda *_: EstimatedMemory(2.0**60, 1.0))
    assert search.largest_batch(config, topology, lambda line: None) is None
    assert min(tried) == 16 * 8
    divisor = dataclasses.replace(
        config, batch_divisor=2**17, data=dataclasses.replace(data, token_budget=2**30)
    )
    tried.clear()
    assert search.largest_batch(divisor, topology, lambda line: None) is None
    assert not tried  # even 8,192 pairs a chip are too few


def test_advice_for_a_step_at_native_aspect_ratio_is_a_smaller_budget():
    topology = Topology("v5e:2x4", jax.devices(), V5E)
    config = tiny_config("unused", preprocess=ImageTransform("native"), loss_form="tiled")
    data = dataclasses.replace(config.data, sequence_lengths=(2, 4), token_budget=8 * 4096 * 4)
    message = refusal_message(
        dataclasses.replace(config, data=data), topology, Refusal(62 * 2**30, 15.75 * 2**30)
    )
    assert "try --data.token-budget" in message
    assert "--batch-size" not in message
