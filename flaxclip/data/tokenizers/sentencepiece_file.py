"""A SentencePiece model as transformers' T5Tokenizer reads it (5.24), which makes other ids of some
texts than SentencePiece: words are tokenized one by one, markers spelt out are markers, and what
the vocabulary lacks is unknown, even if there are tokens for bytes.
"""

from collections.abc import Iterator
from pathlib import Path

import sentencepiece
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

_MARKERS = ("</s>", "<unk>", "<pad>")
# Numbers of fields in SentencePiece's `sentencepiece_model.proto`.
_NORMALIZER_SPEC = 3
_PRECOMPILED_CHARSMAP = 2


def t5_engine(file: str) -> tokenizers.Tokenizer:
    """The tokenizer, without the end marker that it puts behind a text."""
    content = Path(file).read_bytes()
    processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    ids = list(range(processor.get_piece_size()))
    pieces = zip(processor.id_to_piece(ids), processor.get_score(ids), strict=True)
    engine = tokenizers.Tokenizer(models.Unigram(list(pieces), processor.unk_id(), False))
    charsmap = precompiled_charsmap(content)
    if charsmap:
        engine.normalizer = normalizers.Precompiled(charsmap)
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    engine.add_special_tokens([m for m in _MARKERS if engine.token_to_id(m) is not None])
    return engine


def precompiled_charsmap(content: bytes) -> bytes:
    """The table by which a SentencePiece model normalizes characters; empty if it does not."""
    specification = next(_fields(content, _NORMALIZER_SPEC), b"")
    return next(_fields(specification, _PRECOMPILED_CHARSMAP), b"")


def _fields(message: bytes, wanted: int) -> Iterator[bytes]:
    """The contents of the fields with that number in a message of Protocol Buffers."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while place < len(message):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            varint()
            continue
        size = varint() if kind == 2 else {1: 8, 5: 4}[kind]
        place += size
        if number == wanted and kind == 2:
            yield message[place - size : place]
