"""Whole models in and out: what a file does not say is asked for, never guessed."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import flaxclip
from flaxclip.checkpoint.layout import save_variables
from flaxclip.errors import InputError
from flaxclip.interop.__main__ import Convert, Info, convert, info
from flaxclip.interop.archives.stored_tensor import StoredTensor
from flaxclip.interop.big_vision import big_vision_table
from flaxclip.interop.export import export
from flaxclip.interop.huggingface.names import huggingface_table
from flaxclip.interop.huggingface.read_config import read_config as read_huggingface_config
from flaxclip.interop.huggingface.write_config import huggingface_json, processor_json
from flaxclip.interop.open_clip.names import open_clip_table
from flaxclip.interop.openai import config_from_shapes
from flaxclip.models.spec import ModelSpec
from flaxclip.models.variants import VARIANTS
from flaxclip.weights import open_weights
from tests.helpers.hub_stand_in import Hosted, hub, serve_hub, take_for_the_hub
from tests.helpers.small_models import (
    CLIP,
    GELU,
    RESNET,
    SIGLIP,
    SIGLIP2,
    as_transformers,
    assert_same,
    variables_of,
    with_tokenizer,
)
from tests.helpers.torch_files import saved

CAPTIONS = ["a red circle", "Two dogs, at_the beach!", ""]


def openai_file(path, spec, variables, dtype=np.float32):
    config = spec.model
    tensors = open_clip_table(config).to_theirs(variables)
    tensors = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
    constants = {
        "input_resolution": config.vision.image_size,
        "context_length": config.text.context_length,
        "vocab_size": config.text.vocab_size,
    }
    constants = {name: np.array(value) for name, value in constants.items()}
    path.write_bytes(saved(tensors | constants, script=True))


@pytest.mark.parametrize("config", [CLIP.model, RESNET.model], ids=["ViT", "ResNet"])
def test_shapes_that_cannot_be_are_refused_whichever_tensor_has_them(config):
    """An architecture is read from shapes, so they come before any check of the whole."""

    def never():
        raise AssertionError("numbers were read")

    shapes = open_clip_table(config).their_shapes()
    impossible = [(), (0,), (0, 0), (3, 3), (1, 1, 1), (10**12, 10**12)]
    rng = np.random.default_rng(0)
    for name in sorted(shapes.keys() - {"logit_scale"}):  # which may have one axis or none
        for number in rng.choice(len(impossible), 2, replace=False):
            changed = shapes | {name: impossible[number]}
            tensors = {n: StoredTensor(n, s, np.dtype("f4"), never) for n, s in changed.items()}

            def recognise(changed=changed, tensors=tensors):
                open_clip_table(config_from_shapes(changed), changed).check(tensors)

            with pytest.raises(InputError):
                recognise()


@pytest.mark.parametrize("spec", [CLIP, RESNET], ids=["ViT", "ResNet"])
def test_openais_archives_tell_their_architecture_and_have_quick_gelu(spec, tmp_path):
    variables = variables_of(spec)
    openai_file(tmp_path / "model.pt", spec, variables)
    assert_same(flaxclip.load(tmp_path / "model.pt"), spec, variables)


@pytest.mark.parametrize("kind", ["openai", "open_clip", "huggingface"])
def test_a_name_must_be_that_of_the_architecture_that_the_files_say(kind, tmp_path, monkeypatch):
    """OpenAI's ViT-B-32.pt as open_clip's ViT-B-32, which has GELU, would load and be wrong."""
    changed = {
        name: dataclasses.replace(getattr(CLIP.model, name), activation="gelu")
        for name in ("vision", "text")
    }
    monkeypatch.setitem(VARIANTS, "small", ModelSpec(dataclasses.replace(CLIP.model, **changed)))
    monkeypatch.setitem(VARIANTS, "small-quickgelu", CLIP)
    variables, path = variables_of(CLIP), tmp_path / "model.pt"
    if kind == "openai":
        openai_file(path, CLIP, variables)
    else:
        # A mean of its own, which the name does not have.
        other = dataclasses.replace(CLIP.preprocess, mean=(0.5, 0.4, 0.3))
        path = tmp_path / "folder"
        export(CLIP._replace(preprocess=other), variables, path, kind, overwrite=False)
    unnamed = flaxclip.load(path)
    assert unnamed.spec.model == CLIP.model
    assert flaxclip.load(path, model="small-quickgelu").spec == unnamed.spec
    with pytest.raises(InputError) as error:
        flaxclip.load(path, model="small")
    message = str(error.value)
    assert "is of another architecture than small\n" in message
    assert "vision.activation: 'quick_gelu' by the files, 'gelu' in small\n" in message
    assert "text.activation: 'quick_gelu' by the files, 'gelu' in small\n" in message
    assert "leave the name out: these weights say theirs, which is that of small-quickg" in message
    with pytest.raises(InputError, match=r"embed_dim: 24 by the files, 768 in ViT-L-14\n"):
        flaxclip.load(path, model="ViT-L/14")


def test_half_precision_becomes_float32(tmp_path):
    variables = variables_of(CLIP)
    openai_file(tmp_path / "model.pt", CLIP, variables, np.float16)
    expected = jax.tree.map(lambda x: x.astype(jnp.float16).astype(jnp.float32), variables)
    assert_same(flaxclip.load(tmp_path / "model.pt"), CLIP, expected)


@pytest.mark.parametrize(
    ("to", "spec"),
    [
        ("open_clip", CLIP),
        ("open_clip", GELU),
        ("open_clip", RESNET),
        ("huggingface", as_transformers(CLIP)),
        ("huggingface", as_transformers(GELU)),
        ("huggingface", as_transformers(SIGLIP)),
        ("huggingface", as_transformers(SIGLIP2)),
    ],
)
def test_what_is_exported_is_read_back_with_all_that_belongs_to_it(to, spec, vocabulary, tmp_path):
    variables = variables_of(spec)
    named = with_tokenizer(spec, file=None if spec.tokenizer.name == "clip" else vocabulary)
    assert export(named, variables, tmp_path / "out", to, overwrite=False) == []
    model = flaxclip.load(tmp_path / "out")
    assert_same(model, spec, variables)
    before = flaxclip.api.CLIPModel(named, variables)
    np.testing.assert_array_equal(model.tokenize(CAPTIONS), before.tokenize(CAPTIONS))
    assert model.transform == before.transform


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("root", ["params/", ""])
def test_big_visions_checkpoints_tell_their_architecture(stacked, root, vocabulary, tmp_path):
    variables = variables_of(SIGLIP)
    tensors = big_vision_table(SIGLIP.model, stacked).to_theirs(variables)
    np.savez(tmp_path / "siglip.npz", **{root + name: x for name, x in tensors.items()})
    model = flaxclip.load(tmp_path / "siglip.npz", tokenizer=vocabulary)
    assert model.spec.tokenizer.file == vocabulary
    assert_same(model, with_tokenizer(SIGLIP, cleaning="big_vision"), variables)
    assert model.encode_text(CAPTIONS).shape == (3, 64)


def test_a_siglip_without_a_projection_of_texts_is_told_by_its_tensors(vocabulary, tmp_path):
    text = dataclasses.replace(SIGLIP.model.text, width=64, family="siglip_i18n")
    with pytest.raises(InputError, match="embed_dim 64 is not the text tower's width 32"):
        dataclasses.replace(SIGLIP.model, text=dataclasses.replace(text, width=32))
    spec = SIGLIP._replace(model=dataclasses.replace(SIGLIP.model, text=text))
    variables = variables_of(spec)
    tensors = big_vision_table(spec.model, stacked=True).to_theirs(variables)
    assert "txt/head/kernel" not in tensors
    np.savez(tmp_path / "siglip.npz", **tensors)
    model = flaxclip.load(tmp_path / "siglip.npz", tokenizer=vocabulary)
    assert_same(model, with_tokenizer(spec, cleaning="big_vision"), variables)

    # transformers' class has a projection, which becomes one that changes nothing.
    spec = as_transformers(with_tokenizer(spec, file=vocabulary))
    before = flaxclip.api.CLIPModel(spec, variables)
    assert export(spec, variables, tmp_path / "out", "huggingface", overwrite=False) == []
    after = flaxclip.load(tmp_path / "out")
    assert after.config.text.family == "siglip"
    projection = after.params["text"]["projection"]
    np.testing.assert_array_equal(projection["kernel"], np.eye(64))
    np.testing.assert_array_equal(projection["bias"], np.zeros(64))
    for captions in (CAPTIONS, ["a cat"]):
        ours = before.encode_text(captions)
        np.testing.assert_array_equal(after.encode_text(captions), ours)


def test_a_model_without_its_vocabulary_embeds_images_and_asks_for_it(tmp_path):
    tensors = big_vision_table(SIGLIP.model, True).to_theirs(variables_of(SIGLIP))
    np.savez(tmp_path / "siglip.npz", **tensors)
    model = flaxclip.load(tmp_path / "siglip.npz")
    assert model.encode_image(np.zeros((2, 16, 16, 3), np.uint8)).shape == (2, 64)
    with pytest.raises(InputError, match="needs a file with its vocabulary"):
        model.encode_text(["a cat"])


def test_a_vocabulary_that_is_larger_than_the_models_is_refused(vocabulary):
    small = dataclasses.replace(SIGLIP.model.text, vocab_size=20)
    small = SIGLIP._replace(model=dataclasses.replace(SIGLIP.model, text=small))
    model = flaxclip.api.CLIPModel(with_tokenizer(small, file=vocabulary), {})
    with pytest.raises(InputError, match=r"has \d\d tokens, but the text tower knows 20"):
        model.tokenize(["a cat"])


def test_a_two_tower_model_of_another_kind_is_refused_by_name(tmp_path):
    names = ("params/img/embedding/kernel", "params/img/head/kernel")
    np.savez(tmp_path / "gap.npz", **{name: np.zeros((8, 8, 3, 4)) for name in names})
    with pytest.raises(InputError, match="tensor img/head/kernel: a two-tower model, but not a"):
        flaxclip.load(tmp_path / "gap.npz")


TINY = VARIANTS["ViT-tiny"]


@pytest.fixture
def bare(tmp_path):
    """A state dict of ViT-tiny without a configuration."""
    tensors = open_clip_table(TINY.model).to_theirs(variables_of(TINY))
    safetensors.numpy.save_file(tensors, tmp_path / "epoch_32.safetensors")
    return tmp_path / "epoch_32.safetensors"


def test_a_bare_state_dict_cannot_tell_its_activation_so_the_user_must(bare):
    with pytest.raises(InputError) as error:
        flaxclip.load(bare)
    assert "does not tell whether the model was trained with QuickGELU or GELU" in str(error.value)
    assert "its shapes are those of: ViT-tiny" in str(error.value)
    assert_same(flaxclip.load(bare, model="ViT-tiny"), TINY, variables_of(TINY))
    with pytest.raises(InputError, match="unknown model 'ViT-huge'"):
        flaxclip.load(bare, model="ViT-huge")
    with pytest.raises(InputError, match=r"tensors? (missing|unknown)"):
        flaxclip.load(bare, model="ViT-B-32")


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "type"])
def test_a_tensor_that_does_not_fit_is_named_before_any_number_is_read(change, tmp_path):
    export(CLIP, variables_of(CLIP), tmp_path / "out", "huggingface", overwrite=False)
    path = tmp_path / "out" / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    name = "text_model.encoder.layers.1.mlp.fc1.weight"
    if change == "missing":
        del tensors[name]
    elif change == "extra":
        tensors[name + "_2"] = tensors[name]
    elif change == "shape":
        tensors[name] = tensors[name].T.copy()
    else:
        tensors[name] = tensors[name].astype(np.int8)
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(InputError, match=name):
        flaxclip.load(tmp_path / "out")


@pytest.fixture
def exported(tmp_path):
    """A directory of each library, and a function that changes its JSON."""

    def make(to, file, **changes):
        folder = tmp_path / to
        export(GELU, variables_of(GELU), folder, to, overwrite=True)
        value = json.loads((folder / file).read_text())
        for path, change in changes.items():
            *parents, last = path.split("__")
            target = value
            for parent in parents:
                target = target[parent]
            target[last] = change
        (folder / file).write_text(json.dumps(value))
        return folder

    return make


OPEN_CLIP, PROCESSOR = "open_clip_config.json", "preprocessor_config.json"
TOKENIZER = "tokenizer_config.json"


@pytest.mark.parametrize(
    ("to", "file", "path", "value", "message"),
    [
        ("open_clip", OPEN_CLIP, "model_cfg__vision_cfg__ls_init_value", 0.1, "ls_init_value"),
        ("open_clip", OPEN_CLIP, "model_cfg__vision_cfg__new_idea", True, "vision_cfg.new_idea"),
        ("open_clip", OPEN_CLIP, "model_cfg__text_cfg__pool_type", "last", "expected pool_type"),
        ("open_clip", OPEN_CLIP, "model_cfg__text_cfg__hf_model_name", "bert", "hf_model_name"),
        ("open_clip", OPEN_CLIP, "model_cfg__text_cfg__hf_tokenizer_name", "bert", "tokenizers of"),
        ("open_clip", OPEN_CLIP, "model_cfg__embed_dim", "wide", "model_cfg.embed_dim: Input"),
        ("open_clip", OPEN_CLIP, "model_cfg__text_cfg__layers", 2, "tensors unknown: transformer"),
        ("open_clip", OPEN_CLIP, "preprocess_cfg__resize_mode", "longest", "resize_mode"),
        ("open_clip", OPEN_CLIP, "preprocess_cfg__size", 336, "preprocess_cfg.size is 336"),
        ("open_clip", OPEN_CLIP, "model_cfg__vision_cfg__layers", 10**9, "layers is 1000000000"),
        ("open_clip", OPEN_CLIP, "model_cfg__vision_cfg__head_width", 0, "head_width: Input"),
        ("open_clip", OPEN_CLIP, "model_cfg__vision_cfg__head_width", 999, "heads is 0"),
        ("open_clip", OPEN_CLIP, "model_cfg__text_cfg__mlp_ratio", float("nan"), "mlp_ratio: Inp"),
        ("open_clip", OPEN_CLIP, "model_cfg__text_cfg__norm_kwargs__eps", -1, "norm_eps is -1"),
        ("open_clip", OPEN_CLIP, "preprocess_cfg__std", [1, 0, 1], r"std\[1\] is 0"),
        ("huggingface", "config.json", "text_config__num_attention_heads", 0, "_heads: Input sh"),
        ("huggingface", "config.json", "text_config__num_hidden_layers", 10**18, "layers is 1"),
        ("huggingface", PROCESSOR, "rescale_factor", 1, "rescale_factor is 1"),
        ("huggingface", "config.json", "model_type", "blip", "a model of type 'blip'"),
        ("huggingface", "config.json", "vision_config__hidden_act", "relu", "hidden_act"),
        ("huggingface", "config.json", "text_config__eos_token_id", 7, "eos_token_id is 7"),
        ("huggingface", PROCESSOR, "size", {"shortest_edge": 30}, "do not make squares"),
        ("huggingface", PROCESSOR, "resample", 1, "resample: Input should be 2 or 3"),
        ("huggingface", PROCESSOR, "image_processor_type", "BlipImageProcessor", "type is 'Blip"),
        ("huggingface", TOKENIZER, "padding_side", "left", "padding_side is 'left'\nexpected rig"),
        ("huggingface", TOKENIZER, "truncation_side", "left", "truncation_side is 'left'"),
    ],
)  # fmt: skip
def test_configurations_that_we_would_compute_otherwise_are_refused_by_field(
    to, file, path, value, message, exported
):
    folder = exported(to, file, **{path: value})
    with pytest.raises(InputError, match=message):
        flaxclip.load(folder)


def test_a_resnets_heads_are_those_of_its_configuration_or_it_is_refused(tmp_path):
    """open_clip makes width * 32 // head_width of them, which no tensor's shape tells."""
    export(RESNET, variables_of(RESNET), tmp_path / "out", "open_clip", overwrite=False)
    path = tmp_path / "out" / OPEN_CLIP
    config = json.loads(path.read_text())
    for head_width in (64, 32):
        config["model_cfg"]["vision_cfg"]["head_width"] = head_width
        path.write_text(json.dumps(config))
        if head_width == 64:
            assert flaxclip.load(tmp_path / "out").spec == RESNET
    with pytest.raises(
        InputError, match=r"head_width is 32, which makes 4 heads .*\nexpected 2, of"
    ):
        flaxclip.load(tmp_path / "out")


