"""What all tokenizers do with captions before they take them apart."""

import html
from collections.abc import Sequence

import ftfy

from flaxclip.errors import InputError


def mend(text: str) -> str:
    """Mend mojibake and resolve HTML entities (twice: `&amp;lt;`), as open_clip does."""
    # Most captions are plain ASCII, in which there is nothing to mend: half of the work saved.
    if not (text.isascii() and text.isprintable()) or "&" in text:
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return text


def check_texts(texts: Sequence[str]) -> None:
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
