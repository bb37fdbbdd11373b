"""Captions to token ids for OpenAI's CLIP, by the merges that come with the package."""

import functools
import gzip
from itertools import islice
from pathlib import Path

import regex
import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from flaxclip.data.tokenizers.base import Tokenizer
from flaxclip.data.tokenizers.text_cleaning import clean, cleaning_of
from flaxclip.errors import InputError

_CLIP_MERGES = Path(__file__).parent / "clip_bpe" / "bpe_simple_vocab_16e6.txt.gz"
_CLIP_VOCAB_SIZE = 49_408
_START, _END = "<start_of_text>", "<end_of_text>"
TRANSFORMERS_START, TRANSFORMERS_END = "<|startoftext|>", "<|endoftext|>"

# The third-party `regex`, not the engine's own splitter: open_clip splits with it, and the two
# disagree about some 17,000 of Unicode's newer letters.
_CLIP_WORDS = regex.compile(
    rf"{_START}|{_END}|'s|'t|'re|'ve|'m|'ll|'d|\p{{L}}+|\p{{N}}|[^\s\p{{L}}\p{{N}}]+",
    regex.IGNORECASE,
)


class CLIPTokenizer(Tokenizer):
    """OpenAI's byte-pair encoding (Radford et al. 2021, section 2.4).

    A row is the start marker (49406), the text's ids, the end marker (49407), then zeros. A text
    that is too long is cut so that the end marker stays last: the text tower pools there.

    Ids equal those of open_clip's `SimpleTokenizer` with the same `clean`, oddities included: the
    literal texts `<start_of_text>` and `<end_of_text>` become the markers themselves, unless
    punctuation touches them from the left, while `<|endoftext|>` is spelt out like any other text.
    With the cleaning `transformers_clip` they equal those of transformers' `CLIPTokenizer`, where
    it is the other way round: `<|startoftext|>` and `<|endoftext|>` become the markers. Its padding
    is the end marker, here as elsewhere 0: the text tower is read out before it.
    """

    vocab_size = _CLIP_VOCAB_SIZE
    _end = _CLIP_VOCAB_SIZE - 1

    def __init__(self, context_length: int = 77, cleaning: str | None = None):
        """Build from the merges that come with the package.

        Raises:
            InputError: `context_length` leaves no room for text between the two markers, or
                CLIP's texts are not cleaned so.
        """
        if context_length < 3:
            raise InputError(
                f"context length {context_length} is too short\n"
                "expected at least 3: start marker, one token of text, end marker"
            )
        self.context_length = context_length
        own = cleaning_of("clip", cleaning)
        assert own is not None, "only BERT's has no name"
        self._cleaning = own

    def _ids(self, text: str) -> list[int]:
        ids = [_CLIP_VOCAB_SIZE - 2]
        text = clean(text, self._cleaning)
        if self._cleaning == "transformers_clip":
            return ids + _transformers_engine().encode(text, add_special_tokens=False).ids
        for word in _CLIP_WORDS.findall(text):
            ids += _ids_of_word(word)
        return ids


def clip_vocabulary(start: str, end: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Ids of CLIP's tokens in open_clip's order, and the merges; the markers are named as given."""
    # A stable order of the 256 byte letters: sorted, they are what GPT-2's table enumerates.
    letters = sorted(ByteLevel.alphabet())
    merge_count = _CLIP_VOCAB_SIZE - 2 * len(letters) - 2
    with gzip.open(_CLIP_MERGES, "rt", encoding="utf-8") as lines:
        # The first line is a comment; the file goes on after the merges that CLIP uses.
        pairs = (line.split() for line in islice(lines, 1, 1 + merge_count))
        merges = [(left, right) for left, right in pairs]
    names = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        *(left + right for left, right in merges),
        start,
        end,
    ]
    return {name: index for index, name in enumerate(names)}, merges


def _ids_of_word(word: str) -> tuple[int, ...]:
    """The ids of a word, cached, since most words of captions come again.

    Words of unusual length are not cached: many of them would take much memory.
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


def transformers_clip_tokenizer() -> tokenizers.Tokenizer:
    """CLIP's tokenizer as in transformers, without the padding."""
    vocab, merges = clip_vocabulary(TRANSFORMERS_START, TRANSFORMERS_END)
    tokenizer = tokenizers.Tokenizer(
        BPE(
            vocab,
            merges,
            unk_token=TRANSFORMERS_END,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="removed", invert=True),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.add_special_tokens([TRANSFORMERS_START, TRANSFORMERS_END])
    end, start = ((name, vocab[name]) for name in (TRANSFORMERS_END, TRANSFORMERS_START))
    tokenizer.post_processor = processors.RobertaProcessing(
        end, start, trim_offsets=False, add_prefix_space=False
    )
    return tokenizer


_transformers_engine = functools.cache(transformers_clip_tokenizer)
