"""The tokenizer that an `open_clip_config.json` describes."""

import dataclasses
import re
from pathlib import Path
from typing import Literal

from flaxclip.data.tokenizers.text_cleaning import cleaning_of
from flaxclip.errors import InputError
from flaxclip.interop.clip_vocabulary import check_clip_vocabulary
from flaxclip.interop.text_trunks.registry import HF_TRUNKS
from flaxclip.interop.tokenizer_class import read_language, read_tokenizer_class
from flaxclip.models.inputs import TextCleaning, TokenizerConfig
from flaxclip.models.text_transformer import TextConfig

# As the hub has it, and as we write it.
_XLM_V = re.compile(r"(^|/)(xlm-v-base|xlm_v)$")
_MT5 = re.compile(r"(^|/)(mt5-base|mt5)$")
_UNCASED_BERT = re.compile(r"(^|/)(bert-base-uncased|bert_uncased)$")


@dataclasses.dataclass(frozen=True)
class TokenizerArguments:
    """The arguments of open_clip's tokenizers, except for the context length."""

    clean: Literal["lower", "whitespace", "canonicalize"] | None = None
    context_length: int | None = None
    reduction_mask: Literal[""] | None = None
    additional_special_tokens: None = None
    strip_sep_token: bool = False
    language: None = None


def read_tokenizer(
    name: str | None, given: TokenizerArguments, text: TextConfig, path: Path
) -> TokenizerConfig:
    """The tokenizer that open_clip's `get_tokenizer` makes.

    Args:
        name: the file's `hf_tokenizer_name`.
        given: its `tokenizer_kwargs`.
        text: the tower.
        path: of the file, for messages.

    Raises:
        InputError: it is none of ours, by the field that makes the difference.
    """
    cleaning: TextCleaning
    family = text.family
    if given.context_length not in (None, text.context_length):
        raise InputError(
            f"{path}: text_cfg.tokenizer_kwargs.context_length is {given.context_length}\n"
            f"expected that of text_cfg, {text.context_length}"
        )
    if given.strip_sep_token != (family == "clipa"):
        raise InputError(
            f"{path}: text_cfg.tokenizer_kwargs.strip_sep_token is {given.strip_sep_token}\n"
            "expected true for text towers such as CLIPA's (clipa), and false for others"
        )
    if family == "clipa":
        if not name or not _UNCASED_BERT.search(name):
            raise InputError(
                f"{path}: text_cfg.hf_tokenizer_name is {name!r}\n"
                "expected bert-base-uncased: towers such as CLIPA's have its tokens"
            )
        cleaning = given.clean or "whitespace"
        own = cleaning == cleaning_of("bert_uncased", None)
        return TokenizerConfig("bert_uncased", cleaning=None if own else cleaning)
    if (found := _of_many_languages(name, text, path)) is not None:
        cleaning = given.clean or "whitespace"
        own = cleaning == cleaning_of(found, None)
        language = read_language(path.parent) if found == "nllb" else None
        return TokenizerConfig(found, cleaning=None if own else cleaning, language=language)
    if family in ("clip", "mobileclip"):
        if name and not name.startswith("openai/clip-"):
            raise InputError(
                f"{path}: text_cfg.hf_tokenizer_name is {name!r}\n"
                "flaxclip has the tokenizers of CLIP, SigLIP and SigLIP 2"
            )
        if name and family == "mobileclip":
            raise InputError(
                f"{path}: text_cfg.hf_tokenizer_name is {name!r} with no_causal_mask true\n"
                "expected no name: transformers' CLIPTokenizer pads with the end marker, which "
                "such a tower sees, and flaxclip's with 0, as open_clip's own does"
            )
        if name:
            check_clip_vocabulary(path.parent)
        # With a name it is transformers' CLIPTokenizer, which lower-cases anyway. Of captions that
        # spell out a marker it makes other ids.
        lowers = name and given.clean == "whitespace"
        return TokenizerConfig("clip", cleaning="lower" if lowers else given.clean)
    # SigLIP 2 has Gemma's vocabulary of 256,000, and its repositories have it in their names.
    is_2 = text.vocab_size == 256_000 or "siglip2" in (name or "").lower()
    tokenizer: Literal["siglip", "siglip2"] = "siglip2" if is_2 else "siglip"
    cleaning = "canonicalize"
    if name:
        cleaning = _cleaning_and_class(given.clean or "whitespace", path)
    # None, as named architectures have it, which is written as what it means.
    own = cleaning == cleaning_of(tokenizer, None)
    return TokenizerConfig(tokenizer, cleaning=None if own else cleaning)


def _of_many_languages(
    name: str | None, text: TextConfig, path: Path
) -> Literal["xlm_v", "mt5", "nllb"] | None:
    """The tokenizer of MetaCLIP 2 or of a tower of transformers; None for other towers."""
    found: Literal["xlm_v", "mt5", "nllb"]
    if (trunk := HF_TRUNKS.get(text.family)) is not None:
        found, fitting, expected = trunk.tokenizer, trunk.tokenizer_names, trunk.tokenizer_hint
    elif text.end_id is None:
        return None
    elif name and _MT5.search(name) and text.end_id == 1:
        return "mt5"
    else:
        found, fitting = "xlm_v", _XLM_V
        expected = (
            "facebook/xlm-v-base with pool_type eos, or google/mt5-base if eos_id is 1: such "
            "towers are MetaCLIP 2's"
        )
    if not name or not fitting.search(name):
        raise InputError(f"{path}: text_cfg.hf_tokenizer_name is {name!r}\nexpected {expected}")
    return found


def _cleaning_and_class(clean: TextCleaning, path: Path) -> TextCleaning:
    """open_clip's cleaning, followed by that of transformers' tokenizer in the directory."""
    then = read_tokenizer_class(path.parent, default="GemmaTokenizer")
    if then.cleaning == "none" or clean == "canonicalize":
        return clean
    if then.cleaning == "transformers_siglip2":
        return "lower"
    raise InputError(
        f"{path}: text_cfg.tokenizer_kwargs.clean is {clean!r}, while tokenizer_config.json beside "
        f"it names {then.name}, which cleans texts again\n"
        "expected canonicalize, or a tokenizer without a cleaning of its own"
    )
