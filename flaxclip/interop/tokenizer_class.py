"""transformers' class of a directory's tokenizer, and its cleaning of texts (5.24)."""

from pathlib import Path
from typing import Any, NamedTuple

from flaxclip.data.tokenizers.multilingual import ENGLISH
from flaxclip.errors import InputError
from flaxclip.interop.source import read_json
from flaxclip.models.inputs import TextCleaning

CONFIG_FILE = "tokenizer_config.json"
BACKEND = "TokenizersBackend"

_CLEANINGS: dict[str, TextCleaning] = {
    "CLIPTokenizer": "transformers_clip",
    "SiglipTokenizer": "transformers_siglip",
    "Siglip2Tokenizer": "transformers_siglip2",
    "GemmaTokenizer": "none",
    "T5Tokenizer": "none",
    "XLMRobertaTokenizer": "none",
    # The tokenizer.json alone, whatever that does.
    BACKEND: "none",
}
# Of transformers before 5.
_OLD_NAMES = {"PreTrainedTokenizerFast": BACKEND}


def cleaning_of_class(name: str) -> TextCleaning:
    """The cleaning that a class of transformers applies to texts."""
    return _CLEANINGS[name]


class TokenizerClass(NamedTuple):
    """A directory's tokenizer."""

    name: str
    cleaning: TextCleaning
    pad: str | None
    """The token that fills up rows, if the directory defines it."""


def read_tokenizer_class(folder: Path, default: str) -> TokenizerClass:
    """The class that `tokenizer_config.json` names, `default` without any.

    Raises:
        InputError: it is a class that we have no equal of.
    """
    path = folder / CONFIG_FILE
    config = read_json(path) if path.is_file() else {}
    name = str(config.get("tokenizer_class") or default)
    name = _OLD_NAMES.get(name, name.removesuffix("Fast"))
    if name not in _CLEANINGS:
        raise InputError(
            f"{path}: tokenizer_class is {config['tokenizer_class']!r}\n"
            f"flaxclip has those of {', '.join(_CLEANINGS)}"
        )
    if name == "SiglipTokenizer" and config.get("do_lower_case", True) is not True:
        raise InputError(
            f"{path}: do_lower_case is {config['do_lower_case']!r}\n"
            "expected true: flaxclip's SiglipTokenizer lower-cases"
        )
    for field in ("padding_side", "truncation_side"):
        if (side := config.get(field) or "right") != "right":
            raise InputError(
                f"{path}: {field} is {side!r}\n"
                "expected right: flaxclip's rows of ids have the text first, and lose its end"
            )
    pad = config.get("pad_token")
    if isinstance(pad, dict):  # with settings of its own
        pad = pad.get("content")
    return TokenizerClass(name, _CLEANINGS[name], pad)


def is_json_alone(folder: Path) -> bool:
    """True if tokenizer.json alone defines the tokenizer, whatever files lie beside it."""
    path = folder / CONFIG_FILE
    name: Any = read_json(path).get("tokenizer_class") if path.is_file() else None
    return _OLD_NAMES.get(name, name) == BACKEND


def read_language(folder: Path) -> str | None:
    """The language that captions of NLLB's tokenizer begin with, if the directory names another
    than transformers' own.

    Raises:
        InputError: it comes after the captions.
    """
    path = folder / CONFIG_FILE
    config = read_json(path) if path.is_file() else {}
    if config.get("legacy_behaviour"):
        raise InputError(
            f"{path}: legacy_behaviour is {config['legacy_behaviour']!r}\n"
            "expected false: captions begin with their language, and do not end with it"
        )
    language = config.get("src_lang")
    return None if language in (None, ENGLISH) else str(language)
