"""Towers as ONNX and StableHLO: what they compute is what the model does, for any batch."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from flaxclip.api import encode_image, encode_text
from flaxclip.errors import InputError
from flaxclip.interop.graphs.write_graphs import write_graphs
from flaxclip.models.clip import CLIPConfig, init_variables
from flaxclip.models.text_transformer import TextConfig
from tests.helpers.small_models import CLIP, GELU, RESNET, SIGLIP, with_tokenizer

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
jaxpr_to_onnx = pytest.importorskip("flaxclip.interop.graphs.jaxpr_to_onnx")

SPECS = {"clip": CLIP, "gelu": GELU, "siglip": SIGLIP, "resnet": RESNET}


def variables_for(spec):
    return jax.jit(init_variables, static_argnums=1)(jax.random.key(0), spec.model)


def inputs(spec, count):
    rng = np.random.default_rng(count)
    side, text = spec.model.vision.image_size, spec.model.text
    pixels = rng.integers(0, 256, (count, side, side, 3)).astype(np.uint8)
    return pixels, rng.integers(0, text.vocab_size, (count, text.context_length)).astype(np.int32)


def expected(spec, variables, pixels, tokens):
    pixels, tokens = jnp.asarray(pixels), jnp.asarray(tokens)
    return encode_image(variables, pixels, spec), encode_text(variables, tokens, spec)


def run_onnx(folder, name, array):
    session = onnxruntime.InferenceSession(folder / f"{name}.onnx")
    (input_name,) = [x.name for x in session.get_inputs()]
    return session.run(["embedding"], {input_name: array})[0]


def test_onnx_has_the_text_towers_of_many_languages_and_a_second_class_token(tmp_path):
    """Their positions count tokens, are sines, or biases of attention; which names do not tell."""
    towers = {
        "xlm_roberta": ("gelu", {"positions": 14}),
        "nllb": ("relu", {}),
        "mt5": ("gelu_tanh", {}),
        "tips": ("relu", {}),
    }
    small = {"context_length": 9, "vocab_size": 50, "width": 64, "layers": 2, "heads": 2}
    vision = dataclasses.replace(CLIP.model.vision, family="tips_gated", activation="gelu")
    for family, (activation, more) in towers.items():
        text = TextConfig(**small, activation=activation, family=family, **more)
        model = CLIPConfig(vision=vision, text=text, embed_dim=64)
        spec = CLIP._replace(model=model)
        variables = variables_for(spec)
        write_graphs(spec, variables, tmp_path / family, "onnx")
        pixels, tokens = inputs(spec, 3)
        tokens[0, 5:] = text.traits.padding
        zimg, ztxt = expected(spec, variables, pixels, tokens)
        found = run_onnx(tmp_path / family, "text", tokens)
        np.testing.assert_allclose(found, ztxt, rtol=0, atol=1e-5, err_msg=family)
    found = run_onnx(tmp_path / family, "image", pixels)
    np.testing.assert_allclose(found, zimg, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SPECS)
def test_onnx_computes_what_the_towers_do(name, tmp_path, vocabulary):
    spec = SPECS[name]
    if spec.tokenizer.name != "clip":
        spec = with_tokenizer(spec, file=vocabulary)
    variables = variables_for(spec)
    lines = write_graphs(spec, variables, tmp_path / "out", "onnx")
    assert [line.split(":")[0] for line in lines] == ["image.onnx", "text.onnx"]
    for count in (1, 3):
        arrays = inputs(spec, count)
        for tower, array, z in zip(
            ("image", "text"), arrays, expected(spec, variables, *arrays), strict=True
        ):
            found = run_onnx(tmp_path / "out", tower, array)
            np.testing.assert_allclose(found, z, rtol=0, atol=1e-5)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["preprocess"]["mean"] == list(spec.preprocess.mean)
    model = onnx.load(tmp_path / "out" / "image.onnx")
    onnx.checker.check_model(model)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts["image_size"] == str(spec.model.vision.image_size)
    assert float(facts["logit_scale"]) == pytest.approx(spec.model.init_logit_scale)


def test_weights_of_8_bits_take_less_room_and_say_what_they_cost(tmp_path):
    variables = variables_for(CLIP)
    whole = write_graphs(CLIP, variables, tmp_path / "whole", "onnx")
    small = write_graphs(CLIP, variables, tmp_path / "small", "onnx", int8_weights=True)
    sizes = [(tmp_path / name / "text.onnx").stat().st_size for name in ("whole", "small")]
    assert sizes[1] < 0.3 * sizes[0]
    cosines = [float(line.rsplit(" ", 1)[1]) for line in (*whole, *small)]
    assert cosines[:2] == [1.0, 1.0]
    assert all(0.99 < cosine <= 1 for cosine in cosines[2:])
    tokens = inputs(CLIP, 5)[1]
    whole, small = (run_onnx(tmp_path / name, "text", tokens) for name in ("whole", "small"))
    assert 1e-5 < np.abs(whole - small).max() < 0.05


def test_stablehlo_computes_what_the_towers_do_and_is_for_every_platform(tmp_path):
    pytest.importorskip("flatbuffers")
    variables = variables_for(CLIP)
    write_graphs(CLIP, variables, tmp_path / "out", "stablehlo")
    for count in (1, 3):
        arrays = inputs(CLIP, count)
        for tower, array, z in zip(
            ("image", "text"), arrays, expected(CLIP, variables, *arrays), strict=True
        ):
            loaded = export.deserialize(
                bytearray((tmp_path / "out" / f"{tower}.stablehlo").read_bytes())
            )
            assert loaded.platforms == ("cpu", "cuda", "tpu")
            np.testing.assert_allclose(loaded.call(array), z, rtol=0, atol=1e-5)


def test_what_is_not_converted_is_named(tmp_path, monkeypatch):
    argument = jax.ShapeDtypeStruct((*export.symbolic_shape("batch"), 3), jnp.float32)
    with pytest.raises(InputError, match="the tower computes 'sort', which is not converted"):
        jaxpr_to_onnx.Converter().model(jnp.sort, argument, "x")
    with pytest.raises(InputError, match="8 bits are of ONNX alone"):
        write_graphs(CLIP, {}, tmp_path / "out", "stablehlo", int8_weights=True)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"needs the package onnxruntime\npip install 'flaxclip\["):
        write_graphs(CLIP, {}, tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists()
