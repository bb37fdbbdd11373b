"""Low-rank fine-tuning: only the pairs learn, and what is exported is what has been trained."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import flaxclip
from flaxclip.checkpoint.layout import CHECKPOINTS, save_variables
from flaxclip.checkpoint.restore import restore_latest
from flaxclip.errors import InputError
from flaxclip.fine_tuning.lora import (
    LoRA,
    adapted_kernels,
    check_lora,
    merged,
    with_pairs,
)
from flaxclip.fine_tuning.parameter_rules import map_names
from flaxclip.interop.__main__ import Convert, convert
from flaxclip.interop.export import export
from flaxclip.interop.foreign import find_foreign
from flaxclip.interop.open_clip.names import open_clip_table
from flaxclip.interop.peft.adapter_config import read_adapter_config
from flaxclip.interop.peft.write_adapter import adapter_tensors, write_adapter
from flaxclip.models.clip import CLIP, abstract_variables, init_variables
from flaxclip.models.spec import ModelSpec
from flaxclip.models.variants import VARIANTS
from flaxclip.optim import make_optimizer
from flaxclip.sharding import MeshConfig, make_mesh
from flaxclip.train import train
from flaxclip.train_state import abstract_train_state, init_train_state
from flaxclip.train_step import make_train_step, step_flops
from flaxclip.weights import TrainedPairs, Weights
from tests.helpers import ten_steps
from tests.helpers.command_lines import run_cli
from tests.helpers.small_models import (
    GELU,
    SIGLIP,
    as_transformers,
    variables_of,
    with_tokenizer,
)
from tests.helpers.tiny_run import EXPERIMENT, TINY_MODEL, tiny_config

SPEC = ModelSpec(TINY_MODEL)
TEXT = LoRA(("^text/",), 4, 8.0)


def flat(tree):
    return {name: np.asarray(x) for name, x in flatten_dict(tree, sep="/").items()}


def random_pairs(lora, params):
    """Pairs of which neither is zero."""
    tree = with_pairs(lora, params, jax.random.key(0))
    rng = np.random.default_rng(0)
    return map_names(
        lambda name, x: (
            jnp.asarray(rng.standard_normal(x.shape) / 4, jnp.float32)
            if name.endswith(("lora_a", "lora_b"))
            else x
        ),
        tree,
    )


@pytest.mark.parametrize("spec", [SPEC, SIGLIP], ids=["clip", "siglip"])
def test_pairs_begin_as_in_peft_one_for_each_layer(spec):
    params = variables_of(spec)["params"]
    lora = LoRA(("",), 4, 8.0)
    tree = flat(with_pairs(lora, params, jax.random.key(0)))
    kernels = adapted_kernels(lora, params)
    assert kernels.keys() == {name for name in flat(params) if name.endswith("/kernel")}
    for name, (layers, inputs, outputs) in kernels.items():
        a, b = tree[f"{name[:-6]}lora_a"], tree[f"{name[:-6]}lora_b"]
        assert a.shape == (*layers, inputs, 4)
        assert b.shape == (*layers, 4, outputs)
        assert not b.any()
        bound = inputs**-0.5
        assert 0.9 * bound < np.abs(a).max() <= bound
        assert len(np.unique(a)) > 0.99 * a.size  # no two layers begin alike
        assert np.prod(layers, dtype=int) * inputs * outputs == params_at(params, name).size
    assert kernels["text/transformer/blocks/attention/qkv/kernel"].layers == (2,)
    for name, value in flat(merged(lora, with_pairs(lora, params, jax.random.key(0)))).items():
        np.testing.assert_array_equal(value, params_at(params, name))


def params_at(params, name):
    for part in name.split("/"):
        params = params[part]
    return params


def test_a_sum_is_what_inputs_times_both_gives():
    """x (W + s A B) = x W + s (x A) B, for each kind of kernel, by its inputs and outputs."""
    params = variables_of(SPEC)["params"]
    lora = LoRA(("",), 3, 6.0)
    tree = random_pairs(lora, params)
    sums = flat(merged(lora, tree))
    rng = np.random.default_rng(1)
    for kernel, inputs, outputs in (
        ("vision/transformer/blocks/attention/qkv/kernel", "w", "h t k"),
        ("vision/transformer/blocks/attention/out/kernel", "h k", "w"),
        ("text/transformer/blocks/mlp/fc2/kernel", "w", "m"),
        ("text/projection/kernel", "w", "e"),
    ):
        inputs, outputs = inputs.replace(" ", ""), outputs.replace(" ", "")
        w = params_at(params, kernel)
        layer = "l" if "blocks" in kernel else ""
        a, b = (params_at(tree, f"{kernel[:-6]}lora_{c}") for c in "ab")
        x = rng.standard_normal(w.shape[len(layer) : len(layer) + len(inputs)])
        product = f"{inputs},{layer}{inputs}{outputs}->{layer}{outputs}"
        direct = np.einsum(product, x, w, dtype=np.float64)
        low_rank = x.ravel() @ np.asarray(a, np.float64) @ np.asarray(b, np.float64)
        if layer:
            low_rank = np.stack([x.ravel() @ np.float64(a[i]) @ np.float64(b[i]) for i in (0, 1)])
        expected = direct + 2 * low_rank.reshape(direct.shape)
        found = np.einsum(product, x, sums[kernel], dtype=np.float64)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_every_kernel_of_a_transformer_has_a_rule_and_no_convolution_has():
    for name in ("ViT-B-32", "ViT-B-16-SigLIP", "LiT-B16B", "RN50"):
        params = abstract_variables(VARIANTS[name].model)["params"]
        kernels = [n for n in flatten_dict(params, sep="/") if n.endswith("/kernel")]
        without = [n for n in kernels if n not in adapted_kernels(LoRA(("",), 1, 1.0), params)]
        assert all("/conv/" in n for n in without), without
        assert len(without) == (0 if name != "RN50" else len([n for n in kernels if "/conv/" in n]))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora") / "base"
    save_variables(folder, SPEC._asdict(), initial())
    return folder


@functools.cache
def initial():
    return jax.jit(init_variables, static_argnums=1)(jax.random.key(3), TINY_MODEL)


def configured(base, workdir, **changes):
    changes = {"lora": ("^text/", "vision/.*qkv"), "lora_rank": 4, "lora_alpha": 8.0} | changes
    return tiny_config(workdir, init_from=str(base), **SPEC._asdict(), **changes)


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("lora") / "run"
    train(configured(base, workdir))
    return workdir


def saved_tree(workdir, config):
    mesh = make_mesh(MeshConfig())
    tx, _ = make_optimizer(config.optim, config.steps)
    abstract = abstract_train_state(config.model, tx, mesh, False, config.adapters)
    return restore_latest(workdir, abstract.trees).trees


def test_a_run_leaves_its_weights_as_they_were_and_learns_beside_them(base, finished):
    config = configured(base, finished)
    trees = saved_tree(finished, config)
    before, after = flat(initial()["params"]), flat(trees["params"])
    assert after.keys() - before.keys() == {
        f"{name[:-6]}lora_{c}" for name in adapted_kernels(config.adapters, after_shapes(config))
        for c in "ab"
    }  # fmt: skip
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)
    assert all(value.any() for name, value in after.items() if name.endswith("lora_b"))
    moments = sum(x.size for x in jax.tree.leaves(trees["training"]["opt_state"]))
    pairs = sum(x.size for name, x in after.items() if name.endswith(("lora_a", "lora_b")))
    assert 2 * pairs <= moments <= 2 * pairs + 10

    model = flaxclip.load(finished)
    expected = flat(merged(config.adapters, trees["params"]))
    assert flat(model.params).keys() == before.keys()
    for name, value in flat(model.params).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-6, err_msg=name)
        is_adapted = name in adapted_kernels(config.adapters, after_shapes(config))
        assert np.array_equal(value, before[name]) != is_adapted, name
    zimg = model.encode_image([np.full((16, 16, 3), 128, np.uint8)])
    variables = {"params": merged(config.adapters, trees["params"])}
    images = jnp.full((1, 16, 16, 3), 128, jnp.uint8)
    theirs = CLIP(SPEC.model).apply(variables, images, method="encode_image")
    np.testing.assert_allclose(zimg, theirs, atol=1e-6)


def after_shapes(config):
    return abstract_variables(config.model)["params"]


def test_a_run_that_was_stopped_goes_on_bit_for_bit(base, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / CHECKPOINTS / "8")
    config = configured(base, tmp_path / "run")
    train(config)
    trees = [saved_tree(workdir, config) for workdir in (tmp_path / "run", finished)]
    jax.tree.map(np.testing.assert_array_equal, *trees)
    with pytest.raises(InputError, match="lora_rank: 4 -> 8"):
        train(configured(base, tmp_path / "run", lora_rank=8))


def test_losses_are_the_same_on_any_mesh_and_in_parts():
    changes = {"lora": ("",), "lora_rank": 4, "init_from": "somewhere", "accumulate": 2}
    losses = []
    for mesh, devices in ((MeshConfig(), 1), (MeshConfig(data=2, fsdp=2, tensor=2), 8)):
        config = ten_steps.configure(**changes)
        placed = make_mesh(mesh, jax.devices()[:devices])
        tx, schedule = make_optimizer(config.optim, config.steps)
        with jax.set_mesh(placed):
            state = init_train_state(
                jax.random.key(0), config.model, tx, placed, lora=config.adapters
            )
            step = make_train_step(config, tx, schedule, placed, state)
            losses.append([])
            for batch in ten_steps.batches(config, placed):
                state, metrics = step(state, batch)
                losses[-1].append(float(metrics["loss"]))
    assert losses[0][-1] < losses[0][0]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_the_command_line_adapts_kernels_by_their_names(base, tmp_path):
    (tmp_path / "tiny.py").write_text(EXPERIMENT)
    done = run_cli(
        "flaxclip.train", "tiny.py", "--workdir", "run", "--init-from", str(base), "--lora",
        "^text/", "--lora-rank", "8", "--steps", "4", "--optim.optimizer", "muon",
        "--optim.ema-decay", "0.9", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "lora     rank 8, scale 1: 8,576 parameters train, beside 5 kernels" in done.stdout
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["lora"] == ["^text/"]
    info = run_cli("flaxclip.interop", "info", "run", cwd=tmp_path)
    assert "step 4, averaged weights, LoRA of rank 8 merged; float32" in info.stdout


def test_a_tower_without_pairs_has_no_backward_pass(base):
    plain = step_flops(tiny_config("unused", **SPEC._asdict()))
    text = step_flops(configured(base, "unused", lora=("^text/",)))
    both = step_flops(configured(base, "unused"))
    assert text < both == plain


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": ("^txt/",)}, r"lora has the pattern '\^txt/', which is in the name of no"),
        ({"lora": ("ln_1",)}, "which is in the name of no parameter"),
        ({"lora": ("qkv(",)}, "no regular expression"),
        ({"lora_rank": 32}, r"lora_rank is 32, and text/projection/kernel is a matrix of 32 x 16"),
        ({"lora_rank": 0, "lora_alpha": None}, "lora_rank is 0, lora_alpha 0\nboth must be pos"),
        ({"lora_alpha": -1.0}, "lora_alpha -1"),
    ],
)
def test_what_cannot_be_adapted_is_refused(changes, message, base, tmp_path):
    def check():
        config = configured(base, tmp_path, **changes)
        check_lora(config.adapters, after_shapes(config))

    with pytest.raises(InputError, match=message):
        check()


def test_weights_to_start_from_are_needed_and_batch_norms_must_stand_still():
    with pytest.raises(InputError, match="lora changes weights that are there"):
        tiny_config("unused", lora=("^text/",))
    resnet = dataclasses.replace(TINY_MODEL, vision=VARIANTS["RN50"].model.vision, embed_dim=16)
    with pytest.raises(InputError, match="frozen-statistics True"):
        tiny_config("unused", model=resnet, init_from="somewhere", lora=("^text/",))


def trained_pairs(spec):
    """What a run would have learned beside every kernel that peft can adapt."""
    lora = LoRA(("/blocks/", "vision/pool/(mlp|attention/(out|key))"), 4, 8.0)
    if spec.model.vision.family != "siglip":
        lora = dataclasses.replace(lora, patterns=lora.patterns[:1])
    params = variables_of(spec)["params"]
    tree = random_pairs(lora, params)
    names = adapted_kernels(lora, params)
    flattened = flat(tree)
    return lora, tree, {
        f"params/{name}": tuple(flattened[f"{name[:-6]}lora_{side}"] for side in "ab")
        for name in names
    }  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "to"), [(GELU, "huggingface"), (GELU, "open_clip"), (SIGLIP, "huggingface")]
)
def test_an_adapter_that_is_written_gives_the_sums_when_it_is_read(spec, to, vocabulary, tmp_path):
    if spec is SIGLIP:
        spec = with_tokenizer(spec, file=vocabulary)
    variables = variables_of(spec)
    export(spec, variables, tmp_path / "base", to, overwrite=False)
    lora, tree, pairs = trained_pairs(spec)
    kind = find_foreign(str(tmp_path / "base")).kind
    write_adapter(
        pairs, lora, spec.model, str(tmp_path / "base"), kind, tmp_path / "lora", overwrite=False
    )
    expected, found = flat(merged(lora, tree)), flat(flaxclip.load(tmp_path / "lora").params)
    before = flat(variables["params"])
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
        assert np.array_equal(value, before[name]) != (f"params/{name}" in pairs), name


def test_what_a_run_has_learned_is_converted_to_an_adapter(base, finished, tmp_path):
    spec = as_transformers(SPEC)
    export(spec, initial(), tmp_path / "base", "huggingface", overwrite=False)
    config = tiny_config(
        tmp_path / "run", init_from=str(tmp_path / "base"), **spec._asdict(), steps=3,
        lora=("^text/transformer", "vision/.*qkv"), lora_rank=4, lora_alpha=8.0,
    )  # fmt: skip
    train(config)
    convert(Convert(str(tmp_path / "run"), tmp_path / "adapter", "peft"))
    ours, theirs = flaxclip.load(tmp_path / "run"), flaxclip.load(tmp_path / "adapter")
    assert ours.spec == theirs.spec
    for name, value in flat(ours.params).items():
        np.testing.assert_allclose(flat(theirs.params)[name], value, rtol=1e-6, atol=1e-7)
    with pytest.raises(InputError, match="the format flaxclip, step 0\npeft adapts models of tr"):
        convert(Convert(str(finished), tmp_path / "none", "peft"))
    with pytest.raises(InputError, match="no run with --lora"):
        convert(Convert(str(base), tmp_path / "none", "peft"))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("base", "name", "revision"),
    [
        ("hf://openai/clip-vit-base-patch32", "openai/clip-vit-base-patch32", None),
        ("hf://openai/clip-vit-base-patch32@3d74acf", "openai/clip-vit-base-patch32", "3d74acf"),
        ("hf://timm/some/open_clip_model.safetensors", None, None),
        ("gs://bucket/clip", None, None),
        ("/data/clip", None, None),
    ],
)
def test_an_adapters_base_is_found_again(base, name, revision, tmp_path):
    """As peft names it, if it is a repository of the Hub; otherwise by the whole URL."""
    config = as_transformers(SPEC).model
    write_adapter({}, LoRA(("qkv",), 2, 2.0), config, base, "transformers, clip", tmp_path / "out",
                  overwrite=False)  # fmt: skip
    fields = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (fields["base_model_name_or_path"], fields["revision"]) == (name or base, revision)
    if "://" in base:
        assert read_adapter_config(tmp_path / "out").base() == base


def test_an_adapter_is_not_written_for_one_of_several_weights_in_a_file(monkeypatch, tmp_path):
    """Whoever reads the adapter would choose others of the base's file, and see no error."""
    chosen = "open_clip, averaged weights 'state_dict_ema', not 'state_dict'"
    record = {"path": "epoch_1.pt", "format": chosen, "resampled": {}, "initialized_at_random": []}
    trained = TrainedPairs(LoRA(("qkv",), 2, 2.0), {}, record)
    monkeypatch.setattr("flaxclip.interop.__main__.read_pairs", lambda _: trained)
    run = Weights("flaxclip, step 3", "float32", SPEC, lambda _: iter(()))
    monkeypatch.setattr("flaxclip.interop.__main__.open_weights", lambda *_: run)
    with pytest.raises(InputError) as error:
        convert(Convert(str(tmp_path / "run"), tmp_path / "adapter", "peft"))
    assert f"run began with epoch_1.pt ({chosen})\nan adapter names that file" in str(error.value)
    assert not (tmp_path / "adapter").exists()


def test_what_peft_cannot_adapt_is_refused():
    _, _, pairs = trained_pairs(GELU)
    kernel = "params/text/projection/kernel"
    a, b = np.zeros((64, 4), np.float32), np.zeros((4, 24), np.float32)
    with pytest.raises(InputError, match="text/projection/kernel is text_projection in an open_cl"):
        adapter_tensors(pairs | {kernel: (a, b)}, 4, open_clip_table(GELU.model))
    _, _, pairs = trained_pairs(SIGLIP)
    pairs |= {n.replace("key", "value"): pair for n, pair in pairs.items() if "key" in n}
    with pytest.raises(InputError, match="pool/attention/value/kernel and others are one matrix"):
        adapter_tensors(pairs, 4, open_clip_table(SIGLIP.model))
