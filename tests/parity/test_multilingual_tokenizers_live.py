"""Tokens of text towers of many languages, by transformers and by us.

pip install transformers torch sentencepiece
python -m pytest tests/parity/test_multilingual_tokenizers_live.py
"""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from flaxclip.data.tokenizers.load import load_tokenizer
from flaxclip.models.inputs import TokenizerConfig
from tests.helpers import multilingual

transformers = pytest.importorskip("transformers", reason="transformers is a peer")

LENGTH = 40
STORED = json.loads(
    gzip.decompress((Path(__file__).parents[1] / "golden" / "xlm_v" / "ids.json.gz").read_bytes())
)
HOSTILE = [stored["text"] for stored in STORED["texts"].values()]
KINDS = {
    "XLM-R": ("xlm_v", multilingual.write_xlm_r, "XLMRobertaTokenizer", {"bos_token": "<s>"}),
    "RoBERTa": ("xlm_v", multilingual.write_roberta, "RobertaTokenizer", {"bos_token": "<s>"}),
    "mT5": ("mt5", multilingual.write_mt5, "T5Tokenizer", {"extra_ids": 0}),
    "NLLB": ("nllb", multilingual.write_nllb, "NllbTokenizer", {"bos_token": "<s>"}),
    "NLLB in French": (
        "nllb",
        multilingual.write_nllb,
        "NllbTokenizer",
        {"bos_token": "<s>", "src_lang": "fra_Latn"},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_ids_of_captions_and_hostile_strings(kind, tmp_path):
    name, write, their_class, settings = KINDS[kind]
    if name == "mt5":
        pytest.importorskip("google.protobuf", reason="transformers reads SentencePiece by it")
    file = write(tmp_path)
    multilingual.write_settings(tmp_path, their_class, **settings)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert type(theirs).__name__ == their_class
    texts = [*multilingual.CAPTIONS, *HOSTILE, "a </s> b <pad> c <unk>"]
    assert len(multilingual.CAPTIONS) == 2000
    expected = theirs(
        texts, max_length=LENGTH, padding="max_length", truncation=True, return_tensors="np"
    ).input_ids
    language = settings.get("src_lang")
    ours = load_tokenizer(TokenizerConfig(name, str(file), "none", language), LENGTH)(texts)
    different = [t for t, a, b in zip(texts, ours, expected, strict=True) if list(a) != list(b)]
    assert not different, different[:5]
    np.testing.assert_array_equal(ours, expected)
    assert len(np.unique(ours)) > 300
