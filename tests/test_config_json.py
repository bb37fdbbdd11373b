import dataclasses
import json

import pytest

from flaxclip.config_json import RunFields, from_json, to_json
from flaxclip.errors import InputError
from flaxclip.models.clip import CLIPConfig
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.variants import VARIANTS


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_comes_back_as_it_was(name):
    for part in VARIANTS[name]:
        assert from_json(type(part), to_json(part), "config.json") == part


def test_files_from_before_siglip_are_models_of_openai():
    config = json.loads(to_json(CLIPConfig()))
    for field in ("init_logit_scale", "init_logit_bias"):
        del config[field]
    for tower in ("vision", "text"):
        del config[tower]["norm_eps"], config[tower]["family"]
    assert from_json(CLIPConfig, json.dumps(config), "config.json") == CLIPConfig()


def test_a_resnet_from_before_it_was_called_a_family_is_no_convnext():
    config = json.loads(to_json(VARIANTS["RN50"].model))
    for field in ("family", "frozen_statistics"):
        del config["vision"][field]
    assert from_json(CLIPConfig, json.dumps(config), "config.json") == VARIANTS["RN50"].model


@pytest.mark.parametrize("name", ["ViT-B-32", "RN50", "ViT-B-16-SigLIP"])
def test_an_unknown_field_is_named_for_the_kind_of_tower_that_was_meant(name):
    config = dataclasses.asdict(VARIANTS[name].model)
    config["vision"]["depth"] = 3
    with pytest.raises(InputError) as error:
        from_json(CLIPConfig, json.dumps(config), "config.json")
    kind = type(VARIANTS[name].model.vision).__name__
    assert str(error.value).splitlines() == [
        "config.json is not a usable configuration",
        f"vision.{kind}.depth: Unexpected keyword argument",
    ]


def test_fields_of_a_run_are_checked_one_by_one():
    text = '{"format": 1, "steps": "many", "compute": {"unroll": 2}, "of_a_later_version": 0}'
    fields = RunFields(text, "run/config.json")
    assert fields.get("compute", ComputeConfig) == ComputeConfig(unroll=2)
    assert fields.get("batch_size", int, 256) == 256
    with pytest.raises(InputError, match=r"run/config\.json, field steps is not a usable"):
        fields.get("steps", int)
    with pytest.raises(InputError, match="it has no field 'model'"):
        fields.get("model", CLIPConfig)
