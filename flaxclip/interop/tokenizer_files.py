"""The tokenizer's files in a directory that transformers or open_clip opens."""

import json
import re
import shutil
import string
from pathlib import Path
from typing import Any, Literal

from tokenizers import Regex, normalizers

from flaxclip.data.tokenizers.bert import read_vocabulary
from flaxclip.data.tokenizers.clip import (
    TRANSFORMERS_END,
    TRANSFORMERS_START,
    transformers_clip_tokenizer,
)
from flaxclip.data.tokenizers.multilingual import WHOSE_FILE
from flaxclip.data.tokenizers.text_cleaning import cleaning_of
from flaxclip.data.tokenizers.tokenizer_json import read_tokenizer_json
from flaxclip.errors import InputError
from flaxclip.interop.open_clip.write_config import NEAREST_CLEANING
from flaxclip.interop.tokenizer_class import CONFIG_FILE, cleaning_of_class
from flaxclip.models.inputs import TokenizerConfig
from flaxclip.models.spec import ModelSpec

Format = Literal["open_clip", "huggingface"]

# transformers' classes that read a SentencePiece model: one that leaves texts as they are, and one
# that cleans them.
_SENTENCEPIECE = {
    "siglip": ("T5Tokenizer", "SiglipTokenizer"),
    "siglip2": ("GemmaTokenizer", "Siglip2Tokenizer"),
}
_SENTENCEPIECE_NAMES = {"siglip": "spiece.model", "siglip2": "tokenizer.model"}


def write_tokenizer(spec: ModelSpec, folder: Path, to: Format) -> list[str]:
    """Write the tokenizer of `spec` into `folder`.

    Returns:
        Lines that say what the other library does to texts otherwise, if anything.

    Raises:
        InputError: it is SigLIP's, and the file of its vocabulary is not known.
    """
    config = spec.tokenizer
    cleaning = str(cleaning_of(config.name, config.cleaning))
    if config.name == "clip":
        settings = _write_clip(folder)
        theirs = "transformers_clip"
    elif config.name == "bert_uncased":
        settings, theirs = _write_bert(config, folder), "none"
    elif config.name in WHOSE_FILE:
        settings, theirs = _write_multilingual(config, folder), "none"
    elif config.name == "tips":
        settings, theirs = _write_tips(config, folder), "transformers_siglip2"
    else:
        # open_clip cleans before the tokenizer does, which need not.
        wanted = "none" if to == "open_clip" else cleaning
        if spec.preprocess.resize == "native":
            if config.name != "siglip2":
                raise InputError(
                    f"the model's tokenizer is {config.name}, and transformers gives a "
                    "Siglip2Model that of SigLIP 2\nit cannot be written as one"
                )
            if not str(config.file).endswith(".json"):
                # What transformers makes of a SentencePiece model, whatever the files say.
                wanted = "transformers_siglip2"
        settings, theirs = _write_siglip(config, folder, wanted)
    if to == "open_clip":
        theirs = NEAREST_CLEANING.get(cleaning, cleaning)
    settings["model_max_length"] = spec.model.text.context_length
    text = json.dumps(settings, indent=2) + "\n"
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
    if theirs == cleaning:
        return []
    return [f"texts are cleaned by {theirs} there, in place of {cleaning}: see text_cleaning.py"]


def _write_clip(folder: Path) -> dict[str, Any]:
    transformers_clip_tokenizer().save(str(folder / "tokenizer.json"))
    return {
        "tokenizer_class": "CLIPTokenizer",
        "bos_token": TRANSFORMERS_START,
        "eos_token": TRANSFORMERS_END,
        "pad_token": TRANSFORMERS_END,
        "unk_token": TRANSFORMERS_END,
    }


def _write_bert(config: TokenizerConfig, folder: Path) -> dict[str, Any]:
    if config.file is None:
        raise InputError(
            "the model's tokenizer is bert_uncased, whose vocabulary is not known\n"
            "name its file with --tokenizer: the vocab.txt of bert-base-uncased"
        )
    tokens = read_vocabulary(config.file)
    lines = "".join(f"{token}\n" for token in sorted(tokens, key=lambda token: tokens[token]))
    (folder / "vocab.txt").write_text(lines, encoding="utf-8", newline="")
    return {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": True,
        "unk_token": "[UNK]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
    }