SIDES = [[16, 16], {"height": 16, "width": 16}, 16]


@pytest.mark.parametrize("side", SIDES, ids=str)
@pytest.mark.parametrize(
    ("to", "file", "tower"),
    [
        ("open_clip", OPEN_CLIP, "model_cfg__vision_cfg"),
        ("huggingface", "config.json", "vision_config"),
    ],
)
def test_the_side_of_a_square_may_be_said_twice(to, file, tower, side, exported):
    folder = exported(to, file, **{f"{tower}__image_size": side, f"{tower}__patch_size": [8, 8]})
    assert flaxclip.load(folder).config.vision == GELU.model.vision


@pytest.mark.parametrize("side", [[16, 24], {"height": 16, "width": 24}], ids=str)
@pytest.mark.parametrize(
    ("to", "file", "tower"),
    [
        ("open_clip", OPEN_CLIP, "model_cfg__vision_cfg"),
        ("huggingface", "config.json", "vision_config"),
    ],
)
def test_images_that_are_no_squares_are_refused_by_both_sides(to, file, tower, side, exported):
    folder = exported(to, file, **{f"{tower}__image_size": side})
    with pytest.raises(InputError, match=r"image_size: .*height 16, width 24; expected a square"):
        flaxclip.load(folder)


def test_weights_of_transformers_need_the_files_beside_them(exported):
    folder = exported("huggingface", "config.json")
    (folder / PROCESSOR).unlink()
    (folder / "processor_config.json").write_text('{"processor_class": "CLIPProcessor"}')
    with pytest.raises(InputError, match="without it, size, mean and deviation"):
        flaxclip.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match="whose shapes do not tell heads"):
        flaxclip.load(folder / "model.safetensors")


