"""Long-CLIP: 248 positions, of which the first 20 are in a tensor of their own."""

import dataclasses

import numpy as np
import pytest
import safetensors.numpy

import flaxclip
from flaxclip.errors import InputError
from flaxclip.interop.long_clip import FIXED
from flaxclip.interop.open_clip.names import open_clip_table
from flaxclip.models.clip import CLIPConfig
from flaxclip.models.spec import ModelSpec
from flaxclip.models.variants import VARIANTS
from tests.helpers.small_models import TEXT, VISION
from tests.parity.open_clip_cases import random_tensors

CONFIG = CLIPConfig(VISION, dataclasses.replace(TEXT, context_length=31, vocab_size=90), 24)


@pytest.fixture
def tensors(monkeypatch):
    """Of a small Long-CLIP, whose name is known."""
    monkeypatch.setitem(VARIANTS, "LongCLIP-small", ModelSpec(CONFIG))
    tensors = random_tensors(open_clip_table(CONFIG).their_shapes())
    return tensors | {"positional_embedding_res": tensors["positional_embedding"] + 1}


def test_positions_are_those_of_the_first_tensor_up_to_20_then_of_the_second(tensors, tmp_path):
    path = tmp_path / "longclip.safetensors"
    safetensors.numpy.save_file(tensors, path)
    model = flaxclip.load(path, model="LongCLIP-small")
    positions = model.params["text"]["position_embedding"]
    first, second = tensors["positional_embedding"], tensors["positional_embedding_res"]
    np.testing.assert_array_equal(positions[:FIXED], first[:FIXED])
    np.testing.assert_array_equal(positions[FIXED:], second[FIXED:])
    # What the authors' forward pass adds, by its two masks.
    mask = np.arange(31)[:, None] < 20
    expected = tensors["token_embedding.weight"][3] + first * mask + second * ~mask
    ours = np.asarray(model.params["text"]["token_embedding"])[3] + np.asarray(positions)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)


def test_a_file_that_does_not_say_its_name_is_refused_with_the_names_that_fit(tensors, tmp_path):
    path = tmp_path / "longclip.safetensors"
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(InputError, match="its shapes are those of: LongCLIP-small"):
        flaxclip.load(path)


def test_positions_of_different_shapes_are_refused(tensors, tmp_path):
    path = tmp_path / "longclip.safetensors"
    tensors["positional_embedding_res"] = tensors["positional_embedding_res"][:-1]
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(InputError, match=r"_res is of shape \[30, 64\], and .* of \[31, 64\]"):
        flaxclip.load(path, model="LongCLIP-small")


@pytest.mark.parametrize("name", ["LongCLIP-B-16", "LongCLIP-L-14"])
def test_named_models_are_openais_with_248_positions(name):
    config = VARIANTS[name].model
    base = VARIANTS[name.replace("LongCLIP", "ViT") + "-quickgelu"].model
    assert config.text.context_length == 248
    assert dataclasses.replace(config.text, context_length=77) == base.text
    assert config.vision == base.vision
