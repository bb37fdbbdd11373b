"""TIPSv2: its files, its second class token, and captions without a token."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict

import flaxclip
from flaxclip.data.tokenizers.load import load_tokenizer
from flaxclip.errors import InputError
from flaxclip.fine_tuning.parameter_rules import rate_multipliers
from flaxclip.interop.export import export
from flaxclip.models.clip import init_variables
from flaxclip.models.inputs import TokenizerConfig
from flaxclip.models.variants import VARIANTS
from tests.helpers import multilingual
from tests.helpers.small_models import with_tokenizer
from tests.helpers.tiny_run import train_on


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return str(multilingual.write_tips(tmp_path_factory.mktemp("vocabulary")))


def small(vocabulary, family="tips"):
    spec = VARIANTS["TIPSv2-B-14"]
    sizes = {"width": 32, "layers": 2, "heads": 4}
    vision = dataclasses.replace(
        spec.model.vision, **sizes, image_size=32, patch_size=8, family=family, mlp_ratio=2.75
    )
    text = dataclasses.replace(spec.model.text, **sizes, vocab_size=700, context_length=20)
    model = dataclasses.replace(spec.model, vision=vision, text=text, embed_dim=32)
    return spec._replace(model=model, tokenizer=TokenizerConfig("tips", vocabulary))


@pytest.fixture
def written(vocabulary, tmp_path):
    spec = small(vocabulary)
    variables = init_variables(jax.random.key(0), spec.model)
    export(spec, variables, tmp_path / "out", "huggingface", overwrite=False)
    return spec, variables, tmp_path / "out"


def test_what_is_written_is_read_again(written):
    spec, variables, folder = written
    model = flaxclip.load(folder)
    preprocess = dataclasses.replace(spec.preprocess, transparency="white", crop_rounding="down")
    assert model.spec.preprocess == preprocess
    found = model.config.init_logit_scale
    assert found == pytest.approx(spec.model.init_logit_scale)
    assert model.config == dataclasses.replace(spec.model, init_logit_scale=found)
    before, after = flatten_dict(variables), flatten_dict(model.variables)
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, rtol=1e-6, err_msg=str(name))


def test_published_files_have_no_temperature_and_may_have_other_names(written):
    spec, variables, folder = written
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    del tensors["temperature"]
    tensors = {
        n.replace("c_fc", "fc1").replace("c_proj", "fc2") if n.startswith("vision") else n: x
        for n, x in tensors.items()
    }
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    model = flaxclip.load(folder)
    np.testing.assert_allclose(model.params["logit_scale"], spec.model.init_logit_scale, rtol=1e-6)
    ours = variables["params"]["vision"]["transformer"]["blocks"]["mlp"]["fc1"]["kernel"]
    theirs = model.params["vision"]["transformer"]["blocks"]["mlp"]["fc1"]["kernel"]
    np.testing.assert_array_equal(theirs, ours)


@pytest.mark.parametrize(
    ("tower", "change", "message"),
    [
        ("text_config", {"hidden_act": "gelu"}, "text_config.hidden_act"),
        ("text_config", {"scale_sqrt_depth": False}, "text_config.scale_sqrt_depth"),
        ("vision_config", {"num_register_tokens": 4}, "vision_config.num_register_tokens"),
        (None, {"temperature_init_value": 0.0}, "temperature_init_value is 0.0"),
    ],
)
def test_others_are_refused_by_field(tower, change, message, written):
    folder = written[2]
    config = json.loads((folder / "config.json").read_text())
    (config if tower is None else config[tower]).update(change)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message):
        flaxclip.load(folder)


def test_open_clip_has_none(written, tmp_path):
    spec, variables, _ = written
    with pytest.raises(InputError, match=r"open_clip 3\.3 has no TIPSv2"):
        export(spec, variables, tmp_path / "other", "open_clip", overwrite=False)


def test_a_text_without_tokens_is_the_unknown_one(vocabulary):
    rows = load_tokenizer(TokenizerConfig("tips", vocabulary), 5)(["", " ", "A cat"])
    np.testing.assert_array_equal(rows[:2], [[1, 0, 0, 0, 0]] * 2)
    np.testing.assert_array_equal(
        rows[2], load_tokenizer(TokenizerConfig("tips", vocabulary), 5)(["a CAT"])[0]
    )
    with pytest.raises(InputError, match="needs a file with its vocabulary"):
        load_tokenizer(TokenizerConfig("tips"), 5)


@pytest.mark.parametrize("family", ["tips", "tips_gated"])
def test_a_run_trains_both_class_tokens(family, vocabulary, tmp_path):
    spec = small(vocabulary, family)
    flags = "--optim.layer-decay", "^vision/", "0.5"
    model, changed = train_on(tmp_path, spec, *flags)
    assert with_tokenizer(model.spec, file=None) == with_tokenizer(spec, file=None)
    names = flatten_dict(model.variables, sep="/")
    assert changed == names.keys()
    rates = rate_multipliers((), [("^vision/", 0.5)], model.params)["vision"]
    assert rates["register_embedding"] == rates["class_embedding"] == 0.125
    scale = rates["transformer"]["blocks"]["scale_1"]["scale"]
    np.testing.assert_array_equal(np.ravel(scale), [0.25, 0.5])
