"""The account of a step's cycles and bytes, on programs written by hand, and as a table."""

import dataclasses
import json
import re

import pytest
from rich.console import Console

from flaxclip.chips import find_chip
from flaxclip.plan import Command, run, with_flags
from flaxclip.planning.account.account import AccountRow, make_account
from flaxclip.planning.account.memory_traffic import hbm_traffic
from flaxclip.planning.account.parts import Place, find_place
from flaxclip.planning.account.report import Account, print_account, print_comparison
from flaxclip.planning.compiled_step import estimated_cycles
from flaxclip.planning.hlo import parse_program
from flaxclip.run.command_line import parse
from tests.helpers.command_lines import refused

V5E = find_chip("TPU v5 lite")
IMAGE = "jit(train_step)/jvp(CLIP)/CLIP.encode_image/vision"
BLOCK = (
    "jit(train_step)/transpose(jvp(CLIP))/CLIP.encode_text/text/transformer/while/body/checkpoint"
)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        (f"{IMAGE}/patch_embedding/dot_general", ("embeddings", "forward", "image")),
        (f"{IMAGE}/ln_pre/reduce_sum", ("norms", "forward", "image")),
        (f"{IMAGE}/pool/attention/out/dot_general", ("embeddings", "forward", "image")),
        (f"{IMAGE}/stage2/rest/conv1/conv/conv", ("convolutions", "forward", "image")),
        (f"{IMAGE}/stage2/rest/conv1/bn/mul", ("norms", "forward", "image")),
        (f"{IMAGE}/stage2/rest/depthwise/conv", ("convolutions", "forward", "image")),
        (f"{IMAGE}/stage2/rest/ln/mul", ("norms", "forward", "image")),
        (f"{IMAGE}/stage2/rest/mlp/fc1/dot_general", ("MLP", "forward", "image")),
        (f"{BLOCK}/blocks/mlp/ln/mul", ("norms", "backward", "text")),
        (f"{IMAGE}/pool/ln/mul", ("embeddings", "forward", "image")),
        (f"{IMAGE}/stage2/while/body/dynamic_slice", ("scan's stacks", "forward", "image")),
        (f"{IMAGE}/stage2/rest/add", ("residual sums", "forward", "image")),
        (f"{BLOCK}/blocks/attention/qkv/dot_general", ("projections", "backward", "text")),
        (f"{BLOCK}/blocks/attention/mul", ("attention core", "backward", "text")),
        (f"{BLOCK}/blocks/mlp/fc1/dot_general", ("MLP", "backward", "text")),
        (f"{BLOCK}/blocks/add_any", ("residual sums", "backward", "text")),
        (
            f"{BLOCK}/rematted_computation/blocks/ln_2/sub;{IMAGE}/add",
            ("norms", "recomputed", "text"),
        ),
        (f"{BLOCK.replace('checkpoint', 'dynamic_slice')}", ("scan's stacks", "backward", "text")),
        ("jit(train_step)/jvp()/shard_map/dot_general", ("loss", "forward", None)),
        ("jit(train_step)/transpose(jvp())/mul", ("loss", "backward", None)),
        ("jit(train_step)/jit(_where)/select_n", ("optimizer", "update", None)),
        # Of a batch in parts: embedded once without gradients, and once more with them.
        (
            "jit(train_step)/while/body/CLIP/CLIP.encode_image/vision/add",
            ("embeddings", "forward", "image"),
        ),
        (
            "jit(train_step)/while/body/jvp(CLIP)/CLIP.encode_image/vision/add",
            ("embeddings", "recomputed", "image"),
        ),
        ("jit(train_step)/while/body/add", ("accumulation", "update", None)),
        (
            r"state.params[\'text\'][\'transformer\'][\'blocks\'][\'mlp\'][\'fc1\'][\'kernel\']",
            ("MLP", "forward", "text"),
        ),
        ("state.opt_state[1].mu[\\'logit_scale\\']", ("optimizer", "update", None)),
        ("batch.images", ("embeddings", "forward", "image")),
        (
            "jit(train_step)/teacher/while/body/CLIP/CLIP.encode_text/text/transformer/blocks/mlp/dot",
            ("teachers", "forward", "text"),
        ),
        (
            r"teachers[0][\'params\'][\'text\'][\'projection\'][\'kernel\']",
            ("teachers", "forward", None),
        ),
    ],
)
def test_a_name_says_what_an_operation_is_part_of(name, place):
    assert find_place(name) == Place(*place)


@pytest.mark.parametrize("name", ["", "broadcast.12", "copy"])
def test_a_name_that_says_nothing_gives_no_place(name):
    assert find_place(name) is None


def cycles(count):
    return f'backend_config={{"window_config":{{"estimated_cycles":"{count}"}}}}'


