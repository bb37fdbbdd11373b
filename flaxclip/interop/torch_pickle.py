"""What a pickle of torch describes, found out without running it.

A pickle is a program for a stack machine, and Python's own machine calls whatever functions the
program names. This one has the instructions that torch writes, and calls nothing: it notes that a
tensor lies in such a storage at such an offset, and refuses every function outside a short list.
"""

import pickletools
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from flaxclip.errors import InputError

MAX_BYTES = 64 * 2**20
"""Of one pickle. Names and sizes of a thousand tensors with optimizer state take under one MiB."""
MAX_MODULES = 10_000
"""In a TorchScript model; those in several places count for each. The largest CLIP has 700."""

_STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
_STORAGE_TYPES = {f"torch.{name}": dtype for name, dtype in _STORAGES.items()}
_LISTS = {f"torch.jit._pickle.build_{kind}list" for kind in ("int", "double", "bool", "tensor")}
# Functions whose first argument is all that matters: a parameter's tensor, a list, a tagged value.
_WRAPPERS = {"torch._utils._rebuild_parameter", "torch.jit._pickle.restore_type_tag", *_LISTS}
_REBUILD_TENSOR = "torch._utils._rebuild_tensor_v2"
_ORDERED_DICT = "collections.OrderedDict"
_SCRIPT_CLASSES = "__torch__."


class Storage(NamedTuple):
    """A row of numbers that tensors are views of."""

    key: str
    dtype: np.dtype
    size: int


