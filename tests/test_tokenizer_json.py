"""A tokenizer.json: the scores of its Unigram vocabulary are read as they are written."""

import json

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from flaxclip.data.tokenizers.load import load_tokenizer
from flaxclip.data.tokenizers.tokenizer_json import read_tokenizer_json
from flaxclip.models.inputs import TokenizerConfig

MARKERS = [(marker, 0.0) for marker in ("<s>", "<pad>", "</s>", "<unk>")]
# `.` `..` and `..` `.` weigh the same behind `▁hm`, and no more if the last bit of one is lost.
TIE = [("▁hm", -2.5), (".", -11.462023735046387), ("..", -7.5202765464782715)]


def write(path, pieces, byte_fallback=False):
    engine = tokenizers.Tokenizer(models.Unigram([*MARKERS, *pieces], 3, byte_fallback))
    engine.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    engine.add_special_tokens(["</s>", "<mask>"])
    engine.save(str(path))
    return path


def test_scores_are_those_of_the_file(tmp_path):
    numbers = np.random.default_rng(0).uniform(-20, 0, 2000).astype(np.float32)
    path = write(tmp_path / "tokenizer.json", [(f"p{i}", float(n)) for i, n in enumerate(numbers)])
    assert json.loads(read_tokenizer_json(path).to_str()) == json.loads(path.read_bytes())


@pytest.mark.parametrize("name", ["xlm_v", "mt5", "siglip"])
def test_of_two_splits_of_one_weight_the_one_of_transformers_5_is_taken(name, tmp_path):
    path = write(tmp_path / "tokenizer.json", TIE)
    ids = load_tokenizer(TokenizerConfig(name, str(path), "none"), 8)(["hm..."])[0].tolist()
    # transformers 5.24's XLMRobertaTokenizer (findings/unigram_scores.sh).
    assert ids[ids.index(4) :][:3] == [4, 5, 6]


def test_pieces_of_bytes_and_added_tokens_stay(tmp_path):
    pieces = [(f"<0x{byte:02X}>", -10.0 - byte / 7) for byte in range(256)]
    engine = read_tokenizer_json(write(tmp_path / "tokenizer.json", pieces, byte_fallback=True))
    assert engine.encode("é</s><mask>").tokens[-4:] == ["<0xC3>", "<0xA9>", "</s>", "<mask>"]
