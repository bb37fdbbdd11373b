"""Runs whose image towers are of `models/trunks/`, from weights to a checkpoint that is loaded."""

import dataclasses

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from flaxclip.models.clip import CLIPConfig
from flaxclip.models.spec import ModelSpec
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.trunks.fastvit import FastViTConfig
from flaxclip.models.trunks.mobile_vit import MobileViTConfig
from flaxclip.models.trunks.vitamin import ViTaminConfig
from flaxclip.models.variants import VARIANTS
from tests.helpers.tiny_run import train_on

TOWERS = {
    "fastvit": FastViTConfig(32, 4, (1, 1, 1, 1)),
    "mobile_vit": MobileViTConfig(32, 16, 1, 2),
    "vitamin": ViTaminConfig(32, 16, 1, 2, 8),
}
TEXT = TextConfig(20, 49408, 16, 1, 2, 2.0, "gelu", family="mobileclip")


@pytest.mark.parametrize("name", TOWERS)
def test_a_run_starts_from_weights_and_what_it_saves_is_loaded(name, tmp_path):
    spec = ModelSpec(CLIPConfig(TOWERS[name], TEXT, 16), VARIANTS["MobileCLIP2-S0"].preprocess)
    flags = "--optim.freeze", "^text/", "--optim.layer-decay", "^vision/", "0.9"
    model, changed = train_on(tmp_path, spec, *flags)
    assert model.spec == spec
    names = flatten_dict(model.variables, sep="/")
    assert changed == {name for name in names if not name.startswith("params/text/")}
    zimg = model.encode_image(np.zeros((1, 32, 32, 3), np.uint8))
    np.testing.assert_allclose(np.linalg.norm(zimg, axis=-1), 1, rtol=1e-5)


def test_frozen_statistics_stay(tmp_path):
    tower = dataclasses.replace(TOWERS["mobile_vit"], frozen_statistics=True)
    spec = ModelSpec(CLIPConfig(tower, TEXT, 16))
    _, changed = train_on(tmp_path, spec, "--lora", "join", "--lora-rank", "2")
    assert changed == {f"params/vision/stem/join{n}/kernel" for n in (1, 2)}