def _write_multilingual(config: TokenizerConfig, folder: Path) -> dict[str, Any]:
    if config.file is None:
        raise InputError(
            f"the model's tokenizer is {config.name}, whose vocabulary is not known\n"
            f"name its file with --tokenizer, {WHOSE_FILE[config.name]}"
        )
    is_json = Path(config.file).suffix == ".json"
    try:
        shutil.copyfile(config.file, folder / ("tokenizer.json" if is_json else "spiece.model"))
    except OSError as error:
        raise InputError(f"cannot read the vocabulary in {config.file}: {error.strerror}") from None
    settings: dict[str, Any] = {
        "tokenizer_class": "NllbTokenizer" if config.name == "nllb" else "PreTrainedTokenizerFast",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "padding_side": "right",
    }
    if config.language is not None:
        settings["src_lang"] = config.language
    if config.name != "mt5":
        settings["bos_token"] = "<s>"
    elif not is_json:
        settings |= {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}
    return settings


def _write_tips(config: TokenizerConfig, folder: Path) -> dict[str, Any]:
    if config.file is None:
        raise InputError(
            "the model's tokenizer is tips, whose vocabulary is not known\n"
            "name its file with --tokenizer: a tokenizer.model or tokenizer.json"
        )
    is_json = Path(config.file).suffix == ".json"
    try:
        shutil.copyfile(config.file, folder / ("tokenizer.json" if is_json else "tokenizer.model"))
    except OSError as error:
        raise InputError(f"cannot read the vocabulary in {config.file}: {error.strerror}") from None
    return {"tokenizer_class": "Tipsv2Tokenizer", "pad_token": "<pad>", "unk_token": "<unk>"}


def _write_siglip(
    config: TokenizerConfig, folder: Path, cleaning: str
) -> tuple[dict[str, Any], str]:
    """The vocabulary; returns the tokenizer's settings and how it cleans."""
    if config.file is None:
        raise InputError(
            f"the model's tokenizer is {config.name}, whose vocabulary is not known\n"
            "name its file with --tokenizer: a spiece.model, tokenizer.model or tokenizer.json"
        )
    source = Path(config.file)
    try:
        if source.suffix != ".json":
            plain, cleans = _SENTENCEPIECE[config.name]
            name = plain if cleaning in ("none", "whitespace") else cleans
            theirs: str = cleaning_of_class(name)
            shutil.copyfile(source, folder / _SENTENCEPIECE_NAMES[config.name])
        elif config.name == "siglip2" and cleaning in (
            "transformers_siglip2",
            "unicode_lower",
        ):
            name, theirs = "Siglip2Tokenizer", "transformers_siglip2"
            shutil.copyfile(source, folder / "tokenizer.json")
        else:
            name = "PreTrainedTokenizerFast"
            theirs = _write_cleaning_json(source, folder / "tokenizer.json", cleaning)
    except OSError as error:
        raise InputError(f"cannot read the vocabulary in {source}: {error.strerror}") from None
    end, pad = ("</s>", "</s>") if config.name == "siglip" else ("<eos>", "<pad>")
    settings = {
        "tokenizer_class": name,
        "eos_token": end,
        "pad_token": pad,
        "unk_token": "<unk>",
        "padding_side": "right",
        "add_bos_token": False,
        "add_eos_token": True,
    }
    return settings, theirs


def _write_cleaning_json(source: Path, target: Path, cleaning: str) -> str:
    """Write a tokenizer.json that cleans by itself, but fixes no mojibake; describes it."""
    steps, theirs = _STEPS[cleaning]
    if not steps:
        shutil.copyfile(source, target)
        return theirs
    try:
        tokenizer = read_tokenizer_json(source)
    except Exception as error:  # bare exceptions of many kinds
        raise InputError(f"cannot read the vocabulary in {source}: {error}") from None
    before = [tokenizer.normalizer] if tokenizer.normalizer else []
    tokenizer.normalizer = normalizers.Sequence([*steps, *before])
    tokenizer.save(str(target))
    return theirs


_SQUEEZE = (normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip())
_PUNCTUATION = normalizers.Replace(Regex(f"[{re.escape(string.punctuation)}]"), "")
# For each cleaning, its steps in a tokenizer.json, and what these come to.
_STEPS: dict[str, tuple[tuple[normalizers.Normalizer, ...], str]] = {
    "lower": ((*_SQUEEZE, normalizers.Lowercase()), "lower without ftfy"),
    "whitespace": (_SQUEEZE, "whitespace without ftfy"),
    "canonicalize": (
        (normalizers.Replace("_", " "), _PUNCTUATION, normalizers.Lowercase(), *_SQUEEZE),
        "canonicalize without ftfy",
    ),
    "transformers_siglip": (
        (normalizers.Lowercase(), _PUNCTUATION, *_SQUEEZE),
        "transformers_siglip of stripped texts",
    ),
    "transformers_siglip2": ((normalizers.Lowercase(),), "transformers_siglip2"),
    "big_vision": (
        tuple(normalizers.Replace(upper, upper.lower()) for upper in string.ascii_uppercase),
        "big_vision",
    ),
    "unicode_lower": ((normalizers.Lowercase(),), "transformers_siglip2"),
    "none": ((), "none"),
}
