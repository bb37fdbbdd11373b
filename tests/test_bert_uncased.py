"""CLIPA's tokenizer: the ids of open_clip's, with a vocabulary of the kind of BERT's."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from flaxclip.data.tokenizers.load import load_tokenizer
from flaxclip.errors import InputError
from flaxclip.models.inputs import TokenizerConfig

GOLDEN = Path(__file__).parent / "golden" / "bert_uncased"
STORED = json.loads(gzip.decompress((GOLDEN / "ids.json.gz").read_bytes()))


def tokenizer(file=GOLDEN / "vocab.txt", length=STORED["length"]):
    return load_tokenizer(TokenizerConfig("bert_uncased", str(file)), length)


@pytest.mark.parametrize("name", STORED["texts"])
def test_ids_are_those_of_open_clip(name):
    stored = STORED["texts"][name]
    expected = np.zeros(STORED["length"], np.int32)
    expected[: len(stored["ids"])] = stored["ids"]
    np.testing.assert_array_equal(tokenizer()([stored["text"]])[0], expected)


def test_a_tokenizer_json_has_the_same_vocabulary(tmp_path):
    tokens = (GOLDEN / "vocab.txt").read_text().split("\n")[:-1]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"model": {"type": "WordPiece", "vocab": vocabulary}}))
    texts = ["a photo of two dogs"]
    np.testing.assert_array_equal(tokenizer(path)(texts), tokenizer()(texts))
    path.write_text(json.dumps({"model": {"type": "BPE", "vocab": vocabulary}}))
    with pytest.raises(InputError, match="is of type BPE\nexpected WordPiece"):
        tokenizer(path)
    path.write_text("{}")
    with pytest.raises(InputError, match="cannot read the vocabulary"):
        tokenizer(path)


def test_a_text_leaves_room_for_the_separator_that_becomes_a_zero():
    [row], [truncated] = tokenizer(length=5).encode(["a a a a"])
    assert (row != 0).tolist() == [True] * 4 + [False]
    assert truncated
    [truncated] = tokenizer(length=5).encode(["a a a"])[1]
    assert not truncated


def test_what_cannot_be_made_is_refused():
    with pytest.raises(InputError, match="needs a file with its vocabulary"):
        load_tokenizer(TokenizerConfig("bert_uncased"), 32)
    with pytest.raises(InputError, match="expected at least 3"):
        tokenizer(length=2)
    with pytest.raises(InputError, match="with that one, it can be 'whitespace'"):
        load_tokenizer(TokenizerConfig("bert_uncased", "x", cleaning="big_vision"), 32)
