"""The tokenizer against ids stored from open_clip (`tests/parity/tokenizer_reference.py`)."""

import gzip
import hashlib
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import flaxclip.data.tokenizers
from flaxclip.data.tokenizers.clip import CLIPTokenizer
from flaxclip.data.tokenizers.load import load_tokenizer
from flaxclip.errors import InputError
from flaxclip.models.inputs import TokenizerConfig
from tests.helpers.unchecked_tokenizer import unchecked

START, END = 49406, 49407
A_PHOTO_OF_A_CAT = [START, 320, 1125, 539, 320, 2368, END]
REFERENCE = json.loads(
    gzip.decompress((Path(__file__).parent / "golden" / "tokenizer_ids.json.gz").read_bytes())
)


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer()


def padded(ids: list[int], length: int = 77) -> list[int]:
    return ids + [0] * (length - len(ids))


def test_merges_are_the_published_ones():
    path = (
        Path(flaxclip.data.tokenizers.__file__).parent / "clip_bpe" / "bpe_simple_vocab_16e6.txt.gz"
    )
    assert hashlib.md5(path.read_bytes()).hexdigest() == "933b7abbbbde62c36f02f0e6ccde464f"


def test_a_known_text_has_the_published_ids_and_is_padded_with_zeros(tokenizer):
    tokens = tokenizer(["a photo of a cat"])
    assert tokens.dtype == np.int32
    assert tokens.tolist() == [padded(A_PHOTO_OF_A_CAT)]
    assert (tokenizer.context_length, tokenizer.vocab_size) == (77, 49408)


def test_ids_equal_open_clips_on_real_captions(tokenizer):
    captions, ids = zip(*REFERENCE["captions"], strict=True)
    assert len(set(captions)) >= 2_000
    np.testing.assert_array_equal(tokenizer(captions), [padded(row) for row in ids])


@pytest.mark.parametrize("name", REFERENCE["hostile"])
def test_ids_equal_open_clips_on_hostile_text(tokenizer, name):
    text, ids = REFERENCE["hostile"][name]
    assert tokenizer([text]).tolist() == [padded(ids)]


def test_truncation_is_reported_for_each_text_and_keeps_the_end_marker_last(tokenizer):
    fits, too_long = " ".join(["cat"] * 75), " ".join(["cat"] * 76)
    tokens, truncated = tokenizer.encode(["a cat", fits, too_long, ""])
    assert truncated.tolist() == [False, False, True, False]
    assert tokens[1].tolist() == tokens[2].tolist() == [START] + [2368] * 75 + [END]
    assert tokens[3].tolist() == padded([START, END])


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (3, [START, 320, END]),
        (6, [START, 320, 1125, 539, 320, END]),
        (7, A_PHOTO_OF_A_CAT),
        (128, padded(A_PHOTO_OF_A_CAT, 128)),
    ],
)
def test_another_context_length_cuts_or_pads_the_same_ids(length, expected):
    tokens, truncated = CLIPTokenizer(length).encode(["a photo of a cat"])
    assert tokens.tolist() == [expected]
    assert truncated.tolist() == [length < len(A_PHOTO_OF_A_CAT)]


def test_no_texts_give_no_rows(tokenizer):
    tokens, truncated = tokenizer.encode([])
    assert tokens.shape == (0, 77)
    assert truncated.shape == (0,)


def test_a_pickled_copy_gives_the_same_ids(tokenizer):
    texts = [text for text, _ in REFERENCE["hostile"].values()]
    copy = pickle.loads(pickle.dumps(tokenizer))
    np.testing.assert_array_equal(copy(texts), tokenizer(texts))


IN_A_WORKER = """
import pickle, sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

tokenizer = pickle.load(sys.stdin.buffer)
texts = ["a photo of a cat", "two dogs"]
expected = tokenizer(texts)
with ProcessPoolExecutor(1, mp_context=get_context(sys.argv[1])) as pool:
    received = pool.submit(tokenizer, texts).result()
assert (received == expected).all()
print(expected.tolist())
"""


# In a program of its own: whatever other tests' threads hold is held for ever in a fork of this.
@pytest.mark.parametrize("start_method", ["spawn", "fork"])
def test_worker_processes_can_call_it_after_the_parent_has(tokenizer, start_method):
    done = subprocess.run(
        [sys.executable, "-c", IN_A_WORKER, start_method],
        input=pickle.dumps(tokenizer),
        stdout=subprocess.PIPE,
        check=True,
        timeout=300,
    )
    expected = tokenizer(["a photo of a cat", "two dogs"])
    assert json.loads(done.stdout) == expected.tolist()


def test_a_single_string_is_refused_with_the_remedy(tokenizer):
    with pytest.raises(InputError, match=r"one string, 'a photo of a cat'.*\n.*\[text\]"):
        tokenizer("a photo of a cat")


def test_something_that_is_no_string_is_refused(tokenizer):
    # TypeError: jaxtyping's own, where signatures are checked.
    with pytest.raises((InputError, TypeError), match=r"float|Sequence"):
        tokenizer([float("nan")])


def test_an_unknown_name_is_refused_and_the_known_ones_listed():
    assert isinstance(load_tokenizer(TokenizerConfig("clip"), 32), CLIPTokenizer)
    with pytest.raises(InputError, match=r"unknown tokenizer 't5'\nexpected one of: clip"):
        load_tokenizer(unchecked(name="t5"), 77)


def test_a_context_with_no_room_for_text_is_refused():
    with pytest.raises(InputError, match="context length 2 is too short"):
        load_tokenizer(TokenizerConfig("clip"), 2)
