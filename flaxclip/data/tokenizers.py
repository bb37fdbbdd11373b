"""Captions to token ids, with the ids that published models were trained on.

Every tokenizer is a `Tokenizer`, and a config names it as one of `TOKENIZERS`.
"""

import functools
import gzip
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import regex
import tokenizers
from jaxtyping import Bool, Int32
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from flaxclip.data.bert_tokenizer import BertTokenizer
from flaxclip.data.siglip_tokenizer import SigLIPTokenizer
from flaxclip.data.text_cleaning import check_texts, mend
from flaxclip.errors import InputError

_CLIP_MERGES = Path(__file__).parent / "clip_bpe" / "bpe_simple_vocab_16e6.txt.gz"
_CLIP_VOCAB_SIZE = 49_408
_START, _END = "<start_of_text>", "<end_of_text>"

# The third-party `regex`, not the engine's own splitter: open_clip splits with it, and the two
# disagree about some 17,000 of Unicode's newer letters.
_CLIP_WORDS = regex.compile(
    rf"{_START}|{_END}|'s|'t|'re|'ve|'m|'ll|'d|\p{{L}}+|\p{{N}}|[^\s\p{{L}}\p{{N}}]+",
    regex.IGNORECASE,
)


@runtime_checkable
class Tokenizer(Protocol):
    """Texts to rows of ids, all of one length. Must be picklable: worker processes hold a copy."""

    context_length: int
    vocab_size: int

    def __call__(self, texts: Sequence[str]) -> Int32[np.ndarray, "batch length"]:
        """One row of `context_length` ids for each text; `encode` without its second result."""
        ...

    def encode(
        self, texts: Sequence[str]
    ) -> tuple[Int32[np.ndarray, "batch length"], Bool[np.ndarray, " batch"]]:
        """The rows of ids, and for each text whether it was too long and lost its end.

        Raises:
            InputError: `texts` is a single string, or holds something that is no string.
        """
        ...


class CLIPTokenizer:
    """OpenAI's byte-pair encoding of lower-cased text (Radford et al. 2021, section 2.4).

    A row is the start marker (49406), the text's ids, the end marker (49407), then zeros. A text
    that is too long is cut so that the end marker stays last: the text tower pools there.

    Ids equal those of open_clip's `SimpleTokenizer`, oddities included: the literal texts
    `<start_of_text>` and `<end_of_text>` become the markers themselves, unless punctuation
    touches them from the left, while `<|endoftext|>` is spelt out like any other text. Lone
    surrogates become U+FFFD.
    """

    vocab_size: int = _CLIP_VOCAB_SIZE

    def __init__(self, context_length: int = 77):
        """Build from the merges that come with the package.

        Raises:
            InputError: `context_length` leaves no room for text between the two markers.
        """
        if context_length < 3:
            raise InputError(
                f"context length {context_length} is too short\n"
                "expected at least 3: start marker, one token of text, end marker"
            )
        self.context_length = context_length

    def __call__(self, texts: Sequence[str]) -> Int32[np.ndarray, "batch length"]:
        """One row of `context_length` ids for each text; raises as `encode` does."""
        return self.encode(texts)[0]

    def encode(
        self, texts: Sequence[str]
    ) -> tuple[Int32[np.ndarray, "batch length"], Bool[np.ndarray, " batch"]]:
        """The rows of ids, and for each text whether it was too long and lost its end.

        Raises:
            InputError: `texts` is a single string, or holds something that is no string.
        """
        check_texts(texts)
        tokens = np.zeros((len(texts), self.context_length), np.int32)
        truncated = np.zeros(len(texts), bool)
        for row, text in enumerate(texts):
            ids = list(_ids_of_word(_START))
            for word in _CLIP_WORDS.findall(_clean(text)):
                ids += _ids_of_word(word)
            truncated[row] = len(ids) >= self.context_length
            ids = [*ids[: self.context_length - 1], *_ids_of_word(_END)]
            tokens[row, : len(ids)] = ids
        return tokens, truncated


TOKENIZERS = ("clip", "siglip", "siglip2", "bert")


def load_tokenizer(
    name: str, context_length: int, file: str | None = None, vocab_size: int | None = None
) -> Tokenizer:
    """The tokenizer of that name, making rows of `context_length` ids.

    Args:
        name: one of `TOKENIZERS`.
        context_length: ids a row.
        file: the vocabulary of SigLIP's, SigLIP 2's and BERT's.
        vocab_size: ids that the text tower has embeddings for. None: all that there are.

    Raises:
        InputError: no tokenizer has that name, it cannot make rows that short, or not read `file`,
            or it makes ids that the text tower does not know.
    """
    match name:
        case "clip":
            tokenizer: Tokenizer = CLIPTokenizer(context_length)
        case "siglip" | "siglip2":
            tokenizer = SigLIPTokenizer(context_length, file, keep_punctuation=name == "siglip2")
        case "bert":
            tokenizer = BertTokenizer(context_length, file)
        case _:
            raise InputError(
                f"unknown tokenizer {name!r}\nexpected one of: {', '.join(TOKENIZERS)}"
            )
    # JAX would take the last embedding for every id beyond it, and say nothing.
    if vocab_size is not None and tokenizer.vocab_size > vocab_size:
        raise InputError(
            f"the vocabulary{f' in {file}' if file else ''} has {tokenizer.vocab_size:,} tokens, "
            f"but the text tower knows {vocab_size:,}\n"
            "it is another one than the model was trained with; name that one's file, or set "
            "--model.text.vocab-size for a new model"
        )
    return tokenizer


def clip_vocabulary(start: str, end: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Ids of CLIP's tokens in open_clip's order, and the merges; the markers are named as given."""
    # A stable order of the 256 byte letters: sorted, they are what GPT-2's table enumerates.
    letters = sorted(ByteLevel.alphabet())
    merge_count = _CLIP_VOCAB_SIZE - 2 * len(letters) - 2
    with gzip.open(_CLIP_MERGES, "rt", encoding="utf-8") as lines:
        # The first line is a comment; the file goes on after the merges that CLIP uses.
        merges = [tuple(line.split()) for line in islice(lines, 1, 1 + merge_count)]
    names = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        *(left + right for left, right in merges),
        start,
        end,
    ]
    return {name: index for index, name in enumerate(names)}, merges


def _ids_of_word(word: str) -> tuple[int, ...]:
    """From memory where it has come before, as most words of captions have.

    Not words of unusual length, of which many would take much memory.
    """
    return _kept_ids(word) if len(word) <= 32 else _encode_word(word)


def _encode_word(word: str) -> tuple[int, ...]:
    return tuple(_clip_engine().encode([word], is_pretokenized=True).ids)


_kept_ids = functools.lru_cache(2**16)(_encode_word)


@functools.cache
def _clip_engine() -> tokenizers.Tokenizer:
    """Byte-pair encoder of single words."""
    vocab, merges = clip_vocabulary(_START, _END)
    engine = tokenizers.Tokenizer(BPE(vocab, merges, end_of_word_suffix="</w>"))
    engine.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    engine.add_special_tokens([_START, _END])
    return engine


def _clean(text: str) -> str:
    """Mend, squeeze whitespace, lower-case."""
    return " ".join(mend(text).split()).lower()
