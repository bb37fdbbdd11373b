"""The interface of tokenizers to text towers: rows of ids, all of one length."""

import abc
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int32

from flaxclip.errors import InputError


class Tokenizer(abc.ABC):
    """Texts to rows of ids. Must be picklable: worker processes hold a copy.

    Attributes:
        context_length: ids a row.
        vocab_size: ids that there are.
    """

    context_length: int
    vocab_size: int
    _end: int | None = None
    """The marker that ends every row, even if its text is cut off. If None, there is none."""
    _pad: int = 0

    @abc.abstractmethod
    def _ids(self, text: str) -> Sequence[int]:
        """All ids of one text, without the marker at the end."""

    def __call__(self, texts: Sequence[str]) -> Int32[np.ndarray, "batch length"]:
        """One row of `context_length` ids for each text; raises as `encode` does."""
        return self.encode(texts)[0]

    def encode(
        self, texts: Sequence[str]
    ) -> tuple[Int32[np.ndarray, "batch length"], Bool[np.ndarray, " batch"]]:
        """The rows of ids, and for each text True if it was too long and lost its end.

        Raises:
            InputError: `texts` is a single string, or holds something that is no string.
        """
        _check(texts)
        rows = np.full((len(texts), self.context_length), self._pad, np.int32)
        truncated = np.zeros(len(texts), bool)
        end = () if self._end is None else (self._end,)
        room = self.context_length - len(end)
        for number, text in enumerate(texts):
            ids = self._ids(text)
            truncated[number] = len(ids) > room
            ids = (*ids[:room], *end)
            rows[number, : len(ids)] = ids
        return rows, truncated


def _check(texts: Sequence[str]) -> None:
    """Raise InputError unless `texts` is a sequence of strings, and not itself a string."""
    if isinstance(texts, str):
        raise InputError(
            f"got one string, {texts[:40]!r}, where a list of strings is expected\n"
            "put it into a list: [text]"
        )
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(
                f"text {index} of {len(texts)} is of type {type(text).__name__}, not a string\n"
                f"found {text!r:.40}; expected every text to be a str, '' if there is none"
            )
