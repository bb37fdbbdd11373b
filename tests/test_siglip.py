"""SigLIP's towers, and head widths other than 64: numbers equal to open_clip's and timm's."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec

from flaxclip.errors import InputError
from flaxclip.models.clip import (
    CLIP,
    CLIPConfig,
    abstract_variables,
    init_variables,
    logical_axes,
)
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.vision_transformer import ViTConfig
from flaxclip.sharding import MeshConfig, make_mesh, mesh_shardings
from tests.helpers.open_clip_configs import CONFIGS, SIGLIP_CONFIG
from tests.parity.clip_cases import random_inputs
from tests.parity.foreign_params import from_open_clip, from_timm_siglip
from tests.parity.open_clip_cases import CASES, TEXT, random_tensors

READERS = {"bigG": from_open_clip, "siglip": from_timm_siglip}


@pytest.fixture(scope="module")
def reference():
    with np.load(Path(__file__).parent / "golden" / "open_clip_reference.npz") as arrays:
        return dict(arrays)


def stored_variables(name, reference):
    shapes = json.loads(str(reference[f"{name}/shapes"]))
    tensors = READERS[name](random_tensors(shapes), CONFIGS[name])
    return jax.tree.map(jnp.asarray, tensors)


def stored_inputs(name):
    return tuple(map(jnp.asarray, random_inputs({"vision": CASES[name], "text": TEXT}, 6)))


@pytest.mark.parametrize("name", CONFIGS)
def test_embeddings_equal_those_stored_from_open_clip(name, reference):
    config, variables = CONFIGS[name], stored_variables(name, reference)
    fresh = abstract_variables(config)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, fresh)
    zimg, ztxt, _ = jax.jit(CLIP(config).apply)(variables, *stored_inputs(name))
    np.testing.assert_allclose(zimg, reference[f"{name}/zimg"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(ztxt, reference[f"{name}/ztxt"], rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def siglip(reference):
    return stored_variables("siglip", reference)


def test_divided_over_devices_the_embeddings_are_the_same(siglip, reference):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    params = siglip["params"]
    shapes = abstract_variables(SIGLIP_CONFIG)["params"]
    shardings = mesh_shardings(logical_axes(SIGLIP_CONFIG), shapes, mesh)
    query = shardings["vision"]["pool"]["attention"]["query"]["kernel"]
    assert query.spec == PartitionSpec("fsdp", "tensor", None)
    with jax.set_mesh(mesh):
        variables = {"params": jax.device_put(params, shardings)}
        zimg, ztxt, _ = jax.jit(CLIP(SIGLIP_CONFIG).apply)(variables, *stored_inputs("siglip"))
    np.testing.assert_allclose(zimg, reference["siglip/zimg"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(ztxt, reference["siglip/ztxt"], rtol=0, atol=1e-5)


def test_every_token_and_its_position_count_padding_too(siglip):
    _, tokens = stored_inputs("siglip")

    def encode(positions):
        text = siglip["params"]["text"] | {"position_embedding": positions}
        variables = {"params": siglip["params"] | {"text": text}}
        return CLIP(SIGLIP_CONFIG).apply(variables, tokens, method="encode_text")

    positions = siglip["params"]["text"]["position_embedding"]
    jacobian = jax.jit(jax.jacobian(encode))(positions)
    assert np.linalg.norm(jacobian, axis=(1, 3)).min() > 1e-4


def test_captions_that_are_not_padded_are_refused(siglip):
    _, tokens = stored_inputs("siglip")
    with pytest.raises(InputError, match=r"captions of 8 tokens .* trained with 13\npad them"):
        CLIP(SIGLIP_CONFIG).apply(siglip, tokens[:, :8], method="encode_text")


def test_pixels_beyond_the_last_whole_patch_are_not_seen(siglip):
    images, _ = stored_inputs("siglip")

    def encode(images):
        return CLIP(SIGLIP_CONFIG).apply(siglip, images, method="encode_image")

    seen = 28
    changed = images.at[:, seen:].set(0).at[:, :, seen:].set(255)
    np.testing.assert_array_equal(encode(changed), encode(images))


def test_unrolling_the_layers_changes_nothing(siglip):
    inputs = stored_inputs("siglip")
    outputs = [
        jax.jit(CLIP(SIGLIP_CONFIG, ComputeConfig(unroll=unroll)).apply)(siglip, *inputs)
        for unroll in (1, 2)
    ]
    for one, other in zip(*outputs, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


def test_a_map_head_that_does_not_fit_the_embedding_is_refused():
    with pytest.raises(InputError, match="embed_dim 64 is not the image tower's width 60"):
        dataclasses.replace(SIGLIP_CONFIG, embed_dim=64)


# Initialisation: big_vision, `models/vit.py` and `models/proj/image_text/text_transformer.py`.


def test_parameters_are_initialized_as_in_big_vision():
    config = CLIPConfig(
        vision=ViTConfig(
            image_size=64, patch_size=8, width=256, layers=3, heads=4, mlp_ratio=3, family="siglip"
        ),
        text=TextConfig(
            context_length=40, vocab_size=500, width=192, layers=2, heads=3, family="siglip"
        ),
        embed_dim=256,
        init_logit_scale=float(np.log(10)),
        init_logit_bias=-10.0,
    )
    fresh = jax.jit(init_variables, static_argnums=1)(jax.random.key(0), config)["params"]
    fresh = {name: np.asarray(x) for name, x in flatten_dict(fresh, sep="/").items()}
    assert fresh["logit_bias"] == -10
    np.testing.assert_allclose(np.exp(fresh["logit_scale"]), 10, rtol=1e-6)
    for tower, w, mlp in (("vision", 256, 768), ("text", 192, 768)):
        bounds = {"attention": (6 / (2 * w)) ** 0.5, "mlp": (6 / (w + mlp)) ** 0.5}
        for name, x in fresh.items():
            if not name.startswith(tower):
                continue
            layer = next((layer for layer in bounds if f"/{layer}/" in name), None)
            if layer and name.endswith("kernel"):
                assert 0.99 * bounds[layer] < abs(x).max() <= bounds[layer], name
            elif "/mlp/" in name:
                np.testing.assert_allclose(x.std(), 1e-6, rtol=5 / (2 * x.size) ** 0.5)
            elif name.endswith("position_embedding") or name == "text/token_embedding":
                np.testing.assert_allclose(x.std(), w**-0.5, rtol=5 / (2 * x.size) ** 0.5)
            elif name.endswith("bias"):
                np.testing.assert_array_equal(x, 0, err_msg=name)