def test_defaults_that_transformers_leaves_out_are_filled_in(tmp_path):
    """As in the published config.json of SigLIP, which is nearly empty."""
    from flaxclip.interop.huggingface.read_config import read_config

    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "siglip", "vision_config": {}, "text_config": {}})
    )
    processor = {"size": {"height": 224, "width": 224}, "resample": 3}
    processor |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / PROCESSOR).write_text(json.dumps(processor))
    spec, _ = read_config(tmp_path)
    assert spec == as_transformers(VARIANTS["ViT-B-16-SigLIP"])


@pytest.mark.parametrize(
    ("kind", "processor", "expected"),
    [
        ("clip", {"size": 224}, ("shortest", "bicubic")),
        (
            "clip",
            {"feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "crop_size": 224},
            ("shortest", "bicubic"),
        ),
        (
            "clip",
            {"image_processor_type": "CLIPImageProcessorFast", "size": 224, "do_center_crop": None},
            ("shortest", "bicubic"),
        ),
        (
            "clip",
            {
                "image_processor_type": "SiglipImageProcessor",
                "size": {"height": 224, "width": 224},
            },
            ("squash", "bicubic"),
        ),
        ("siglip2", {"image_processor_type": "Siglip2ImageProcessor"}, ("native", "bilinear")),
    ],
)
@pytest.mark.parametrize("file", [PROCESSOR, "processor_config.json"])
def test_an_image_processor_that_is_told_little_does_what_its_class_does(
    kind, processor, expected, file, tmp_path
):
    from flaxclip.interop.huggingface.read_config import read_config

    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    processor = processor | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    if file == PROCESSOR:
        (tmp_path / file).write_text(json.dumps(processor))
    else:
        # Of both files, transformers 5 obeys this one.
        (tmp_path / file).write_text(json.dumps({"image_processor": processor}))
        (tmp_path / PROCESSOR).write_text(json.dumps(processor | {"resample": 1}))
    preprocess = read_config(tmp_path)[0].preprocess
    assert (preprocess.resize, preprocess.interpolation) == expected
    assert (preprocess.transparency, preprocess.crop_rounding) == ("white", "down")


def test_a_crop_smaller_than_the_model_is_refused_though_its_size_is_not_written(tmp_path):
    """`CLIPImageProcessor` cuts 224 pixels out unless it is told otherwise."""
    from flaxclip.interop.huggingface.read_config import read_config

    config = {"model_type": "clip", "vision_config": {"image_size": 256}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    processor = {"size": 256, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / PROCESSOR).write_text(json.dumps(processor))
    with pytest.raises(InputError, match="crop_size 224, do_center_crop True do not make squares"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("to", "spec", "remarks"),
    [
        (
            "huggingface",
            CLIP,
            ["transformers lays images over white", "centre crops", "in place of lower"],
        ),
        (
            "huggingface",
            SIGLIP,
            ["transformers lays images over white", "in place of canonicalize"],
        ),
        (
            "open_clip",
            as_transformers(CLIP),
            ["open_clip drops alpha", "centre crops", "in place of transformers_clip"],
        ),
        (
            "open_clip",
            as_transformers(GELU),
            ["open_clip drops alpha", "in place of transformers_clip"],
        ),
    ],
)
def test_what_the_other_librarys_files_cannot_say_is_said(
    to, spec, remarks, vocabulary, tmp_path, capsys
):
    file = vocabulary if spec.tokenizer.name != "clip" else None
    named = with_tokenizer(spec, file=file)
    save_variables(tmp_path / "run", named._asdict(), variables_of(spec))
    convert(Convert(str(tmp_path / "run"), tmp_path / "out", to))
    _, second, *found = capsys.readouterr().out.splitlines()
    assert second == "its files cannot say how this model prepares"
    assert len(found) == len(remarks)
    assert all(remark in line for remark, line in zip(remarks, found, strict=True))


def test_urls_are_copied_once_and_anew_when_they_change(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    export(CLIP, variables_of(CLIP), tmp_path / "out", "huggingface", overwrite=False)
    remote = fsspec.filesystem("memory")
    remote.put(str(tmp_path / "out"), "/models/clip", recursive=True)
    for url in ("memory://models/clip", "memory://models/clip/model.safetensors"):
        assert_same(flaxclip.load(url), as_transformers(CLIP), variables_of(CLIP))
    cache = tmp_path / "cache" / "flaxclip" / "weights"
    copies = sorted(cache.iterdir())
    flaxclip.load("memory://models/clip")
    assert sorted(cache.iterdir()) == copies

    doubled = jax.tree.map(lambda x: 2 * x, variables_of(CLIP))
    export(CLIP, doubled, tmp_path / "out", "huggingface", overwrite=True)
    remote.rm("/models/clip", recursive=True)
    remote.put(str(tmp_path / "out"), "/models/clip", recursive=True)
    assert_same(flaxclip.load("memory://models/clip"), as_transformers(CLIP), doubled)


def test_a_run_at_a_url_is_copied_with_one_of_its_steps(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    doubled = jax.tree.map(lambda x: 2 * x, variables_of(CLIP))
    for step, variables in (("0", variables_of(CLIP)), ("7", doubled)):
        save_variables(tmp_path / step, CLIP._asdict(), variables)
        (tmp_path / step / "checkpoints" / "0").rename(tmp_path / "0" / "checkpoints" / step)
    fsspec.filesystem("memory").put(str(tmp_path / "0"), "/runs/mine", recursive=True)
    assert_same(flaxclip.load("memory://runs/mine"), CLIP, doubled)
    assert_same(flaxclip.load("memory://runs/mine/checkpoints/0"), CLIP, variables_of(CLIP))
    for url in ("memory://runs/mine/checkpoints/3", "memory://runs"):
        with pytest.raises(InputError, match=f"(no model at|cannot read) {url}"):
            flaxclip.load(url)


def test_a_runs_vocabulary_comes_with_it_whatever_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("words.json", "words.txt"):
        spec = with_tokenizer(SIGLIP, file=str(tmp_path / "elsewhere" / name))
        save_variables(tmp_path / name / "run", spec._asdict(), variables_of(SIGLIP))
        (tmp_path / name / "run" / name).write_text(name)
        files = fsspec.filesystem("memory")
        files.put(str(tmp_path / name / "run"), f"/runs/{name}", recursive=True)
        file = open_weights(f"memory://runs/{name}").spec.tokenizer.file
        assert file is not None
        assert Path(file).read_text() == name


def test_captions_are_read_out_at_clips_end_marker_though_there_are_more_embeddings(tmp_path):
    """Padded to a multiple, say: transformers looks for eos_token_id, and not for the highest."""
    text = dataclasses.replace(CLIP.model.text, vocab_size=49_500)
    spec = as_transformers(CLIP._replace(model=dataclasses.replace(CLIP.model, text=text)))
    config = huggingface_json(spec)
    found = config["text_config"]
    assert found["vocab_size"] == 49_500
    assert (found["bos_token_id"], found["eos_token_id"]) == (49_406, 49_407)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / PROCESSOR).write_text(json.dumps(processor_json(spec)))
    assert read_huggingface_config(tmp_path)[0] == spec
    found["eos_token_id"] = 49_499  # which no caption has: all would be read out at their start
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"eos_token_id is 49499\nexpected .* highest id, 49407"):
        read_huggingface_config(tmp_path)


def test_the_hubs_own_client_reads_a_repository(tmp_path):
    """The real client; in place of the Hub, which cannot be reached from a test, a small server."""
    export(CLIP, variables_of(CLIP), tmp_path / "out", "huggingface", overwrite=False)
    with hub("someone/clip", tmp_path / "out") as address:
        environment = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hub")}
        environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache")}
        command = [sys.executable, "-m", "flaxclip.interop", "info", "hf://someone/clip"]
        result = subprocess.run(
            command, env=os.environ | environment, capture_output=True, text=True, check=False
        )
    assert result.returncode == 0, result.stderr
    assert "transformers, clip; float32" in result.stdout


def test_what_the_hub_does_not_give_says_what_to_do(tmp_path, monkeypatch):
    export(CLIP, variables_of(CLIP), tmp_path / "out", "huggingface", overwrite=False)
    hosted = Hosted(tmp_path / "out", "models")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with serve_hub({"someone/clip": hosted}) as hub:
        take_for_the_hub(monkeypatch, hub.address)
        for url, message in (
            (
                "hf://someone/none",
                "the Hub shows no model someone/none: .*private\n.*hf auth login",
            ),
            ("hf://someone/clip@v9", "the model has no revision 'v9'"),
        ):
            with pytest.raises(InputError, match=message):
                flaxclip.load(url)
        hosted.gated = True
        with pytest.raises(InputError, match=r"agree at https://huggingface\.co/someone/clip, "):
            flaxclip.load("hf://someone/clip")
        take_for_the_hub(monkeypatch, hub.address, token="hf_of_nobody")
        with pytest.raises(InputError, match="does not accept the token that is set"):
            flaxclip.load("hf://someone/clip")
    with pytest.raises(InputError, match="a model of the Hub is hf://someone/clip"):
        flaxclip.load("someone/clip")


def test_new_weights_of_the_same_size_are_copied_anew(tmp_path, monkeypatch):
    variables = variables_of(CLIP)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with serve_hub({"someone/clip": Hosted(tmp_path / "out", "models")}) as hub:
        for factor in (1, 2):
            scaled = jax.tree.map(lambda leaf, factor=factor: factor * leaf, variables)
            export(CLIP, scaled, tmp_path / "out", "huggingface", overwrite=True)
            take_for_the_hub(monkeypatch, hub.address)
            loaded = flaxclip.load("hf://someone/clip").variables["params"]["logit_scale"]
            assert loaded == scaled["params"]["logit_scale"]


def test_urls_that_cannot_be_read_say_what_to_do(monkeypatch):
    with pytest.raises(InputError, match="Protocol not known: nonsense"):
        flaxclip.load("nonsense://a/b")
    fsspec.filesystem("memory").makedirs("/models", exist_ok=True)
    with pytest.raises(InputError, match="there is no file memory:"):
        flaxclip.load("memory://models/none.pt")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(InputError, match="pip install gcsfs"):
        flaxclip.load("gs://bucket/model.safetensors")


def test_convert_to_a_workdir_and_on_to_the_others(vocabulary, tmp_path, capsys):
    variables = variables_of(SIGLIP)
    tensors = huggingface_table(SIGLIP.model).to_theirs(variables)
    named = with_tokenizer(SIGLIP, file=vocabulary)
    export(named, variables, tmp_path / "theirs", "huggingface", overwrite=False)
    convert(Convert(str(tmp_path / "theirs"), tmp_path / "run", "flaxclip"))
    (tmp_path / "run").rename(tmp_path / "moved")
    model = flaxclip.load(tmp_path / "moved")
    assert_same(model, as_transformers(SIGLIP), variables)
    assert model.spec.tokenizer.file == str(tmp_path / "moved" / "spiece.model")

    convert(Convert(str(tmp_path / "moved"), tmp_path / "back", "huggingface"))
    back = safetensors.numpy.load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor, strict=True)

    capsys.readouterr()
    for source in ("moved", "back"):
        info(Info(str(tmp_path / source)))
        out = capsys.readouterr().out
        for text in (
            "gelu_tanh",
            "squash, bicubic, mean (0.5",
            "siglip, vocabulary in",
            "12 tokens",
        ):
            assert text in out


def test_nothing_is_overwritten_that_is_no_model_or_without_being_told(bare, tmp_path):
    def command(dst, overwrite=False):
        return Convert(str(bare), dst, "open_clip", model="ViT-tiny", overwrite=overwrite)

    convert(command(tmp_path / "out"))
    with pytest.raises(InputError, match="out exists\nname another folder, or add --overwrite"):
        convert(command(tmp_path / "out"))
    convert(command(tmp_path / "out", overwrite=True))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="home holds no model, so it is not replaced"):
        convert(command(tmp_path / "home", overwrite=True))
    with pytest.raises(InputError, match="holds the model itself"):
        convert(command(bare.parent, overwrite=True))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "epoch_32.safetensors", "home", "out",
    ]  # fmt: skip


def test_a_model_that_the_other_library_lacks_is_not_written(tmp_path):
    with pytest.raises(InputError, match="transformers has no model of a ResNet"):
        export(RESNET, variables_of(RESNET), tmp_path / "out", "huggingface", overwrite=False)
    with pytest.raises(InputError, match="open_clip takes such towers from timm by name"):
        export(SIGLIP, variables_of(SIGLIP), tmp_path / "out", "open_clip", overwrite=False)
    with pytest.raises(InputError, match="whose vocabulary is not known\nname its file with --tok"):
        export(SIGLIP, variables_of(SIGLIP), tmp_path / "out", "huggingface", overwrite=False)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_says_what_is_wrong_in_two_lines(bare):
    command = [sys.executable, "-m", "flaxclip.interop", "info", str(bare)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"flaxclip.interop: {bare} is a bare state dict")
    assert "Traceback" not in done.stderr
