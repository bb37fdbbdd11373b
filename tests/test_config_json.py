import dataclasses
import json

import pytest

from flaxclip.config_json import from_json, to_json
from flaxclip.errors import InputError
from flaxclip.models.clip import CLIPConfig
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
