"""Cleaning of texts before they are tokenized, named after the libraries that do it.

lower, whitespace, canonicalize: open_clip's `clean` (3.3.0, `tokenizer.py`). All fix mojibake,
resolve HTML entities and squeeze whitespace; `lower` also lower-cases, `canonicalize` also makes
spaces of underscores and removes all other punctuation.

transformers_clip, transformers_siglip, transformers_siglip2: those of transformers 5.24, which do
not fix mojibake. `CLIPTokenizer` composes letters with their accents, squeezes whitespace and
lower-cases; `SiglipTokenizer` lower-cases and removes punctuation, underscores too ("World_wide"
becomes "worldwide", in open_clip "world wide"); `Siglip2Tokenizer` lower-cases letter by letter, so
that a final sigma is treated like any other.

big_vision: its `lower` and `tokenize` (`pp/ops_text.py`) call `tf.strings.lower`, which lower-cases
ASCII alone.

unicode_lower: lower-cases by Unicode, and nothing else.

none: no cleaning. For transformers' `GemmaTokenizer`, and files that clean by themselves.
"""

import html
import string

import ftfy
from tokenizers import normalizers

from flaxclip.errors import InputError
from flaxclip.models.inputs import TextCleaning

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_PUNCTUATION_BUT_UNDERSCORE = str.maketrans("_", " ", string.punctuation.replace("_", ""))
_ASCII_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_SPACE = "\u2581"
_LETTER_BY_LETTER = normalizers.Lowercase()

_OPEN_CLIP: tuple[TextCleaning, ...] = ("lower", "whitespace", "canonicalize")
_OTHERS: tuple[TextCleaning, ...] = (
    "transformers_siglip", "transformers_siglip2", "big_vision", "unicode_lower", "none",
)  # fmt: skip
# The first is what a model means whose configuration does not say.
_CLEANINGS: dict[str, tuple[TextCleaning, ...]] = {
    "clip": (*_OPEN_CLIP, "transformers_clip"),
    "siglip": ("canonicalize", "lower", "whitespace", *_OTHERS),
    "siglip2": ("unicode_lower", *_OPEN_CLIP, *_OTHERS),
    "tips": ("transformers_siglip2", *_OPEN_CLIP, "unicode_lower", "big_vision"),
    **dict.fromkeys(
        ("xlm_v", "mt5", "nllb", "bert_uncased"), ("whitespace", "lower", "canonicalize", "none")
    ),
}


def cleaning_of(tokenizer: str, cleaning: str | None) -> TextCleaning | None:
    """`cleaning`, or if it is None the default of `tokenizer`; that of LiT's has no name.

    Raises:
        InputError: texts of that tokenizer are not cleaned so.
    """
    known = _CLEANINGS.get(tokenizer, ())
    if cleaning is None:
        return known[0] if known else None
    if cleaning not in known:
        raise InputError(
            f"tokenizer.cleaning is {cleaning!r}, and the tokenizer {tokenizer!r}\nwith that one, "
            f"it can be {', '.join(map(repr, known)) or 'None alone'}"
        )
    return known[known.index(cleaning)]


def clean(text: str, cleaning: str) -> str:
    """Clean a text before it is tokenized. Lone surrogates become U+FFFD."""
    match cleaning:
        case "lower":
            return " ".join(fix_characters(text).split()).lower()
        case "whitespace":
            return " ".join(fix_characters(text).split())
        case "canonicalize":
            text = fix_characters(text).translate(_PUNCTUATION_BUT_UNDERSCORE)
            return " ".join(text.lower().split())
    text = _without_surrogates(text)
    match cleaning:
        case "transformers_siglip":
            text = text.replace(_SPACE, " ").lower().translate(_PUNCTUATION)
            words = " ".join(text.split())
            # It puts SentencePiece's sign for a space first; vocabularies that do not squeeze
            # whitespace themselves keep a space after it.
            return _SPACE + words if words and text[0].isspace() else words
        case "transformers_siglip2":
            return _LETTER_BY_LETTER.normalize_str(text)
        case "big_vision":
            return text.translate(_ASCII_LOWER)
        case "unicode_lower":
            return text.lower()
    # CLIPTokenizer's is done by its engine, after that has found the markers.
    return text


def fix_characters(text: str) -> str:
    """Fix mojibake and resolve HTML entities (twice: `&amp;lt;`), as open_clip does."""
    # Most captions are plain ASCII, in which there is nothing to fix: half of the work saved.
    if not (text.isascii() and text.isprintable()) or "&" in text:
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return text


def _without_surrogates(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return "".join("\ufffd" if "\ud800" <= letter <= "\udfff" else letter for letter in text)
    return text
