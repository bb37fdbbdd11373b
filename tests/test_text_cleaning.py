"""How texts are cleaned: by whom the weights are, with ids stored from those libraries.

The ids are of `tests/parity/cleaning_reference.py`.
"""

import dataclasses
import gzip
import json
import typing
from pathlib import Path

import numpy as np
import pytest

from flaxclip.api import CLIPModel
from flaxclip.checkpoint.layout import save_variables
from flaxclip.data.tokenizers.load import load_tokenizer
from flaxclip.data.tokenizers.text_cleaning import clean, cleaning_of
from flaxclip.errors import InputError
from flaxclip.interop.big_vision import big_vision_table
from flaxclip.interop.export import export
from flaxclip.interop.foreign import find_foreign
from flaxclip.interop.huggingface.read_config import read_config as read_huggingface_config
from flaxclip.interop.open_clip.read_config import CONFIG_FILE
from flaxclip.interop.open_clip.read_config import read_config as read_open_clip_config
from flaxclip.interop.open_clip.write_config import open_clip_json
from flaxclip.interop.tokenizer_files import write_tokenizer
from flaxclip.models.inputs import TextCleaning, TokenizerConfig
from flaxclip.models.spec import ModelSpec
from flaxclip.models.variants import VARIANTS
from flaxclip.weights import open_weights
from tests.helpers.small_models import (
    CLIP,
    SIGLIP,
    SIGLIP2,
    as_transformers,
    variables_of,
    with_tokenizer,
)
from tests.helpers.unchecked_tokenizer import unchecked

GOLDEN = Path(__file__).parent / "golden" / "text_cleaning"
REFERENCE = json.loads(gzip.decompress((GOLDEN / "ids.json.gz").read_bytes()))
LENGTH, END = 40, 49407
SPIECE, GEMMA = str(GOLDEN / "spiece.model"), str(GOLDEN / "tokenizer.model")
GEMMA_JSON = str(GOLDEN / "tokenizer.json")
FILES = {"clip": [None], "siglip": [SPIECE], "siglip2": [GEMMA, GEMMA_JSON]}


@pytest.mark.parametrize(
    ("tokenizer", "file", "cleaning"),
    [
        (name, file, cleaning)
        for name, ways in REFERENCE["ids"].items()
        for file in FILES[name]
        for cleaning in ways
    ],
)
def test_ids_equal_those_of_the_library_whose_cleaning_it_is(tokenizer, file, cleaning):
    encode = load_tokenizer(TokenizerConfig(tokenizer, file, cleaning), LENGTH)
    rows = REFERENCE["ids"][tokenizer][cleaning]
    assert len(rows) > 60
    for name, row in rows.items():
        expected = np.array(row)
        if cleaning == "transformers_clip":  # which pads with the end marker
            last = np.flatnonzero(expected != END).max() + 1
            expected[last + 1 :] = 0
        np.testing.assert_array_equal(encode([REFERENCE["texts"][name]])[0], expected, name)


@pytest.mark.parametrize(
    ("cleaning", "expected"),
    [
        ("lower", "cats & dogs, world_wide οδος é"),
        ("whitespace", "Cats & dogs, World_wide ΟΔΟΣ É"),
        ("canonicalize", "cats dogs world wide οδος é"),
        ("transformers_siglip", "cats amp dogs worldwide οδος é"),
        ("transformers_siglip2", "cats &amp; dogs,  world_wide οδοσ é"),
        ("big_vision", "cats &amp; dogs,  world_wide ΟΔΟΣ É"),
        ("unicode_lower", "cats &amp; dogs,  world_wide οδος é"),
        ("none", "Cats &amp; dogs,  World_wide ΟΔΟΣ É"),
    ],
)
def test_each_cleaning_does_what_its_name_says(cleaning, expected):
    assert clean("Cats &amp; dogs,  World_wide ΟΔΟΣ É", cleaning) == expected


@pytest.mark.parametrize("cleaning", typing.get_args(TextCleaning))
def test_lone_surrogates_are_no_error(cleaning):
    assert "\ud800" not in clean("cat \ud800 dog", cleaning)