# Three times a product of an MLP, whose result a norm takes in the same fusion, and a copy; before
# them weights are converted, after them brought onto the chip, and the optimizer updates.
PROGRAM = f"""
HloModule jit_train_step, is_scheduled=true

%product (p0: bf16[8,8], p1: bf16[8,8]) -> f32[8] {{
  %p0 = bf16[8,8]{{1,0}} parameter(0)
  %p1 = bf16[8,8]{{1,0}} parameter(1)
  %dot = bf16[8,8]{{1,0}} convolution(%p0, %p1), dim_labels=bf_io->bf, metadata={{op_name="{BLOCK}/blocks/mlp/fc1/dot_general"}}
  ROOT %sum = f32[8]{{0}} reduce(%dot), metadata={{op_name="{BLOCK}/blocks/ln_2/reduce_sum"}}
}}

%joined (p2: bf16[8,8]) -> bf16[8,16] {{
  %p2 = bf16[8,8]{{1,0}} parameter(0)
  %low = bf16[] constant(-inf)
  %left = bf16[8,16]{{1,0}} pad(%p2, %low), padding=0_0x0_8
  %right = bf16[8,16]{{1,0}} pad(%p2, %low), padding=0_0x8_0
  ROOT %both = bf16[8,16]{{1,0}} maximum(%left, %right)
}}

%body (state: (s32[], bf16[8,8])) -> (s32[], bf16[8,8]) {{
  %state = (s32[], bf16[8,8]) parameter(0)
  %index = s32[] get-tuple-element(%state), index=0
  %x = bf16[8,8]{{1,0}} get-tuple-element(%state), index=1
  %fusion.1 = f32[8]{{0}} fusion(%x, %x), kind=kOutput, calls=%product, metadata={{op_name="{BLOCK}/blocks/ln_2/reduce_sum"}}, {cycles(100)}
  %fusion.2 = bf16[8,16]{{1,0}} fusion(%x), kind=kLoop, calls=%joined, metadata={{op_name="{BLOCK}/blocks/attention/stack"}}, {cycles(7)}
  ROOT %next = (s32[], bf16[8,8]) tuple(%index, %x)
}}

%condition (state.1: (s32[], bf16[8,8])) -> pred[] {{
  %state.1 = (s32[], bf16[8,8]) parameter(0)
  %counter = s32[] get-tuple-element(%state.1), index=0
  %bound = s32[] constant(3)
  ROOT %less = pred[] compare(%counter, %bound), direction=LT
}}

ENTRY %main (weights: f32[8,8]) -> f32[8,8] {{
  %weights = f32[8,8]{{1,0}} parameter(0), metadata={{op_name="state.params[\\'vision\\'][\\'projection\\'][\\'kernel\\']"}}
  %convert = bf16[8,8]{{1,0}} convert(%weights), {cycles(5)}
  %zero = s32[] constant(0)
  %start = (s32[], bf16[8,8]) tuple(%zero, %convert)
  %loop = (s32[], bf16[8,8]) while(%start), condition=%condition, body=%body, {cycles(321)}
  %copy-start = (f32[8,8]{{1,0:S(1)}}, f32[8,8]{{1,0}}, u32[]) copy-start(%weights)
  %copy-done = f32[8,8]{{1,0:S(1)}} copy-done(%copy-start)
  %update = f32[8,8]{{1,0}} multiply(%copy-done, %copy-done), metadata={{op_name="jit(train_step)/mul"}}, {cycles(11)}
  %unknown = f32[8,8]{{1,0}} custom-call(), custom_call_target="x", {cycles(2)}
  ROOT %sum.1 = f32[8,8]{{1,0}} add(%update, %unknown), metadata={{op_name="jit(train_step)/jvp()/add"}}, {cycles(1)}
}}
"""  # noqa: E501


def test_the_parts_of_an_account_add_up_to_the_whole():
    program = parse_program(PROGRAM)
    rows = make_account(program)
    found = {
        (row.tower, row.part, row.phase): (row.cycles, row.product_cycles, row.hbm_bytes)
        for row in rows
    }
    assert found == {
        # The fusion counts for its product, and three times.
        ("text", "MLP", "backward"): (300, 300, 3 * (128 + 128 + 32)),
        # Joining is no computation, though a TPU does it by a maximum.
        ("text", "copies", "backward"): (21, 0, 3 * (128 + 256)),
        ("image", "copies", "forward"): (5, 0, 256 + 128),
        # What is brought onto the chip is for its user, which then reads nothing more.
        (None, "optimizer", "update"): (11, 0, 256 + 256),
        # The custom call has no name: it belongs to its user.
        (None, "loss", "forward"): (3, 0, 256 + 3 * 256),
    }
    assert sum(row.cycles for row in rows) == estimated_cycles(program) == 340
    assert sum(row.hbm_bytes for row in rows) == hbm_traffic(program)
    assert [row.cycles for row in rows] == sorted((row.cycles for row in rows), reverse=True)


