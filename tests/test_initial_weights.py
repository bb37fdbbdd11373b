"""Runs that start from weights: of another library, of another size, of one tower."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict

import flaxclip.run.parts
from flaxclip.checkpoint.layout import CHECKPOINTS, absolute, read_metadata, save_variables
from flaxclip.errors import InputError
from flaxclip.interop.export import export
from flaxclip.interop.open_clip.names import open_clip_table
from flaxclip.interop.open_clip.write_config import open_clip_json
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.inputs import ImageTransform, TokenizerConfig
from flaxclip.models.modified_resnet import ResNetConfig
from flaxclip.models.spec import ModelSpec
from flaxclip.models.variants import VARIANTS
from flaxclip.optim import OptimConfig, make_optimizer
from flaxclip.run.command_line import TrainCommand, parse
from flaxclip.run.initial_weights import (
    describe,
    open_initial_weights,
    resize_context,
    resize_grid,
    start_from,
)
from flaxclip.run.progress import ProgressReport
from flaxclip.sharding import MeshConfig, make_mesh
from flaxclip.train_state import init_train_state
from tests.helpers.command_lines import run_cli
from tests.helpers.small_models import variables_of
from tests.helpers.tiny_run import EXPERIMENT, TINY_MODEL, tiny_config
from tests.helpers.torch_files import checkpoint

# Not what the experiment asks for: it has to come from the file.
MODEL = dataclasses.replace(
    TINY_MODEL,
    vision=dataclasses.replace(TINY_MODEL.vision, activation="gelu"),
    text=dataclasses.replace(TINY_MODEL.text, activation="gelu", context_length=12),
)
SPEC = ModelSpec(
    MODEL,
    # As a file of transformers means it.
    ImageTransform(transparency="white", crop_rounding="down", mean=(0.5, 0.4, 0.3)),
    TokenizerConfig(cleaning="transformers_clip"),
)


@pytest.fixture(scope="module")
def variables():
    values = variables_of(SPEC)
    return {"params": values["params"] | {"logit_scale": jnp.float32(3.0)}}


@pytest.fixture
def theirs(variables, tmp_path):
    export(SPEC, variables, tmp_path / "theirs", "huggingface", overwrite=False)
    (tmp_path / "tiny.py").write_text(EXPERIMENT)
    return tmp_path / "theirs"


def record_of(workdir, step):
    return read_metadata(absolute(workdir) / CHECKPOINTS / str(step))["run"]["initial_weights"]


def test_the_command_line_starts_from_others_weights_and_resumes_without_them(
    theirs, variables, tmp_path
):
    """At another size, with frozen parameters, and rates by name: one run shows them all."""
    command = (
        "flaxclip.train", "tiny.py", "--workdir", "run", "--init-from", "theirs",
        "--model.vision.image-size", "24", "--model.text.context-length", "15",
        "--optim.freeze", "^vision/", "^text/position_embedding", "--optim.ema-decay", "0.9",
        "--optim.lr-multipliers", "^text/projection", "0", "logit", "0.5",
        "--optim.layer-decay", "^text/", "0.75", "--data.workers", "0",
    )  # fmt: skip
    first = run_cli(*command, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "started from theirs (transformers, clip): 38 arrays; " in first.stdout
    assert "text.context_length 12 -> 15; vision.image_size 16 -> 24" in first.stdout

    model = flaxclip.load(tmp_path / "run")
    assert model.spec == SPEC._replace(
        model=dataclasses.replace(
            MODEL,
            vision=dataclasses.replace(MODEL.vision, image_size=24),
            text=dataclasses.replace(MODEL.text, context_length=15),
        )
    )
    expected = flatten_dict(variables["params"], sep="/")
    for name, resize, sizes in (
        ("vision/position_embedding", resize_grid, (2, 3)),
        ("text/position_embedding", resize_context, (15,)),
    ):
        expected[name] = resize(expected[name], *sizes)
    stays = ("vision/", "text/position_embedding", "text/projection")
    for name, value in flatten_dict(model.params, sep="/").items():
        if name.startswith(stays):
            np.testing.assert_allclose(value, expected[name], rtol=1e-6, err_msg=name)
        else:
            assert not np.array_equal(value, expected[name]), name

    # As if a machine had been lost, and the weights with it: what was saved is enough.
    shutil.rmtree(theirs)
    shutil.rmtree(tmp_path / "run" / CHECKPOINTS / "8")
    again = run_cli(*command, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "at step 4, where its last checkpoint is" in again.stdout
    record = record_of(tmp_path / "run", 8)
    assert record == record_of(tmp_path / "run", 4)
    assert (record["path"], record["format"]) == ("theirs", "transformers, clip")
    assert (record["arrays"], record["initialized_at_random"]) == (38, [])
    assert record["resampled"]["text.context_length"] == "12 -> 15"


def test_the_model_is_the_weights_but_for_what_the_flags_say(theirs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ("tiny.py", "--workdir", "run", "--init-from", "theirs", "--init-only", "^vision/")
    config = parse(
        TrainCommand, [*flags, "--compute.dtype", "bfloat16"], "flaxclip.train", None
    ).config
    assert (config.spec, config.compute) == (SPEC, ComputeConfig(dtype="bfloat16"))
    assert config.init_only == ("^vision/",)
    # A model that is named counts, and is compared with that of the weights.
    config = parse(TrainCommand, [*flags, "--model", "ViT-tiny"], "flaxclip.train", None).config
    assert config.spec == VARIANTS["ViT-tiny"]
    with pytest.raises(InputError, match=r"vision.width: 32 -> 128"):
        open_initial_weights(config)


@pytest.mark.parametrize("source", ["theirs", "ours"])
def test_weights_are_laid_out_over_the_mesh_as_the_run_lays_them_out(
    source, theirs, variables, tmp_path
):
    save_variables(tmp_path / "ours", SPEC._asdict(), variables)
    config = tiny_config(tmp_path / "run", **SPEC._asdict(), init_from=str(tmp_path / source))
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    initial = open_initial_weights(config)
    tx, _ = make_optimizer(OptimConfig(), 10_000)
    with jax.set_mesh(mesh):
        fresh = init_train_state(jax.random.key(0), MODEL, tx, mesh, ema=True)
        state, _ = start_from(initial, config, mesh, fresh)
    jax.tree.map(np.testing.assert_array_equal, state.params, variables["params"])
    jax.tree.map(np.testing.assert_array_equal, state.ema, state.params)
    layout = jax.tree.map(lambda leaf: leaf.sharding, fresh)
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == layout
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.params))


def test_a_host_that_saw_checkpoints_where_host_0_sees_none_has_the_weights_too(
    theirs, tmp_path, monkeypatch
):
    monkeypatch.setattr(flaxclip.run.parts, "saved_steps", lambda _: [8])
    config = tiny_config(tmp_path / "run", **SPEC._asdict(), init_from=str(theirs))
    parts = flaxclip.run.parts.open_parts(config)
    assert parts.initial is None
    with jax.set_mesh(parts.mesh):
        start = flaxclip.run.parts.restore_or_init(config, parts, {}, (), ProgressReport(0, 1))
    assert start.record["initial_weights"]["path"] == str(theirs)


def test_statistics_of_batch_norms_come_along_and_a_logit_bias_is_initialized(tmp_path):
    old = dataclasses.replace(MODEL, vision=ResNetConfig(64, 4, (1, 2, 1, 1)))
    spec = SPEC._replace(model=old)
    variables = variables_of(spec)
    save_variables(tmp_path / "ours", spec._asdict(), variables)
    new = dataclasses.replace(
        old,
        vision=dataclasses.replace(old.vision, frozen_statistics=True),
        init_logit_bias=-7.0,
    )
    config = tiny_config(
        tmp_path / "run",
        **spec._replace(model=new)._asdict(),
        compute=ComputeConfig(dtype="bfloat16"),
        init_from=str(tmp_path / "ours"),
    )
    mesh = make_mesh(MeshConfig())
    with jax.set_mesh(mesh):
        fresh = init_train_state(
            jax.random.key(0), new, make_optimizer(OptimConfig(), 9999)[0], mesh
        )
        state, record = start_from(open_initial_weights(config), config, mesh, fresh)
    jax.tree.map(np.testing.assert_array_equal, state.batch_stats, variables["batch_stats"])
    assert state.params["logit_bias"] == -7
    assert record["initialized_at_random"] == ["logit_bias"]


def model_with(**fields):
    return {"model": dataclasses.replace(MODEL, **fields)}


def tower_with(tower, **fields):
    return model_with(**{tower: dataclasses.replace(getattr(MODEL, tower), **fields)})


def preprocess_with(**fields):
    return {"preprocess": dataclasses.replace(SPEC.preprocess, **fields)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (tower_with("text", activation="quick_gelu"), "text.activation: 'gelu' -> 'quick_gelu'"),
        (tower_with("vision", norm_eps=1e-6), "vision.norm_eps: 1e-05 -> 1e-06"),
        (tower_with("vision", width=64), "vision.width: 32 -> 64"),
        (tower_with("vision", patch_size=4), "vision.patch_size: 8 -> 4"),
        (
            model_with(vision=ResNetConfig(64, 4, (1, 2, 1, 1))),
            "vision: 'ViTConfig' -> 'ResNetC",
        ),
        (
            preprocess_with(mean=(0.5, 0.5, 0.5)),
            "preprocess.mean: (0.5, 0.4, 0.3) -> (0.5, 0.5, 0.5)",
        ),
        ({"tokenizer": TokenizerConfig("siglip")}, "tokenizer.name: 'clip' -> 'siglip'"),
        (
            model_with(embed_dim=24, text=dataclasses.replace(MODEL.text, width=64))
            | {"init_only": ("^vision/",)},
            "vision/projection/kernel in theirs has shape [32, 16]\nexpected [32, 24]",
        ),
        ({"init_only": ("^visual/",)}, "init_only ^visual/ is in no name in theirs"),
        # One that is right does not hide a typo, whose parameters would stay random.
        ({"init_only": ("^vision/", "^txt/")}, "init_only ^txt/ is in no name in theirs"),
        ({"init_only": ("^vision/", "text(")}, "init_only has the pattern 'text(', which is no re"),
        (
            {"init_only": ("^vision/",), "lora": ("^vision/",), "lora_rank": 2},
            "init_only leaves 17 parameters at random, such as text/ln_final/bias",
        ),
    ],
)
def test_weights_of_another_model_are_refused_by_what_differs(
    changes, message, theirs, monkeypatch
):
    monkeypatch.chdir(theirs.parent)
    config = tiny_config("run", **(SPEC._asdict() | {"init_from": "theirs"} | changes))
    with pytest.raises(InputError) as error:
        open_initial_weights(config)
    assert message in str(error.value)


@pytest.mark.parametrize("cleaning", [None, "lower"])
def test_inputs_that_are_prepared_otherwise_are_said(theirs, cleaning):
    changes = preprocess_with(transparency="dropped")
    changes |= {"tokenizer": TokenizerConfig(cleaning=cleaning)}
    config = tiny_config("run", **(SPEC._asdict() | {"init_from": str(theirs)} | changes))
    assert open_initial_weights(config).changes == {
        "preprocess.transparency": "'white' -> 'dropped'",
        "tokenizer.cleaning": "'transformers_clip' -> 'lower'",
    }


def test_what_is_not_taken_may_be_anything(theirs):
    changes = tower_with("text", width=64, activation="quick_gelu") | {"init_only": ("^vision/",)}
    config = tiny_config("run", **(SPEC._asdict() | {"init_from": str(theirs)} | changes))
    assert len(open_initial_weights(config).names) == 20


def test_pairs_may_train_beside_towers_that_are_taken_whole(theirs):
    """The temperature begins anew, as a constant that nothing has to learn."""
    changes = {"init_only": ("^vision/", "^text/"), "lora": ("^vision/",), "lora_rank": 2}
    config = tiny_config("run", **(SPEC._asdict() | {"init_from": str(theirs)} | changes))
    assert "params/logit_scale" not in open_initial_weights(config).names


def test_a_bare_state_dict_needs_its_models_name(tmp_path):
    spec = VARIANTS["ViT-tiny"]
    tensors = open_clip_table(spec.model).to_theirs(variables_of(spec))
    path = str(tmp_path / "epoch_32.safetensors")
    safetensors.numpy.save_file(tensors, path)
    config = tiny_config("run", **spec._asdict(), init_from=path)
    with pytest.raises(InputError, match=r"does not tell whether .* QuickGELU"):
        open_initial_weights(config)
    config = dataclasses.replace(config, init_model="ViT-tiny")
    assert open_initial_weights(config).changes == {}


def test_of_weights_and_their_average_a_run_starts_from_either(variables, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.py").write_text(EXPERIMENT)
    raw = open_clip_table(MODEL).to_theirs(variables)
    average = {name: np.asarray(2 * array) for name, array in raw.items()}
    (tmp_path / "best.pt").write_bytes(checkpoint({"state_dict": raw, "state_dict_ema": average}))
    (tmp_path / "open_clip_config.json").write_text(json.dumps(open_clip_json(ModelSpec(MODEL))))
    flags = ["tiny.py", "--workdir", "run", "--init-from", "best.pt"]
    theirs = flatten_dict(variables, sep="/")
    for chosen, factor in (([], 2), (["--init-weights", "ema"], 2), (["--init-weights", "raw"], 1)):
        config = parse(TrainCommand, [*flags, *chosen], "flaxclip.train", None).config
        weights = open_initial_weights(config).weights
        for name, value in weights.read(None):
            np.testing.assert_array_equal(value, factor * theirs[name], err_msg=name)
        record = {"path": "best.pt", "format": weights.kind, "arrays": 38}
        record |= {"resampled": {}, "changed": {}}
        told = describe(record | {"initialized_at_random": []}, weights.notice)
        assert ("--init-weights in training" in told) == (not chosen)
        names = "averaged weights 'state_dict_ema', not 'state_dict'"
        assert (names in told) == (factor == 2)


def test_options_about_weights_that_are_not_there_are_refused():
    for option in ({"init_only": ("^vision/",)}, {"init_weights": "raw"}):
        with pytest.raises(InputError, match="name these with --init-from"):
            tiny_config("run", **option)
