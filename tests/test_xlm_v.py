"""MetaCLIP 2: XLM-V's tokens, and captions that are read out at their first end marker."""

import dataclasses
import gzip
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from flaxclip.data.tokenizers.load import load_tokenizer
from flaxclip.errors import InputError
from flaxclip.models.clip import CLIP
from flaxclip.models.inputs import TokenizerConfig
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.variants import VARIANTS
from tests.helpers.small_models import CLIP as SMALL
from tests.helpers.small_models import variables_of

GOLDEN = Path(__file__).parent / "golden" / "xlm_v"
STORED = json.loads(gzip.decompress((GOLDEN / "ids.json.gz").read_bytes()))
PAD, END = 1, 2


def tokenizer(file=GOLDEN / "tokenizer.json", length=STORED["length"]):
    return load_tokenizer(TokenizerConfig("xlm_v", str(file)), length)


@pytest.mark.parametrize("name", STORED["texts"])
def test_ids_are_those_of_open_clip(name):
    stored = STORED["texts"][name]
    expected = np.full(STORED["length"], PAD, np.int32)
    expected[: len(stored["ids"])] = stored["ids"]
    np.testing.assert_array_equal(tokenizer()([stored["text"]])[0], expected)


def test_what_cannot_be_made_is_refused(tmp_path):
    with pytest.raises(
        InputError, match=r"needs a file, and the model has none\n.* its tokenizer.json"
    ):
        load_tokenizer(TokenizerConfig("xlm_v"), 77)
    with pytest.raises(InputError, match=r"and the model has .*sentencepiece.bpe.model"):
        tokenizer(tmp_path / "sentencepiece.bpe.model")
    with pytest.raises(InputError, match="expected at least 3"):
        tokenizer(length=2)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="cannot read the vocabulary"):
        tokenizer(tmp_path / "tokenizer.json")


def test_a_caption_is_read_out_at_its_first_end_marker_or_at_position_0():
    text = dataclasses.replace(SMALL.model.text, end_id=END)
    spec = SMALL._replace(model=dataclasses.replace(SMALL.model, text=text))
    variables, model = variables_of(spec), CLIP(spec.model)

    def embed(*ids):
        return model.apply(variables, jnp.asarray([ids]), method="encode_text")

    ended = embed(0, 9, 8, END, 1, 1)
    # A causal tower: what comes later does not matter, not even a higher id or a second end.
    np.testing.assert_allclose(embed(0, 9, 8, END, 40000, END), ended, rtol=0, atol=1e-6)
    assert abs(embed(0, 9, 7, END, 1, 1) - ended).max() > 1e-4
    np.testing.assert_allclose(embed(0, 9, 8, 7, 6, 5), embed(0, 3, 3, 3, 3, 3), rtol=0, atol=1e-6)


def test_an_end_that_no_caption_can_have_is_refused():
    with pytest.raises(InputError, match='end_id is 99, family is "clip" and vocab_size 50'):
        TextConfig(vocab_size=50, end_id=99)
    with pytest.raises(InputError, match='end_id is 2, family is "siglip"'):
        TextConfig(end_id=2, family="siglip")


def test_named_models_have_the_vocabulary_and_the_end_of_xlm_v():
    for name, spec in VARIANTS.items():
        if "worldwide" in name:
            own = (901_629, END, "xlm_v")
            if "ViT-L-14" in name:
                own = (250_100, 1, "mt5")
            text = spec.model.text
            assert (text.vocab_size, text.end_id, spec.tokenizer.name) == own