def test_a_model_that_does_not_say_means_what_it_always_did(tmp_path):
    texts = ["Two dogs, at_the  ΟΔΟΣ!", "fish &amp; chips"]
    for name, old in (("clip", "lower"), ("siglip", "canonicalize"), ("siglip2", "unicode_lower")):
        assert cleaning_of(name, None) == old
        file = FILES[name][0]
        np.testing.assert_array_equal(
            load_tokenizer(TokenizerConfig(name, file), LENGTH)(texts),
            load_tokenizer(TokenizerConfig(name, file, old), LENGTH)(texts),
        )
    # A file of a version that did not have the field.
    save_variables(tmp_path, SIGLIP2._asdict(), variables_of(SIGLIP2))
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    assert config["tokenizer"].pop("cleaning", 0) is None
    path.write_text(json.dumps(config))
    assert open_weights(str(tmp_path)).spec == SIGLIP2


def test_every_cleaning_that_a_model_can_have_is_known_to_a_tokenizer():
    for cleaning in typing.get_args(TextCleaning):
        name = "clip" if cleaning == "transformers_clip" else "siglip2"
        assert cleaning_of(name, cleaning) == cleaning


@pytest.mark.parametrize(
    ("tokenizer", "cleaning"),
    [("clip", "none"), ("siglip", "transformers_clip"), ("bert", "lower"), ("clip", "upper")],
)
def test_a_cleaning_that_a_tokenizer_does_not_have_is_refused(tokenizer, cleaning):
    with pytest.raises(InputError, match=rf"{cleaning}', and the tokenizer '{tokenizer}'\n.* can"):
        load_tokenizer(unchecked(name=tokenizer, file=SPIECE, cleaning=cleaning), LENGTH)


_SIGLIP2 = VARIANTS["ViT-B-32-SigLIP2-256"]
MODELS = {
    "CLIP": VARIANTS["ViT-B-32"],
    "SigLIP": ModelSpec(
        dataclasses.replace(_SIGLIP2.model, text=VARIANTS["ViT-B-16-SigLIP"].model.text),
        _SIGLIP2.preprocess,
        VARIANTS["ViT-B-16-SigLIP"].tokenizer,
    ),
    "SigLIP2": _SIGLIP2,
}


def read_open_clip(folder, name, text_cfg, tokenizer_class=None):
    """That model, read from open_clip's file with these fields of `text_cfg`."""
    contents = open_clip_json(MODELS[name])
    stated = contents["model_cfg"]["text_cfg"]
    for field in ("hf_tokenizer_name", "tokenizer_kwargs"):
        stated.pop(field, None)
    stated |= text_cfg
    path = folder / CONFIG_FILE
    path.write_text(json.dumps(contents))
    if tokenizer_class is not None:
        value = {"tokenizer_class": tokenizer_class}
        (folder / "tokenizer_config.json").write_text(json.dumps(value))
    return read_open_clip_config(path)


def named(name, **kwargs):
    return {"hf_tokenizer_name": name, "tokenizer_kwargs": kwargs}


