"""The tokenizer's files in a directory that transformers or open_clip opens."""

import json
import shutil
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from flaxclip.data.clip_tokenizer import clip_vocabulary
from flaxclip.errors import InputError
from flaxclip.models.clip import CLIPConfig

_START, _END = "<|startoftext|>", "<|endoftext|>"
# transformers' class of each tokenizer, by the file that its vocabulary is in.
_CLASSES = {
    ("siglip", ".model"): "SiglipTokenizer",
    ("siglip", ".json"): "PreTrainedTokenizerFast",
    ("siglip2", ".model"): "GemmaTokenizer",
    ("siglip2", ".json"): "Siglip2Tokenizer",
}
_NAMES = {("siglip", ".model"): "spiece.model", ("siglip2", ".model"): "tokenizer.model"}


def write_tokenizer(config: CLIPConfig, folder: Path) -> None:
    """Write the tokenizer of `config` into `folder`.

    Raises:
        InputError: it is SigLIP's, and the file of its vocabulary is not known.
    """
    if config.tokenizer == "clip":
        _clip_tokenizer().save(str(folder / "tokenizer.json"))
        settings = {
            "tokenizer_class": "CLIPTokenizer",
            "bos_token": _START,
            "eos_token": _END,
            "pad_token": _END,
            "unk_token": _END,
        }
    else:
        settings = _copy_vocabulary(config, folder)
    settings["model_max_length"] = config.text.context_length
    text = json.dumps(settings, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def _copy_vocabulary(config: CLIPConfig, folder: Path) -> dict[str, Any]:
    if config.tokenizer_file is None:
        raise InputError(
            f"the model's tokenizer is {config.tokenizer}, whose vocabulary is not known\n"
            "name its file with --tokenizer: a spiece.model, tokenizer.model or tokenizer.json"
        )
    source = Path(config.tokenizer_file)
    suffix = ".json" if source.suffix == ".json" else ".model"
    kind = (config.tokenizer, suffix)
    try:
        shutil.copyfile(source, folder / _NAMES.get(kind, "tokenizer.json"))
    except OSError as error:
        raise InputError(f"cannot read the vocabulary in {source}: {error.strerror}") from None
    end, pad = ("</s>", "</s>") if config.tokenizer == "siglip" else ("<eos>", "<pad>")
    return {
        "tokenizer_class": _CLASSES[kind],
        "eos_token": end,
        "pad_token": pad,
        "unk_token": "<unk>",
        "padding_side": "right",
        "add_bos_token": False,
        "add_eos_token": True,
    }


def _clip_tokenizer() -> tokenizers.Tokenizer:
    """CLIP's BPE as transformers runs it: the same ids as ours for clean text.

    It does not mend mojibake or HTML entities, and pads with the end marker, which makes no
    difference to the embedding.
    """
    vocab, merges = clip_vocabulary(_START, _END)
    tokenizer = tokenizers.Tokenizer(
        BPE(
            vocab,
            merges,
            unk_token=_END,
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
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.add_special_tokens([_START, _END])
    ends = [(name, tokenizer.token_to_id(name)) for name in (_END, _START)]
    tokenizer.post_processor = processors.RobertaProcessing(
        *ends, trim_offsets=False, add_prefix_space=False
    )
    return tokenizer
