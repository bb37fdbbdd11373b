"""Tensors of `CLIPModel` in and out of our tree; that the numbers agree is in `test_models.py`."""

import math

import jax
import ml_dtypes
import numpy as np
import pytest

from flaxclip.errors import InputError
from flaxclip.interop.huggingface.names import has_huggingface
from flaxclip.models.clip import CLIPConfig, abstract_variables, init_params
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.variants import VARIANTS
from flaxclip.models.vision_transformer import ViTConfig
from tests.helpers.peer_params import (
    huggingface_shapes,
    params_from_huggingface,
    params_to_huggingface,
)
from tests.parity.clip_cases import TINY, random_tensors

CONFIG = CLIPConfig(
    vision=ViTConfig(**TINY["vision"]),
    text=TextConfig(**TINY["text"]),
    embed_dim=TINY["embed_dim"],
)
KEY_WEIGHT = "text_model.encoder.layers.1.self_attn.k_proj.weight"


@pytest.fixture
def tensors():
    return random_tensors(huggingface_shapes(CONFIG))


def test_every_tensor_is_used_and_comes_back_as_it_was(tensors):
    params = params_from_huggingface(tensors, CONFIG)
    back = params_to_huggingface(params, CONFIG)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor, strict=True)
        assert back[name].flags.c_contiguous, name


def test_the_tree_is_that_of_a_fresh_model(tensors):
    def shapes(tree):
        return jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), tree)

    fresh = jax.eval_shape(lambda key: init_params(key, CONFIG), jax.random.key(0))
    assert shapes(params_from_huggingface(tensors, CONFIG)) == shapes(fresh)


TRANSFORMERS = [name for name, spec in VARIANTS.items() if has_huggingface(spec.model)]


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_tensors_of_a_variant_hold_as_many_numbers_as_its_parameters(name):
    same_shapes = VARIANTS[name.removesuffix("-quickgelu")].model  # traced once for both
    expected = sum(x.size for x in jax.tree.leaves(abstract_variables(same_shapes)))
    assert sum(map(math.prod, huggingface_shapes(VARIANTS[name].model).values())) == expected


def test_transformers_has_no_clip_with_a_resnet():
    with pytest.raises(InputError, match="transformers has no model of a ResNet"):
        huggingface_shapes(VARIANTS["RN50"].model)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_floating_point_types_become_float32(tensors, dtype):
    params = params_from_huggingface({n: x.astype(dtype) for n, x in tensors.items()}, CONFIG)
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype("float32")}
    expected = tensors[KEY_WEIGHT].astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(params_to_huggingface(params, CONFIG)[KEY_WEIGHT], expected)


def test_position_ids_of_older_files_are_accepted_if_they_count(tensors):
    name = "text_model.embeddings.position_ids"
    ids = np.arange(CONFIG.text.context_length)[None]
    params_from_huggingface(tensors | {name: ids}, CONFIG)
    with pytest.raises(InputError, match=f"{name} does not count 0, 1, 2"):
        params_from_huggingface(tensors | {name: ids[:, ::-1]}, CONFIG)


def test_a_missing_tensor_is_named(tensors):
    del tensors[KEY_WEIGHT]
    with pytest.raises(InputError, match=f"1 tensor missing: {KEY_WEIGHT}\n"):
        params_from_huggingface(tensors, CONFIG)


def test_unknown_tensors_are_named_such_as_those_of_one_layer_more(tensors):
    more = {
        name.replace("layers.1.", "layers.2."): x
        for name, x in tensors.items()
        if name.startswith("text_model.encoder.layers.1.")
    }
    with pytest.raises(InputError, match=r"16 tensors unknown: text_model.encoder.layers.2.layer_"):
        params_from_huggingface(tensors | more, CONFIG)


@pytest.mark.parametrize("name", [KEY_WEIGHT, "text_projection.weight", "logit_scale"])
def test_a_tensor_of_another_shape_is_named_even_if_it_has_as_many_numbers(tensors, name):
    tensors[name] = tensors[name].reshape(-1, 1)
    with pytest.raises(InputError, match=rf"tensor {name} has shape \[\d+, 1\]\nexpected \["):
        params_from_huggingface(tensors, CONFIG)


def test_quantised_weights_are_refused(tensors):
    tensors[KEY_WEIGHT] = tensors[KEY_WEIGHT].astype(np.int8)
    with pytest.raises(InputError, match=f"tensor {KEY_WEIGHT} is of type int8"):
        params_from_huggingface(tensors, CONFIG)


def test_parameters_of_another_model_are_not_exported(tensors):
    params = params_from_huggingface(tensors, CONFIG)
    with pytest.raises(InputError, match=r"params/vision/position_embedding has shape \[10, 60"):
        params_to_huggingface(
            params, CLIPConfig(vision=ViTConfig(**TINY["vision"] | {"image_size": 32}))
        )
    del params["vision"]["ln_pre"]
    with pytest.raises(InputError, match="2 parameters missing: params/vision/ln_pre/bias, "):
        params_to_huggingface(params, CONFIG)