@pytest.mark.parametrize(
    ("model", "text_cfg", "tokenizer_class", "expected"),
    [
        ("CLIP", {}, None, "lower"),
        ("CLIP", {"tokenizer_kwargs": {"clean": "canonicalize"}}, None, "canonicalize"),
        ("CLIP", {"tokenizer_kwargs": {"clean": "whitespace"}}, None, "whitespace"),
        ("CLIP", {"tokenizer_kwargs": {"reduction_mask": ""}}, None, "lower"),
        ("CLIP", named("openai/clip-vit-base-patch32"), "CLIPTokenizer", "lower"),
        ("SigLIP2", named("timm/x", clean="canonicalize"), "GemmaTokenizer", "canonicalize"),
        ("SigLIP2", named("timm/x", clean="lower"), "Siglip2Tokenizer", "lower"),
        # The default of its HFTokenizer; Siglip2Tokenizer then lower-cases.
        ("SigLIP2", named("timm/x"), "GemmaTokenizerFast", "whitespace"),
        ("SigLIP2", named("timm/x"), "Siglip2Tokenizer", "lower"),
        ("SigLIP", named("timm/x", clean="canonicalize"), "T5Tokenizer", "canonicalize"),
        ("SigLIP", named("timm/x", clean="canonicalize"), "SiglipTokenizer", "canonicalize"),
        # SigLipTokenizer, which takes no settings.
        ("SigLIP", {}, None, "canonicalize"),
    ],
)  # fmt: skip
def test_open_clips_configurations_are_cleaned_as_they_say(
    model, text_cfg, tokenizer_class, expected, tmp_path
):
    spec = read_open_clip(tmp_path, model, text_cfg, tokenizer_class)
    assert spec.tokenizer.name == MODELS[model].tokenizer.name
    assert cleaning_of(spec.tokenizer.name, spec.tokenizer.cleaning) == expected
    kwargs = text_cfg.get("tokenizer_kwargs", {})
    again = open_clip_json(spec)["model_cfg"]["text_cfg"].get("tokenizer_kwargs", {})
    if "clean" in kwargs:
        assert again == kwargs


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"reduction_mask": "syntax"}, "tokenizer_kwargs.reduction_mask"),
        ({"clean": "upper"}, "tokenizer_kwargs.clean"),
        ({"strip_sep_token": True}, "tokenizer_kwargs.strip_sep_token"),
        ({"additional_special_tokens": ["<x>"]}, "tokenizer_kwargs.additional_special_tokens"),
        ({"new_idea": 1}, "tokenizer_kwargs.new_idea"),
        ({"context_length": 60}, "tokenizer_kwargs.context_length is 60\nexpected .* 77"),
    ],
)
def test_settings_of_open_clips_tokenizers_that_we_lack_are_refused_by_name(
    kwargs, message, tmp_path
):
    with pytest.raises(InputError, match=message):
        read_open_clip(tmp_path, "CLIP", {"tokenizer_kwargs": kwargs})


def test_two_cleanings_that_do_not_amount_to_one_are_refused(tmp_path):
    text_cfg = named("timm/x", clean="lower")
    with pytest.raises(InputError, match=r"clean is 'lower', while .* SiglipTokenizer"):
        read_open_clip(tmp_path, "SigLIP", text_cfg, "SiglipTokenizer")


def test_named_siglips_are_cleaned_as_in_open_clips_configurations():
    for name, spec in VARIANTS.items():
        if "SigLIP" in name:
            cleaning = cleaning_of(spec.tokenizer.name, spec.tokenizer.cleaning)
            assert cleaning == "canonicalize", name


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        ("clip", None, ("clip", "transformers_clip")),
        ("clip", {"tokenizer_class": "CLIPTokenizerFast"}, ("clip", "transformers_clip")),
        ("siglip", None, ("siglip", "transformers_siglip")),
        ("siglip", {"tokenizer_class": "SiglipTokenizer"}, ("siglip", "transformers_siglip")),
        ("siglip", {"tokenizer_class": "T5TokenizerFast"}, ("siglip", "none")),
        ("siglip", {"tokenizer_class": "PreTrainedTokenizerFast"}, ("siglip", "none")),
        ("siglip", {"tokenizer_class": "GemmaTokenizer"}, ("siglip2", "none")),
        ("siglip", {"tokenizer_class": "Siglip2Tokenizer"}, ("siglip2", "transformers_siglip2")),
        ("siglip2", {"tokenizer_class": "GemmaTokenizer"}, ("siglip2", "transformers_siglip2")),
        ("siglip2", None, ("siglip2", "transformers_siglip2")),
    ],
)  # fmt: skip
def test_transformers_directories_are_cleaned_by_the_class_of_their_tokenizer(
    kind, settings, expected, tmp_path
):
    tokenizer = read_huggingface(tmp_path, kind, settings).tokenizer
    assert (tokenizer.name, tokenizer.cleaning) == expected


def read_huggingface(folder, kind, settings):
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    side = {"height": 224, "width": 224}
    if kind == "siglip2":
        side = {"height": 256, "width": 256}
    processor = {"size": side, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return read_huggingface_config(folder)[0]


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("siglip", {"tokenizer_class": "LlamaTokenizer"}, "tokenizer_class is 'LlamaTokenizer'"),
        ("clip", {"tokenizer_class": "T5Tokenizer"}, "of type clip is a T5Tokenizer"),
        (
            "siglip",
            {"tokenizer_class": "SiglipTokenizer", "do_lower_case": False},
            "do_lower_case is False",
        ),
    ],
)
def test_tokenizers_of_transformers_that_we_lack_are_refused_by_name(
    kind, settings, message, tmp_path
):
    with pytest.raises(InputError, match=message):
        read_huggingface(tmp_path, kind, settings)