class TensorView(NamedTuple):
    """Where in a storage a tensor's numbers lie; offset and strides count numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def end(self) -> int:
        """One past the last number of the storage that the tensor reads."""
        if 0 in self.shape:
            return self.offset
        reach = sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        return self.offset + reach + 1


class _Global(NamedTuple):
    name: str


class ScriptObject:
    """An instance of a TorchScript class: its attributes, none of its code."""

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}


def read_pickle(data: bytes) -> Any:
    """The value that `data` describes, made of plain containers, `TensorView` and `ScriptObject`.

    Raises:
        InputError: the pickle names a function or type that holds no tensors, or is damaged.
    """
    if len(data) > MAX_BYTES:
        raise InputError(f"the pickle has {len(data):,} bytes\nexpected at most {MAX_BYTES:,}")
    try:
        return _Machine().run(data)
    except InputError:
        raise
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError) as error:
        raise InputError(f"the pickle is damaged: {type(error).__name__}: {error}") from None


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return self.stack.pop()
            self.step(opcode.name, argument)
        raise ValueError("it has no end")

    def step(self, name: str, argument: Any) -> None:
        push, pop = self.stack.append, self.stack.pop
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self.marks.append(len(self.stack))
            case "NONE":
                push(None)
            case "NEWTRUE" | "NEWFALSE":
                push(name == "NEWTRUE")
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                push(argument)
            case "BINUNICODE" | "SHORT_BINUNICODE":
                push(argument)
            case "EMPTY_DICT":
                push({})
            case "EMPTY_LIST":
                push([])
            case "EMPTY_TUPLE":
                push(())
            case "TUPLE":
                push(tuple(self.pop_to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [pop() for _ in range(int(name[-1]))]
                push(tuple(reversed(items)))
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "BINGET" | "LONG_BINGET":
                push(self.memo[argument])
            case "APPEND":
                item = pop()
                _expect(self.stack[-1], list).append(item)
            case "APPENDS":
                items = self.pop_to_mark()
                _expect(self.stack[-1], list).extend(items)
            case "SETITEM":
                value, key = pop(), pop()
                _set_items(self.stack[-1], [key, value])
            case "SETITEMS":
                items = self.pop_to_mark()
                _set_items(self.stack[-1], items)
            case "GLOBAL":
                push(_global(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                attribute, module = _expect(pop(), str), _expect(pop(), str)
                push(_global(f"{module}.{attribute}"))
            case "BINPERSID":
                push(_storage(pop()))
            case "REDUCE":
                arguments, function = _expect(pop(), tuple), _expect(pop(), _Global)
                push(_call(function.name, arguments))
            case "NEWOBJ":
                arguments, kind = pop(), _expect(pop(), _Global)
                if not kind.name.startswith(_SCRIPT_CLASSES) or arguments != ():
                    raise ValueError(f"an object of {kind.name}")
                push(ScriptObject())
            case "BUILD":
                state = pop()
                # A state dict's own attribute, `_metadata`, holds versions of modules.
                if isinstance(self.stack[-1], ScriptObject):
                    _set_items(self.stack[-1].attributes, _flat(_expect(state, dict)))
                else:
                    _expect(self.stack[-1], dict)
            case _:
                raise ValueError(f"an instruction that torch does not write: {name}")

    def pop_to_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"found {type(value).__name__} in place of {kind.__name__}")
    return value


def _set_items(target: Any, items: list[Any]) -> None:
    keys, values = items[::2], items[1::2]
    for key in keys:
        if not isinstance(key, str | int):
            raise TypeError(f"found {type(key).__name__} as the key of a dict")
    _expect(target, dict).update(zip(keys, values, strict=True))


def _flat(mapping: dict[Any, Any]) -> list[Any]:
    return [part for item in mapping.items() for part in item]


def _global(name: str) -> _Global:
    known = name in (_REBUILD_TENSOR, _ORDERED_DICT) or name in _WRAPPERS or name in _STORAGE_TYPES
    if not known and not name.startswith(_SCRIPT_CLASSES):
        raise InputError(
            f"the pickle asks for {name}, and nothing was run\n"
            "weights need only tensors, dicts and lists; in a program that trusts this file, save "
            "them alone: torch.save(model.state_dict(), path)"
        )
    return _Global(name)


def _call(name: str, arguments: tuple[Any, ...]) -> Any:
    if name == _ORDERED_DICT and arguments == ():
        return {}
    if name in _WRAPPERS:
        return arguments[0]
    if name == _REBUILD_TENSOR:
        storage, offset, shape, strides = arguments[:4]
        _expect(storage, Storage)
        _check_counts((offset, *_expect(shape, tuple), *_expect(strides, tuple)))
        if len(shape) != len(strides):
            raise ValueError(f"{len(shape)} axes with {len(strides)} strides")
        return TensorView(storage, offset, shape, strides)
    raise ValueError(f"a call of {name} with {len(arguments)} arguments")


def _storage(identifier: Any) -> Storage:
    kind, storage_type, key, _, size = _expect(identifier, tuple)
    dtype = _STORAGE_TYPES[_expect(storage_type, _Global).name]
    _check_counts((size,))
    if kind != "storage" or not _expect(key, str).isalnum():
        raise ValueError(f"a storage named {key!r}")
    return Storage(key, dtype, size)


def _check_counts(numbers: tuple[Any, ...]) -> None:
    for number in numbers:
        if type(number) is not int or not 0 <= number < 2**48:
            raise ValueError(f"a size of {number!r}")


def named_tensors(value: Any) -> dict[str, TensorView]:
    """Tensors by name, as the state dict of the saved model has them.

    `value` is a state dict, a training checkpoint that holds one as `state_dict`, or a TorchScript
    model. `module.`, which data-parallel training puts before every name, is taken off.

    Raises:
        InputError: it is none of these.
    """
    if isinstance(value, dict) and isinstance(value.get("state_dict"), dict):
        value = value["state_dict"]
    if isinstance(value, ScriptObject):
        tensors = _attributes(value)
    elif isinstance(value, dict):
        tensors = value
        for name, tensor in tensors.items():
            if not isinstance(tensor, TensorView):
                raise InputError(
                    f"{name!r} in the file is of type {type(tensor).__name__}, not a tensor\n"
                    "expected a state dict, or a dict that holds one as 'state_dict'"
                )
    else:
        raise InputError(
            f"the file holds a {type(value).__name__}\nexpected a state dict or a TorchScript model"
        )
    if tensors and all(str(name).startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def _attributes(model: ScriptObject) -> dict[str, TensorView]:
    tensors = {}
    modules = [("", model)]
    # It grows while it is walked, and without an end where a damaged file has a module in itself.
    for prefix, module in modules:
        for name, value in module.attributes.items():
            if isinstance(value, TensorView):
                tensors[prefix + name] = value
            elif isinstance(value, ScriptObject):
                modules.append((f"{prefix}{name}.", value))
        if len(modules) > MAX_MODULES:
            raise InputError(f"the model has more than {MAX_MODULES:,} modules")
    return tensors
