"""The planner's command line, on virtual devices, and on the TPU compiler where it is installed."""

import dataclasses
import importlib.util
import json
import re

import pytest

from flaxclip.models.cost import model_cost
from flaxclip.plan import Command, run
from flaxclip.planning.compiled_step import CompiledStep
from flaxclip.planning.run_plan import make_plan
from flaxclip.planning.topology import open_topology
from flaxclip.planning.variants_table import variants_table
from flaxclip.run.command_line import parse
from flaxclip.sharding import MeshConfig
from tests.helpers.command_lines import refused, run_cli
from tests.helpers.tiny_run import TINY_MODEL, tiny_config


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def plan(*args, cache, **environment):
    return run_cli("flaxclip.plan", *args, cwd=cache, XDG_CACHE_HOME=str(cache), **environment)


def test_a_run_is_planned_on_virtual_devices(experiment, cache):
    flags = (experiment, "--topology", "cpu:8", "--mesh.fsdp", "2")
    result = plan(*flags, cache=cache)
    assert result.returncode == 0, result.stderr
    assert "8 x virtual CPU devices, 1 host(s), mesh data 4 x fsdp 2 x tensor 1" in result.stdout
    assert re.search(r"all-reduce\s+", result.stdout)

    result = plan(*flags, "--json", cache=cache)
    record = json.loads(result.stdout)
    cost = model_cost(TINY_MODEL)
    assert record["parameters"] == cost.parameters
    assert record["model_flops_per_step"] == 3 * 16 * cost.forward_flops
    assert record["config"]["mesh"]["fsdp"] == 2
    # Parameters and two moments in float32, of which every device has at least half.
    assert record["step"]["argument_bytes"] >= 3 * 4 * cost.parameters / 2
    assert {row["kind"] for row in record["step"]["traffic"]} >= {"all-reduce"}
    # Nobody has published what a virtual device can do.
    assert record["chip"] is None
    assert record["roofline"] is None


def test_a_run_at_native_aspect_ratio_is_planned_at_each_length(experiment, cache):
    native = ("--preprocess.resize", "native", "--data.sequence-lengths", "4", "2")
    result = plan(experiment, "--topology", "cpu:8", *native, cache=cache)
    assert result.returncode == 0, result.stderr
    assert "64 patches, in images of 2, 4; on average 24 pairs, 3 a chip" in result.stdout
    assert "Steps by the length of their images, all equally often" in result.stdout

    result = plan(experiment, "--topology", "cpu:8", *native, "--json", cache=cache)
    record = json.loads(result.stdout)
    lengths = record["lengths"]
    assert [(length["patches"], length["pairs"]) for length in lengths] == [(2, 32), (4, 16)]
    assert record["pairs_per_step"] == 24
    assert record["step"]["peak_bytes"] == max(length["peak_bytes"] for length in lengths)
    costs = [model_cost(TINY_MODEL, patches=patches).forward_flops for patches in (2, 4)]
    assert [length["model_flops"] for length in lengths] == [3 * 32 * costs[0], 3 * 16 * costs[1]]
    assert record["model_flops_per_step"] == sum(length["model_flops"] for length in lengths) / 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--topology", "v9:2x2"), "unknown topology 'v9:2x2'\n  known: v5e:2x4"),
        (("--topology", "cpu:"), "expected, for example, cpu:8"),
        (("--topology", "cpu:8", "--mesh.fsdp", "3"), "does not fit 8 devices"),
        (("--topology", "cpu:8", "--batch-size", "12"), "choose 8 or 16"),
        (("--topology", "cpu:8", "--mesh.tensor", "4"), "--mesh.tensor can be 1, 2 with"),
        (("--topology", "cpu:8", "--search", "mesh"), "name a TPU topology"),
        (("--model", "ViT-B-33"), "did you mean ViT-B-32?"),
    ],
)
def test_bad_input_is_answered_with_what_to_change(flags, message, experiment, capsys):
    arguments = [experiment, *flags]
    assert message in refused(lambda: run(parse(Command, arguments, "flaxclip.plan", None)), capsys)


def test_all_architectures_are_listed_with_their_published_cost():
    columns = [list(column.cells) for column in variants_table().columns]
    rows = {row[0]: row[1:] for row in zip(*columns, strict=True)}
    # open_clip, `docs/model_profile.csv`.
    assert rows["ViT-B-32"] == (
        "151.28", "14.78", "224/32", "77", "gelu", "shortest, OpenAI's mean", "clip",
    )  # fmt: skip
    assert rows["RN50"][:2] == ("102.01", "18.18")
    assert rows["ViT-bigG-14"][:2] == ("2,539.57", "1,065.36")
    assert rows["ViT-B-16-SigLIP"] == (
        "203.16", "46.44", "224/16", "64", "gelu_tanh", "squash, mean 0.5", "siglip",
    )  # fmt: skip


