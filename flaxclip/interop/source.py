"""The result of all readers of peers' formats, and the reading of text files beside weights."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import pydantic

from flaxclip.errors import InputError
from flaxclip.interop.archives.stored_tensor import StoredTensor
from flaxclip.interop.name_table import NameTable
from flaxclip.models.spec import ModelSpec

T = TypeVar("T")


def _one_side(value: Any) -> Any:
    """The single number of a square's two sides; other values are left to the type check."""
    if isinstance(value, dict) and value.keys() == {"height", "width"}:
        value = value["height"], value["width"]
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return value
    height, width = value
    if height != width:
        raise ValueError(f"found height {height}, width {width}; expected a square")
    return height


Size = Annotated[int, pydantic.Field(gt=0)]
Side = Annotated[int, pydantic.Field(gt=0), pydantic.BeforeValidator(_one_side)]
"""The side of a square, given as one number, as both, or by their names."""
Ratio = Annotated[float, pydantic.Field(gt=0, lt=1000)]


@dataclasses.dataclass(frozen=True)
class ForeignModel:
    """A peer's model, recognised but not yet read."""

    kind: str
    """The name of its format, for people."""
    spec: ModelSpec
    tensors: Mapping[str, StoredTensor]
    table: NameTable
    file: str = ""
    """The file that its weights, or the list of their files, were found in."""
    has_both: bool = False
    """True if there are weights and their average, which was chosen by default."""

    def variables(self) -> Iterator[tuple[str, np.ndarray]]:
        """Path and numbers of our variables, float32, one after the other.

        Raises:
            InputError: the tensors are not those of the architecture, or are damaged.
        """
        return self.table.to_ours(self.tensors)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises InputError if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a {type(value).__name__}\nexpected an object")
    return value


def parse(
    kind: type[T],
    value: Any,
    path: Path,
    field: str = "",
    extra: Literal["ignore", "forbid"] = "ignore",
) -> T:
    """`value`, found in `path` under `field`, as the dataclass `kind`.

    Raises:
        InputError: a field is missing or of another type; or is not among those of `kind`, where
            `extra` is "forbid".
    """
    try:
        return pydantic.TypeAdapter(kind).validate_python(value, extra=extra)
    except pydantic.ValidationError as error:
        lines = [
            f"{'.'.join([*filter(None, [field]), *map(str, item['loc'])])}: {item['msg']}"
            for item in error.errors()
        ]
        raise InputError("\n".join([f"{path} cannot be used", *lines])) from None
