"""From the fields of an example to the captions that training draws from."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from flaxclip.data.sources.source import Pair, UnreadableExampleError
from flaxclip.errors import InputError


@dataclasses.dataclass(frozen=True)
class CaptionConfig:
    """The fields of an example that are captions.

    If a field holds a list, each of its texts is a caption, and all of them together are drawn as
    often as one. Fields that are missing or blank in an example leave their share to the others; an
    example that lacks all of them is unreadable.
    """

    keys: tuple[str, ...] = ()
    """Fields: `txt` for the text file beside an image, else a key of its JSON or a column of the
    table. Of several, every visit to an example draws one. If empty, txt or else caption; in a
    table the column called caption, text or title."""
    weights: tuple[float, ...] = ()
    """Relative weights of `keys` in the draw. If empty, all are equal."""
    templates: tuple[str, ...] = ()
    """Sentences with `{}`, which the field's text replaces: they make captions of labels. Every
    visit draws one."""
    class_names: tuple[str, ...] = ()
    """Names of classes 0, 1, …, for fields that hold the number of a class."""

    def __post_init__(self) -> None:
        if self.weights and len(self.weights) != len(self.keys):
            raise InputError(
                f"captions.weights has {len(self.weights)} numbers for {len(self.keys)} keys\n"
                "give one for each of captions.keys, or none"
            )
        if not all(0 < weight < float("inf") for weight in self.weights):
            raise InputError(
                f"captions.weights are {self.weights}\nexpected numbers above 0; "
                "leave out the key of a caption that is never to be drawn"
            )
        for template in self.templates:
            if "{}" not in template:
                raise InputError(
                    f"caption template {template!r} has no {{}}\n"
                    "expected it where the text goes, as in 'a photo of a {}'"
                )


DEFAULT_CAPTIONS = CaptionConfig()


def make_captions(
    fields: Mapping[str, Any], config: CaptionConfig, default_keys: Sequence[str]
) -> tuple[tuple[str, ...], tuple[float, ...] | None]:
    """`Pair.captions` and `Pair.weights` of an example.

    Args:
        fields: `Source.fields`, or the part of it that `config` asks for.
        config: which of them are captions.
        default_keys: in place of `config.keys` where that is empty; the first that is there counts.

    Raises:
        UnreadableExampleError: there is no caption, or a field that should hold one holds something
            else.
    """
    if config.keys:
        found = [texts_of(key, fields.get(key), config) for key in config.keys]
    else:
        present = (key for key in default_keys if key in fields)
        found = [texts_of(key, fields[key], config) for key in itertools.islice(present, 1)]
    if not any(found):
        raise UnreadableExampleError(_why_none(fields, config.keys or default_keys))
    captions = tuple(text for texts in found for text in texts)
    shares = config.weights or (1.0,) * len(found)
    weights = tuple(
        share / len(texts) for texts, share in zip(found, shares, strict=True) for _ in texts
    )
    return captions, None if len(set(weights)) == 1 else weights


def texts_of(key: str, value: Any, config: CaptionConfig) -> list[str]:
    """The captions in a field, none of them blank.

    Raises:
        UnreadableExampleError: it holds neither a text, nor the number of a class, nor a list.
    """
    if isinstance(value, list | tuple):
        return [text for item in value for text in texts_of(key, item, config)]
    if value is None:
        return []
    if config.class_names and (_is_number(value) or (isinstance(value, str) and value.isdecimal())):
        value = int(value)  # in CSV all values are texts
        if not 0 <= value < len(config.class_names):
            names = len(config.class_names)
            raise UnreadableExampleError(f"class {value} under {key!r}, of {names:,} class names")
        value = config.class_names[value]
    if not isinstance(value, str):
        raise UnreadableExampleError(f"{key!r} holds {_shown(value)}, not a text")
    if not value.strip():
        return []
    try:  # JSON can name code points that no UTF-8 text holds; tokenizers stumble over them
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UnreadableExampleError("caption holds half of a surrogate pair") from error
    # Not str.format: a caption, or a template, may hold other braces.
    return [template.replace("{}", value) for template in config.templates] or [value]


def draw_caption(pair: Pair, make_rng: Callable[[], np.random.Generator]) -> int:
    """Number of one of the pair's captions; if there is only one, without a generator, which is
    slow.
    """
    if len(pair.captions) == 1:
        return 0
    weights = np.ones(len(pair.captions)) if pair.weights is None else np.array(pair.weights)
    return int(make_rng().choice(len(pair.captions), p=weights / weights.sum()))


def utf8(text: bytes) -> str:
    """`text` decoded.

    Raises:
        UnreadableExampleError: it is not UTF-8.
    """
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnreadableExampleError(f"caption is not UTF-8: {error}") from error


def json_fields(text: bytes) -> dict[str, Any]:
    """The object that `text` holds.

    Raises:
        UnreadableExampleError: it is not UTF-8, not JSON, or no object.
    """
    try:
        fields = json.loads(utf8(text))
    except (ValueError, RecursionError) as error:
        raise UnreadableExampleError(f"broken JSON: {error}") from error
    if not isinstance(fields, dict):
        raise UnreadableExampleError(f"JSON holds {_shown(fields)}, not an object")
    return fields


def _why_none(fields: Mapping[str, Any], keys: Sequence[str]) -> str:
    blank = [key for key in keys if key in fields]
    if blank:
        return f"empty caption: {', '.join(map(repr, blank))}"
    others = ", ".join(itertools.islice(fields, 8))
    return f"no text under {' or '.join(map(repr, keys))}; it has: {others or 'nothing'}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {value!r:.40}"
