"""Check that a directory's tokenizer is that of OpenAI's CLIP, whose ids are built in.

Most models of type `clip` have it, and files that say so. Others have learned a vocabulary of
another language, or have tokens of their own beside it: to them, our ids would be other words.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flaxclip.data.tokenizers.clip import TRANSFORMERS_END, TRANSFORMERS_START, clip_vocabulary
from flaxclip.errors import InputError
from flaxclip.interop.source import read_json
from flaxclip.interop.tokenizer_class import BACKEND, CONFIG_FILE

# In transformers' order: the second is of versions that wrote no tokenizer.json.
_FILES = ("tokenizer.json", "vocab.json")

# What `CLIPTokenizer` does to a text first, whatever the file says; a tokenizer.json alone must say
# so itself.
_NORMALIZERS = ["NFC", "Replace", "Lowercase"]


def check_clip_vocabulary(folder: Path, tokenizer_class: str = "CLIPTokenizer") -> None:
    """Check that the files of a tokenizer in `folder`, where there are any, are those of CLIP.

    Args:
        folder: the directory.
        tokenizer_class: transformers' class, as `tokenizer_config.json` names it.

    Raises:
        InputError: one has another vocabulary, or tokens besides CLIP's, or does not lower-case.
    """
    path = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if path is not None:
        values = read_json(path)
        vocabulary: dict[str, Any] = values
        if path.name == "tokenizer.json":
            model = values.get("model")
            vocabulary = dict(model.get("vocab") or {}) if isinstance(model, dict) else {}
            vocabulary |= {token: number for number, token in _added(values.get("added_tokens"))}
            if tokenizer_class == BACKEND and _normalizers(values) != _NORMALIZERS:
                raise InputError(
                    f"{path}: normalizer does {', '.join(_normalizers(values)) or 'nothing'}\n"
                    f"expected {', '.join(_NORMALIZERS)}, as CLIPTokenizer does: flaxclip prepares "
                    "texts so"
                )
        _check(path, vocabulary)
    path = folder / CONFIG_FILE
    if path.is_file():
        config = read_json(path)
        tokens = [token for _, token in _added(config.get("added_tokens_decoder"))]
        for field in ("additional_special_tokens", "extra_special_tokens"):
            tokens += [token for _, token in _added(config.get(field))]
        for token in tokens:
            if token not in _ids():
                raise _beside_clips(path, token)


@functools.cache
def _ids() -> dict[str, int]:
    return clip_vocabulary(TRANSFORMERS_START, TRANSFORMERS_END)[0]


def _check(path: Path, vocabulary: Mapping[str, Any]) -> None:
    expected = _ids()
    for token, number in expected.items():
        if vocabulary.get(token) != number:
            raise InputError(
                f"{path}: token {token!r} has the id {vocabulary.get(token)}\n"
                f"expected {number}, as in the vocabulary of OpenAI's CLIP: of models of type clip "
                "flaxclip has no other tokenizer"
            )
    if others := vocabulary.keys() - expected.keys():
        raise _beside_clips(path, min(others))


def _beside_clips(path: Path, token: str) -> InputError:
    return InputError(
        f"{path} has a token {token!r} besides those of OpenAI's CLIP\n"
        "flaxclip would take it for several; to use the model without it, remove it from "
        "tokenizer.json and tokenizer_config.json"
    )


def _added(tokens: Any) -> list[tuple[Any, str]]:
    """Ids, where they are given, and contents of tokens that a file adds to its vocabulary."""
    if isinstance(tokens, dict):
        tokens = [
            {"id": number, "content": token.get("content") if isinstance(token, dict) else token}
            for number, token in tokens.items()
        ]
    if not isinstance(tokens, list):
        return []
    found = [token if isinstance(token, dict) else {"content": token} for token in tokens]
    return [(token.get("id"), str(token.get("content"))) for token in found]


def _normalizers(values: Mapping[str, Any]) -> list[str]:
    normalizer = values.get("normalizer")
    if not isinstance(normalizer, dict):
        return []
    steps = normalizer.get("normalizers", [normalizer])
    return [str(step.get("type")) for step in steps if isinstance(step, dict)]