needs_tpu_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="needs the TPU compiler: pip install 'flaxclip[plan]'",
)


@needs_tpu_compiler
def test_the_tpu_compiler_compiles_the_step(monkeypatch, cache):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    topology = open_topology("v5e:2x2", slices=2)
    assert len(topology.devices) == 8
    assert topology.chip.device_kind == "TPU v5 lite"
    config = tiny_config("unused", mesh=MeshConfig(fsdp=4))
    figures = make_plan(config, topology, decode_rate=500.0, pair_bytes=40_000.0)
    assert isinstance(figures.step, CompiledStep)
    again = make_plan(config, topology, decode_rate=500.0, pair_bytes=40_000.0)
    assert again.step == figures.step  # stored
    assert figures.step.argument_bytes > 3 * 4 * figures.parameters / 4
    assert figures.step.peak_bytes < topology.chip.hbm_bytes
    between = [row for row in figures.step.traffic if row.network == "DCN"]
    within = [row for row in figures.step.traffic if row.network == "ICI"]
    # Within a slice parameters are gathered for the forward pass and again for the backward one, in
    # bfloat16, as the chip multiplies them; but for the tokens' table: they are looked up where
    # their part of it is.
    text = config.model.text
    gathered = sum(row.received_bytes for row in within if row.kind == "all-gather")
    once = 2 * (figures.parameters - text.vocab_size * text.width) * 3 / 4
    assert once < gathered < 2.1 * once
    # Between slices each chip sums its quarter of the gradients; little else is as large.
    summed = sum(row.operand_bytes for row in between if row.kind == "all-reduce")
    assert figures.parameters <= summed <= 1.2 * figures.parameters
    assert sum(row.operand_bytes for row in between) < 1.01 * summed
    assert figures.roofline.expected >= figures.roofline.compiler > figures.roofline.matrix_units


@needs_tpu_compiler
def test_the_tpu_compiler_tells_where_cycles_go(monkeypatch, cache):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    config = tiny_config("unused", mesh=MeshConfig(fsdp=4))  # compiled by the test above
    step = make_plan(
        config, open_topology("v5e:2x2", slices=2), decode_rate=500.0, pair_bytes=40_000.0
    ).step
    assert sum(row.cycles for row in step.account) == step.estimated_cycles
    assert sum(row.hbm_bytes for row in step.account) == step.hbm_bytes
    places = {(row.tower, row.part, row.phase) for row in step.account}
    for tower in ("image", "text"):
        for part in ("attention core", "norms"):
            assert {
                (tower, part, phase) for phase in ("forward", "recomputed", "backward")
            } < places
        for part in ("projections", "MLP", "embeddings"):
            assert {(tower, part, phase) for phase in ("forward", "backward")} < places
        # Nothing of these is computed again: their products are kept.
        assert (tower, "projections", "recomputed") not in places
    assert {part for tower, part, _ in places if tower is None} >= {"loss", "optimizer"}
    products = sum(row.product_cycles for row in step.account)
    assert 0 < products < step.estimated_cycles
    # The compiler names nearly all that it makes of what was traced.
    unknown = [row for row in step.account if row.part == "other"]
    assert sum(row.cycles for row in unknown) < 0.01 * step.estimated_cycles
    assert sum(row.hbm_bytes for row in unknown) < 0.01 * step.hbm_bytes


@needs_tpu_compiler
@pytest.mark.parametrize(
    ("name", "chips", "figures_of"),
    [("v4:2x2x1", 4, 4), ("v5e:2x2", 4, 4), ("v6e:2x2", 4, 4), ("v5p:2x2x1", 4, 4),
     ("tpu7x:2x2x1", 4, 8)],
)  # fmt: skip
def test_chips_of_the_tpu_compiler_have_figures(name, chips, figures_of):
    topology = open_topology(name)
    assert len(topology.devices) == figures_of == chips * topology.chip.devices
    figures = dataclasses.asdict(topology.chip)
    unpublished = {field for field, value in figures.items() if value is None}
    assert unpublished <= {"on_chip_bandwidth", *(["dcn_bandwidth"] if "v4" in name else [])}