def test_an_instruction_that_an_attribute_breaks_is_read_whole():
    # As XLA writes the metadata of Pallas kernels.
    broken = 'custom_call_target="x", frontend_attributes={kernel_metadata={\n"block": "8"\n}},'
    program = parse_program(PROGRAM.replace('custom_call_target="x",', broken))
    line = program.computations["main"].instructions["unknown"]
    assert line.estimated_cycles == 2
    assert len(program.computations["main"].instructions) == 10


KERNEL = (
    'custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"body":"x",'
    '"cost_estimate":{"flops":"FLOPS","transcendentals":"4096","bytes_accessed":"1"}}},'
)


@pytest.mark.parametrize(
    ("flops", "expected"),
    [
        (0, 1.5 * 256 / V5E.hbm_bandwidth * V5E.clock + 4),  # its result is 256 bytes
        (1e9, 1.5 * 1e9 / V5E.peak_flops * V5E.clock + 4),
    ],
)
def test_a_custom_kernel_counts_by_the_cost_that_it_states(flops, expected):
    text = PROGRAM.replace('custom_call_target="x",', KERNEL.replace("FLOPS", f"{flops:.0f}"))
    text = text.replace(cycles(2), "x")  # the compiler estimates none
    (row,) = [row for row in make_account(parse_program(text), V5E) if row.part == "loss"]
    assert row.cycles == round(expected) + 1
    assert row.product_cycles == round(expected)
    unstated = parse_program(text.replace("cost_estimate", "something_else"))
    (row,) = [row for row in make_account(unstated, V5E) if row.part == "loss"]
    assert row.cycles == 1


ROWS = (
    AccountRow("image", "MLP", "forward", 6_000, 6_000, 2_000_000),
    AccountRow("image", "MLP", "backward", 2_000, 1_000, 0),
    AccountRow(None, "optimizer", "update", 2_000, 0, 2_000_000),
)


def printed(show, *accounts):
    console = Console(width=100, record=True)
    show(*accounts, console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 100
    return [re.sub(r"\s+", " ", line.strip()) for line in text.splitlines()]


def test_the_table_shows_each_part_a_pair():
    lines = printed(print_account, Account("a", 2.0, ROWS, 2**30, 0.5))
    assert "MLP 3.0 1.0 4.0 80.0% 87.5% 1.0 1.0" in lines
    assert "optimizer 1.0 20.0% 1.0" in lines
    assert "the step 3.0 1.0 5.0 100.0% 70.0% 1.0 2.0" in lines


def test_two_accounts_are_compared_a_pair():
    lines = printed(
        print_comparison,
        Account("a", 2.0, ROWS, 2**30, 0.5),
        Account("b", 1.0, ROWS[:2], 2**29, 0.25),
    )
    assert "MLP 4.0 8.0 2.00 1.0 2.0 2.00" in lines
    assert "optimizer 1.0 0.00 1.0 0.00" in lines
    assert "the step 5.0 8.0 1.60 2.0 2.0 1.00" in lines
    assert "ms a step: 500.0 -> 250.0 (0.50)" in lines


@pytest.fixture
def plan(experiment, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def plan(*flags):
        arguments = [experiment, "--topology", "cpu:8", *flags]
        run(parse(Command, arguments, "flaxclip.plan", None))
        return capsys.readouterr().out

    return plan


def test_a_plan_tells_where_bytes_go_and_is_compared_with_an_earlier_one(plan, tmp_path):
    earlier = tmp_path / "earlier.json"
    earlier.write_text(plan("--json"))
    record = json.loads(earlier.read_text())
    assert sum(row["hbm_bytes"] for row in record["step"]["account"]) == record["step"]["hbm_bytes"]
    assert re.search(r"the step +[\d.]+ +[\d.]+ +[\d.]+ +[\d.]+ *\n", plan("--account"))
    both = json.loads(plan("--compare", str(earlier), "--json"))
    assert both["before"] == {**both["after"], "title": str(earlier)}


def test_a_plan_is_compared_with_the_same_run_under_other_flags(experiment):
    command = parse(Command, [experiment, "--batch-size", "32"], "flaxclip.plan", None)
    other = with_flags(command, ("compute.remat=full", "topology=v6e:2x4"))
    assert (other.config.compute.remat, other.topology) == ("full", "v6e:2x4")
    compute = dataclasses.replace(other.config.compute, remat=command.config.compute.remat)
    assert dataclasses.replace(other.config, compute=compute) == command.config


@pytest.mark.parametrize(
    ("compare", "message"),
    [
        ("missing.json", r"(?s)no account of a step can be read in missing.json.*--json. prints"),
        (__file__, r"no account of a step can be read"),
        ("model=ViT-B-16", r"(?s)--compare cannot take 'model=ViT-B-16'.*name that file"),
    ],
)
def test_what_a_plan_cannot_be_compared_with_is_refused(compare, message, plan, capsys):
    assert re.search(message, refused(lambda: plan("--compare", compare), capsys))
