"""Frozen dataclasses <-> JSON, with errors that name the field."""

from pathlib import PurePath
from typing import Any, TypeVar

import pydantic

from flaxclip.errors import InputError

T = TypeVar("T")


def to_json(config: Any) -> str:
    """Indented JSON of a dataclass, every default written out."""
    return pydantic.TypeAdapter(type(config)).dump_json(config, indent=2).decode() + "\n"


def from_json(kind: type[T], text: str | bytes, path: PurePath | str) -> T:
    """The dataclass that `to_json` wrote; `path` is for messages.

    Raises:
        InputError: not JSON, or a field that is unknown, missing or of another type.
    """
    # Unknown fields are refused: a file of a newer version must not lose a setting in silence.
    adapter = pydantic.TypeAdapter(kind, config=None)
    try:
        return adapter.validate_json(text, extra="forbid")
    except pydantic.ValidationError as error:
        fields = [
            f"{'.'.join(map(str, item['loc'])) or '(file)'}: {item['msg']}"
            for item in error.errors()
        ]
        raise InputError("\n".join([f"{path} is not a usable configuration", *fields])) from None
