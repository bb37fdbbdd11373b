"""Whole models in and out: what a file does not say is asked for, never guessed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import flaxclip
from flaxclip.errors import InputError
from flaxclip.interop.archives.stored_tensor import StoredTensor
from flaxclip.interop.big_vision import big_vision_table
from flaxclip.interop.export import export
from flaxclip.interop.open_clip.names import open_clip_table
from flaxclip.interop.openai import config_from_shapes
from flaxclip.models.spec import ModelSpec
from flaxclip.models.variants import VARIANTS
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
    write_bare,
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


@pytest.fixture
def bare(tmp_path):
    return write_bare(tmp_path)


def test_a_bare_state_dict_cannot_tell_its_activation_so_the_user_must(bare):
    with pytest.raises(InputError) as error:
        flaxclip.load(bare)
    assert "does not tell whether the model was trained with QuickGELU or GELU" in str(error.value)
    assert "its shapes are those of: ViT-tiny" in str(error.value)
    tiny = VARIANTS["ViT-tiny"]
    assert_same(flaxclip.load(bare, model="ViT-tiny"), tiny, variables_of(tiny))
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
