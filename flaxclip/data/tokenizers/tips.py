"""Captions to token ids for TIPSv2, by a vocabulary that the user has."""

from flaxclip.data.tokenizers.base import Tokenizer
from flaxclip.data.tokenizers.siglip import open_vocabulary
from flaxclip.data.tokenizers.text_cleaning import clean, cleaning_of
from flaxclip.errors import InputError


class TIPSTokenizer(Tokenizer):
    """TIPSv2's tokens: those of the lower-cased text, then padding; a longer text is cut.

    A text without any is the unknown token: of none at all, the mean that is the text's embedding
    would be no number, as it is in transformers.
    """

    def __init__(self, context_length: int, file: str | None, cleaning: str | None = None):
        """Read the vocabulary from `file`, a SentencePiece model or a tokenizer.json.

        Raises:
            InputError: no file is given, it is neither of these, or it lacks padding or the unknown
                token; or texts are not cleaned so.
        """
        if file is None:
            raise InputError(
                "tokenizer tips needs a file with its vocabulary, and the model has none\n"
                "name it with --tokenizer.file: the tokenizer.model or tokenizer.json from where "
                "the weights are from"
            )
        self.context_length = context_length
        self._vocabulary = open_vocabulary(file)
        self.vocab_size = self._vocabulary.size
        self._cleaning = str(cleaning_of("tips", cleaning))
        pad, unknown = self._vocabulary.find("<pad>"), self._vocabulary.unknown
        if pad is None or unknown is None:
            raise InputError(f"the vocabulary in {file} has no token <pad> or <unk>")
        if pad != 0:
            raise InputError(
                f"the vocabulary in {file} pads with {pad}\n"
                "expected 0, which the text tower does not see"
            )
        self._pad, self._unknown = pad, unknown

    def _ids(self, text: str) -> list[int]:
        return self._vocabulary.encode(clean(text, self._cleaning)) or [self._unknown]
