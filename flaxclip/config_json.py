"""Frozen dataclasses <-> JSON, with errors that name the field."""

import collections
import json
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from types import UnionType
from typing import Any, TypeVar

import pydantic

from flaxclip.errors import InputError

T = TypeVar("T")


def to_json(config: Any) -> str:
    """Indented JSON of a dataclass, every default written out."""
    return pydantic.TypeAdapter(type(config)).dump_json(config, indent=2).decode() + "\n"


def from_json(kind: type[T] | UnionType, text: str | bytes, path: PurePath | str) -> T:
    """The dataclass, one of `kind`, that `to_json` wrote; `path` is for messages.

    Raises:
        InputError: not JSON, or a field that is unknown, missing or of another type.
    """
    try:
        # Unknown fields are refused: a file of a newer version must not lose a setting in silence.
        return pydantic.TypeAdapter(kind).validate_json(text, extra="forbid")
    except pydantic.ValidationError as error:
        fields = [
            f"{'.'.join(map(str, item['loc'])) or '(file)'}: {item['msg']}"
            for item in _of_likeliest_kinds(error.errors())
        ]
        raise InputError("\n".join([f"{path} is not a usable configuration", *fields])) from None


def _of_likeliest_kinds(errors: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Without complaints of kinds that were not meant.

    Where a field may be of several kinds, such as the two image towers, pydantic reports why it is
    none of them. The one that has the fewest complaints is the one that was meant.
    """

    def kind(item: Mapping[str, Any]) -> tuple[Any, ...]:
        """The place up to the name of a class; empty where the field has one kind alone."""
        loc = item["loc"]
        return next((loc[: i + 1] for i, part in enumerate(loc) if str(part)[0].isupper()), ())

    counts = collections.Counter(map(kind, errors))

    def is_meant(item: Mapping[str, Any]) -> bool:
        rivals = [other for other in counts if other[:-1] == kind(item)[:-1]]
        return not kind(item) or counts[kind(item)] == min(counts[other] for other in rivals)

    return list(filter(is_meant, errors))


def field_from_json(kind: type[T], text: str | bytes, path: PurePath | str, field: str) -> T:
    """One field of the file, for readers that know only the type of that one.

    Raises:
        InputError: not JSON, or the field is missing or not of that type.
    """
    try:
        value = json.loads(text)[field]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not a usable configuration\nno field {field!r} found: {error!r}"
        ) from None
    return from_json(kind, json.dumps(value), f"{path}, field {field}")