@pytest.mark.parametrize("model", [None, "ViT-B-16-SigLIP2"])
def test_big_visions_weights_are_cleaned_as_big_vision_does(model, tmp_path):
    tensors = big_vision_table(SIGLIP.model, stacked=True).to_theirs(variables_of(SIGLIP))
    np.savez(tmp_path / "siglip.npz", **tensors)
    found = find_foreign(str(tmp_path / "siglip.npz"), model)
    assert found.spec.tokenizer.cleaning == "big_vision"


TEXTS = ["Two dogs, at_the beach.", "A Photo of a  CAT! ", "WORLD_WIDE"]


@pytest.mark.parametrize(
    ("spec", "file", "to", "differs"),
    [
        (CLIP, None, "huggingface", "transformers_clip there, in place of lower"),
        (as_transformers(CLIP), None, "huggingface", None),
        (SIGLIP, SPIECE, "huggingface", "transformers_siglip there, in place of canonicalize"),
        (SIGLIP2, GEMMA, "huggingface", "transformers_siglip2 there, in place of unicode_lower"),
        (as_transformers(SIGLIP2), GEMMA, "huggingface", None),
        (as_transformers(SIGLIP2), GEMMA_JSON, "huggingface", None),
        ("none", GEMMA, "huggingface", None),
        ("none", GEMMA_JSON, "huggingface", None),
        ("big_vision", GEMMA_JSON, "huggingface", None),
        ("transformers_siglip", GEMMA_JSON, "huggingface", "of stripped texts there"),
        ("canonicalize", GEMMA_JSON, "huggingface", "canonicalize without ftfy there"),
        ("canonicalize", GEMMA, "open_clip", None),
        (SIGLIP, SPIECE, "open_clip", None),
        ("canonicalize", GEMMA_JSON, "open_clip", None),
        ("none", GEMMA, "open_clip", "whitespace there, in place of none"),
        (as_transformers(CLIP), None, "open_clip", "lower there, in place of transformers_clip"),
    ],
)  # fmt: skip
def test_what_is_exported_is_cleaned_alike_or_said_not_to_be(spec, file, to, differs, tmp_path):
    if isinstance(spec, str):
        spec = with_tokenizer(SIGLIP2, cleaning=spec)
    spec = with_tokenizer(spec, file=file)
    ours = spec.tokenizer
    said = write_tokenizer(spec, tmp_path, to)
    assert [differs in line for line in said] == [True] * (differs is not None)
    if to == "huggingface" and ours.name == "siglip2":
        settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
        back = read_huggingface(tmp_path, "siglip", settings).tokenizer
        assert back.name == "siglip2"
        written = dataclasses.replace(back, file=str(tmp_path / Path(file).name))
        np.testing.assert_array_equal(
            load_tokenizer(written, LENGTH)(TEXTS), load_tokenizer(ours, LENGTH)(TEXTS)
        )


def test_a_tokenizer_json_that_is_the_tokenizer_comes_before_a_vocabulary_beside_it(tmp_path):
    text = dataclasses.replace(SIGLIP2.model.text, vocab_size=401)
    spec = SIGLIP2._replace(model=dataclasses.replace(SIGLIP2.model, text=text))
    spec = with_tokenizer(spec, cleaning="canonicalize", file=GEMMA_JSON)
    export(spec, variables_of(spec), tmp_path / "out", "huggingface", overwrite=False)
    (tmp_path / "out" / "tokenizer.model").write_bytes(Path(GEMMA).read_bytes())
    written = find_foreign(str(tmp_path / "out")).spec
    assert written.tokenizer.file == str(tmp_path / "out" / "tokenizer.json")
    tokens = CLIPModel(written, {}).tokenize(TEXTS)
    np.testing.assert_array_equal(tokens, CLIPModel(spec, {}).tokenize(TEXTS))


def test_a_loaded_model_tokenizes_as_its_configuration_says():
    spec = with_tokenizer(CLIP, cleaning="canonicalize")
    assert CLIPModel(spec, {}).tokenize(["a cat."]).tolist() == [
        [49406, 320, 2368, END, 0, 0, 0, 0, 0]
    ]
