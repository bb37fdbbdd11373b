"""Frozen dataclasses <-> JSON, with errors that name the field; `config.json` with its format."""

import collections
import json
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from types import UnionType
from typing import Any, TypeVar, cast

import pydantic

from flaxclip.errors import InputError

FORMAT = 1
"""Format that is written now; the field `format` of `config.json`."""

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
        adapter: pydantic.TypeAdapter[T] = pydantic.TypeAdapter(cast(Any, kind))
        return adapter.validate_json(text, extra="forbid")
    except pydantic.ValidationError as error:
        fields = [
            f"{'.'.join(map(str, item['loc'])) or '(file)'}: {item['msg']}"
            for item in _of_likeliest_kinds(error.errors())
        ]
        raise InputError("\n".join([f"{path} is not a usable configuration", *fields])) from None


def _of_likeliest_kinds(errors: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The errors for the likeliest kind of a field.

    If a field may be of several kinds, such as the two image towers, pydantic reports the errors of
    each of them. The kind with the fewest errors is the likeliest.
    """

    def kind(item: Mapping[str, Any]) -> tuple[Any, ...]:
        """The error's location up to the name of a class; empty if the field has only one kind."""
        loc = item["loc"]
        return next((loc[: i + 1] for i, part in enumerate(loc) if str(part)[0].isupper()), ())

    counts = collections.Counter(map(kind, errors))

    def is_meant(item: Mapping[str, Any]) -> bool:
        rivals = [other for other in counts if other[:-1] == kind(item)[:-1]]
        return not kind(item) or counts[kind(item)] == min(counts[other] for other in rivals)

    return list(filter(is_meant, errors))


def run_to_json(fields: Any) -> str:
    """The contents of `config.json`: a run's configuration, or some of its fields in a dict."""
    values = pydantic.TypeAdapter(type(fields)).dump_python(fields, mode="json")
    return json.dumps({"format": FORMAT, **values}, indent=2) + "\n"


def run_from_json(kind: type[T], text: str | bytes, path: PurePath | str) -> T:
    """The configuration in a `config.json` of this or an older format, whose type is `kind`.

    Raises:
        InputError: not JSON, of a newer format, or a field that is unknown, missing or of another
            type.
    """
    return from_json(kind, json.dumps(_migrated(text, path)), path)


class RunFields:
    """The fields of a `config.json`, for readers that know the types of only some."""

    def __init__(self, text: str | bytes, path: PurePath | str) -> None:
        """`path` is for messages.

        Raises:
            InputError: not JSON, or of a newer format.
        """
        self._fields, self._path = _migrated(text, path), path

    def get(self, name: str, kind: type[T] | UnionType, default: T | None = None) -> T:
        """One field; `default` if the file does not have it.

        Raises:
            InputError: the field is not of that type, or is missing while there is no default.
        """
        if name in self._fields:
            return from_json(kind, json.dumps(self._fields[name]), f"{self._path}, field {name}")
        if default is not None:
            return default
        raise InputError(f"{self._path} is not a usable configuration\nit has no field {name!r}")


def _migrated(text: str | bytes, path: PurePath | str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path} is not a usable configuration\n{error}") from None
    if not isinstance(config, dict):
        raise InputError(
            f"{path} is not a usable configuration\n"
            f"it holds a {type(config).__name__}, expected an object"
        )
    found = config.get("format", 0)
    if not isinstance(found, int) or found > FORMAT:
        raise InputError(
            f"{path} is of format {found!r}\n"
            f"this version of flaxclip knows formats up to {FORMAT}: install a newer one"
        )
    return migrate(config)


# Format 0, which has no number, had everything about a model in `model`: what images and texts go
# through before it, and how it is computed. Its `pool` said which family a tower is of.
_PREPROCESS = {
    "resize": "resize",
    "interpolation": "interpolation",
    "transparency": "transparency",
    "crop_rounding": "crop_rounding",
    "image_mean": "mean",
    "image_std": "std",
}
_TOKENIZER = {"tokenizer": "name", "text_cleaning": "cleaning", "tokenizer_file": "file"}
_COMPUTE = {name: name for name in ("dtype", "unroll", "remat", "attention")}
_FAMILIES = {
    "vision": {"class": "clip", "map": "siglip", "token": "vit"},
    "text": {"end": "clip", "last": "siglip", "class": "bert"},
}


def migrate(config: dict[str, Any]) -> dict[str, Any]:
    """`config`, of any format up to the present one, in the present format and without its number.

    Fields that format 0 lacked are left out: the defaults have the same meaning.
    """
    config = dict(config)
    if config.pop("format", 0) >= FORMAT or not isinstance(config.get("model"), dict):
        return config
    model = dict(config["model"])
    for part, names in (
        ("preprocess", _PREPROCESS), ("tokenizer", _TOKENIZER), ("compute", _COMPUTE),
    ):  # fmt: skip
        config[part] = {new: model.pop(old) for old, new in names.items() if old in model}
    for tower, families in _FAMILIES.items():
        fields = model.get(tower)
        if isinstance(fields, dict) and "pool" in fields:
            pool = fields["pool"]
            others = {name: value for name, value in fields.items() if name != "pool"}
            model[tower] = others | {"family": families.get(pool, pool)}
    return config | {"model": model}
