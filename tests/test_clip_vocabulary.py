"""Directories of transformers whose tokenizer is not OpenAI's: the ids built in are not theirs."""

import dataclasses
import json

import fsspec
import pytest

from flaxclip.data.tokenizers.clip import transformers_clip_tokenizer
from flaxclip.errors import InputError
from flaxclip.interop.clip_vocabulary import check_clip_vocabulary
from flaxclip.interop.files import fetch
from flaxclip.interop.huggingface.read_config import read_config as read_huggingface_config
from flaxclip.interop.open_clip.read_config import read_config as read_open_clip_config
from flaxclip.interop.open_clip.write_config import open_clip_json
from tests.helpers.small_models import CLIP

MARKER = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


@pytest.fixture(scope="module")
def clips():
    """The contents of CLIP's tokenizer.json."""
    return json.loads(transformers_clip_tokenizer().to_str())


def write(folder, file, value):
    (folder / file).write_text(json.dumps(value))


def swapped(vocabulary):
    return vocabulary | {"cat</w>": vocabulary["dog</w>"], "dog</w>": vocabulary["cat</w>"]}


def test_clips_own_tokenizer_is_accepted_in_all_its_files(clips, tmp_path):
    check_clip_vocabulary(tmp_path)
    write(tmp_path, "tokenizer.json", clips)
    check_clip_vocabulary(tmp_path)
    check_clip_vocabulary(tmp_path, "TokenizersBackend")
    config = {
        "added_tokens_decoder": {
            "49406": MARKER | {"content": "<|startoftext|>", "special": True},
            "49407": MARKER | {"content": "<|endoftext|>", "special": True},
        },
        "additional_special_tokens": [],
        "extra_special_tokens": {"fill": "!"},
        "pad_token": "!",
    }
    write(tmp_path, "tokenizer_config.json", config)
    check_clip_vocabulary(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    write(tmp_path, "vocab.json", clips["model"]["vocab"])
    check_clip_vocabulary(tmp_path)


@pytest.mark.parametrize("file", ["tokenizer.json", "vocab.json"])
def test_another_vocabulary_is_refused_by_its_first_other_id(file, clips, tmp_path):
    vocabulary = swapped(clips["model"]["vocab"])
    model = clips["model"] | {"vocab": vocabulary}
    write(tmp_path, file, clips | {"model": model} if file == "tokenizer.json" else vocabulary)
    with pytest.raises(InputError) as error:
        check_clip_vocabulary(tmp_path)
    found, wanted = vocabulary["cat</w>"], vocabulary["dog</w>"]
    if found > wanted:  # the smaller of both comes first
        assert f"{file}: token 'cat</w>' has the id {found}\nexpected {wanted}" in str(error.value)
    else:
        assert f"{file}: token 'dog</w>' has the id {wanted}\nexpected {found}" in str(error.value)


def test_a_token_of_its_own_is_refused_wherever_it_is_said(clips, tmp_path):
    """As of textual inversion; transformers adds those of tokenizer_config.json when it loads."""
    added = [*clips["added_tokens"], MARKER | {"id": 49408, "content": "<my-cat>", "special": True}]
    write(tmp_path, "tokenizer.json", clips | {"added_tokens": added})
    with pytest.raises(InputError, match=r"tokenizer\.json has a token '<my-cat>' besides those"):
        check_clip_vocabulary(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    for field, tokens in (
        ("additional_special_tokens", ["<my-cat>"]),
        ("extra_special_tokens", {"cat_token": "<my-cat>"}),
        ("extra_special_tokens", [{"content": "<my-cat>"}]),
        ("added_tokens_decoder", {"49408": {"content": "<my-cat>"}}),
    ):
        write(tmp_path, "tokenizer_config.json", {field: tokens})
        with pytest.raises(
            InputError, match=r"tokenizer_config\.json has a token '<my-cat>' besid"
        ):
            check_clip_vocabulary(tmp_path)


def test_a_tokenizer_that_keeps_capitals_is_refused_if_its_file_alone_counts(clips, tmp_path):
    write(tmp_path, "tokenizer.json", clips | {"normalizer": {"type": "NFC"}})
    check_clip_vocabulary(tmp_path)  # CLIPTokenizer lower-cases whatever the file says
    with pytest.raises(InputError, match="normalizer does NFC\nexpected NFC, Replace, Lowercase"):
        check_clip_vocabulary(tmp_path, "TokenizersBackend")


@pytest.mark.parametrize("value", [{}, {"model": None}, {"model": {"type": "BPE"}}], ids=str)
def test_a_file_without_a_vocabulary_is_refused(value, tmp_path):
    write(tmp_path, "tokenizer.json", value)
    with pytest.raises(InputError, match="token '!' has the id None\nexpected 0"):
        check_clip_vocabulary(tmp_path)


@pytest.mark.parametrize("name", ["CLIPTokenizer", "CLIPTokenizerFast", "PreTrainedTokenizerFast"])
def test_a_model_of_type_clip_is_refused_with_another_vocabulary(name, clips, tmp_path):
    write(tmp_path, "config.json", {"model_type": "clip"})
    sizes = {"size": 224, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    write(tmp_path, "preprocessor_config.json", sizes)
    write(tmp_path, "tokenizer_config.json", {"tokenizer_class": name})
    write(tmp_path, "tokenizer.json", clips)
    spec, _ = read_huggingface_config(tmp_path)
    assert spec.tokenizer.cleaning == "transformers_clip"
    model = clips["model"] | {"vocab": swapped(clips["model"]["vocab"])}
    write(tmp_path, "tokenizer.json", clips | {"model": model})
    with pytest.raises(InputError, match="as in the vocabulary of OpenAI's CLIP"):
        read_huggingface_config(tmp_path)


def test_open_clip_reads_that_file_only_if_its_tokenizer_has_a_name(clips, tmp_path):
    config = open_clip_json(CLIP)
    path = tmp_path / "open_clip_config.json"
    model = clips["model"] | {"vocab": swapped(clips["model"]["vocab"])}
    write(tmp_path, "tokenizer.json", clips | {"model": model})
    write(tmp_path, path.name, config)
    assert read_open_clip_config(path).tokenizer == CLIP.tokenizer
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "openai/clip-vit-base-patch32"
    write(tmp_path, path.name, config)
    with pytest.raises(InputError, match="as in the vocabulary of OpenAI's CLIP"):
        read_open_clip_config(path)


def test_transformers_padding_is_refused_where_a_tower_would_see_it(tmp_path):
    text = dataclasses.replace(CLIP.model.text, family="mobileclip")
    spec = CLIP._replace(model=dataclasses.replace(CLIP.model, text=text))
    config = open_clip_json(spec)
    path = tmp_path / "open_clip_config.json"
    write(tmp_path, path.name, config)
    assert read_open_clip_config(path).tokenizer == spec.tokenizer
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "openai/clip-vit-base-patch32"
    write(tmp_path, path.name, config)
    with pytest.raises(InputError, match=r"hf_tokenizer_name is .* with no_causal_mask true"):
        read_open_clip_config(path)


def test_a_vocab_json_is_copied_with_weights_at_a_url(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = fsspec.filesystem("memory")
    for name in ("model.safetensors", "config.json", "vocab.json"):
        files.pipe(f"/vocab-json/{name}", b"{}")
    copied = fetch("memory://vocab-json")
    assert copied is not None
    assert sorted(path.name for path in copied.parent.iterdir()) == sorted(
        ["model.safetensors", "config.json", "vocab.json"]
    )
