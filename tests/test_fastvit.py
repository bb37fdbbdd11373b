"""FastViTs while they are trained, and with merged branches."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import flaxclip
from flaxclip.api import encode_image
from flaxclip.checkpoint.layout import save_variables
from flaxclip.errors import InputError
from flaxclip.interop.__main__ import Convert, convert
from flaxclip.interop.export import export
from flaxclip.interop.name_table import unflatten
from flaxclip.interop.open_clip.names import open_clip_table
from flaxclip.interop.open_clip.write_config import open_clip_json
from flaxclip.models.clip import CLIPConfig, abstract_variables
from flaxclip.models.spec import ModelSpec
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.trunks.fastvit import FastViTConfig
from flaxclip.models.trunks.fastvit_merging import merge_tower
from flaxclip.models.trunks.mobile_vit import MobileViTConfig
from flaxclip.models.trunks.vitamin import ViTaminConfig
from flaxclip.models.variants import VARIANTS
from tests.helpers.small_models import CLIP as SPEC
from tests.helpers.small_models import variables_of
from tests.helpers.trunk_configs import CONFIGS
from tests.parity.open_clip_cases import random_tensors

FASTVITS = ["fastvit", "fastvit_large"]
TEXT = TextConfig(20, 49408, 32, 1, 2, 2.0, "gelu", family="mobileclip")


def trained(config):
    """Weights and statistics as large as a trained model's."""
    table = open_clip_table(config)
    flat = dict(table.to_ours(random_tensors(table.their_shapes())))
    return jax.tree.map(jnp.asarray, unflatten(flat))


def images_of(config, count=2):
    side = config.vision.image_size
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)


def merge(config, variables):
    params, statistics = variables["params"], variables["batch_stats"]
    vision, *merged = merge_tower(config.vision, params["vision"], statistics["vision"])
    return dataclasses.replace(config, vision=vision), {
        "params": params | {"vision": merged[0]},
        "batch_stats": {"vision": merged[1]},
    }


@pytest.mark.parametrize("name", FASTVITS)
def test_merged_branches_compute_the_same(name):
    config = CONFIGS[name]
    variables, images = trained(config), images_of(config)
    merged_config, merged = merge(config, variables)
    fresh = abstract_variables(merged_config)
    assert jax.tree.map(jnp.shape, merged) == jax.tree.map(jnp.shape, fresh)
    np.testing.assert_allclose(
        encode_image(merged, images, ModelSpec(merged_config)),
        encode_image(variables, images, ModelSpec(config)),
        rtol=0,
        atol=1e-5,
    )
    with pytest.raises(InputError, match="merged already"):
        merge(merged_config, merged)


@pytest.fixture(scope="module")
def small():
    """A MobileCLIP2-S0 but for its text tower, which timm's name describes."""
    spec = VARIANTS["MobileCLIP2-S0"]
    config = CLIPConfig(dataclasses.replace(spec.model.vision, image_size=32), TEXT, 16)
    return spec._replace(model=config)


def test_convert_merges_branches_of_what_open_clip_reads(small, tmp_path):
    variables, images = trained(small.model), images_of(small.model)
    export(small, variables, tmp_path / "theirs", "open_clip", overwrite=False)
    command = Convert(
        str(tmp_path / "theirs"), tmp_path / "merged", "flaxclip", merge_branches=True
    )
    with pytest.raises(InputError, match="builds no such models\nleave it out; there, timm"):
        convert(dataclasses.replace(command, to="open_clip"))
    convert(command)
    merged = flaxclip.load(tmp_path / "merged")
    assert merged.config.vision == dataclasses.replace(small.model.vision, merged=True)
    np.testing.assert_allclose(
        encode_image(merged.variables, images, merged.spec),
        encode_image(variables, images, small),
        rtol=0,
        atol=1e-5,
    )
    with pytest.raises(InputError, match=r"branches merged.*\nopen_clip takes such towers"):
        export(merged.spec, merged.variables, tmp_path / "back", "open_clip", overwrite=False)
    save_variables(tmp_path / "vit", SPEC._asdict(), variables_of(SPEC))
    with pytest.raises(InputError, match="--merge-branches is for FastViTs"):
        convert(dataclasses.replace(command, src=str(tmp_path / "vit")))


def test_a_state_dict_with_merged_branches_is_told_by_its_names(small, tmp_path):
    config = dataclasses.replace(
        small.model, vision=dataclasses.replace(small.model.vision, merged=True)
    )
    tensors = random_tensors(open_clip_table(config).their_shapes())
    assert "visual.trunk.stages.3.pos_emb.reparam_conv.weight" in tensors
    safetensors.numpy.save_file(tensors, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(open_clip_json(small)))
    model = flaxclip.load(tmp_path)
    assert model.config == config
    table = open_clip_table(config)
    for name, tensor in table.to_theirs(model.variables).items():
        np.testing.assert_array_equal(tensor, tensors[name])


def test_shapes_that_no_fastvit_has_are_refused():
    with pytest.raises(InputError, match="halves its input 5 times: choose a multiple of 32"):
        FastViTConfig(image_size=48)
    with pytest.raises(InputError, match="3 stages\nexpected 4 or 5"):
        FastViTConfig(layers=(1, 1, 1))
    with pytest.raises(InputError, match=r"width 30 makes heads.*\nchoose a multiple of 4"):
        FastViTConfig(width=30)
    with pytest.raises(InputError, match="multiple of MobileCLIP-B's patch size, 16"):
        MobileViTConfig(image_size=40)
    with pytest.raises(InputError, match="width 18 is not divisible by 4"):
        MobileViTConfig(width=18, heads=3)
    with pytest.raises(InputError, match="a ViTamin halves its input four times"):
        ViTaminConfig(image_size=40)
