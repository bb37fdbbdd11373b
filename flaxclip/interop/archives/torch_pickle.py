"""Read the description in a pickle of torch without executing it.

A pickle is a program for a stack machine, and Python's own machine calls whatever functions the
program names. This one has the instructions that torch writes, and calls nothing: it notes that a
tensor lies in a given storage at a given offset, and refuses every function outside a short list.
It accepts the same files as `torch.load(weights_only=True)`, except those that need execution.
"""

import io
import pickletools
from collections.abc import Iterator
from typing import Any, NamedTuple

from flaxclip.errors import InputError
from flaxclip.interop.archives import torch_names as names
from flaxclip.interop.archives.torch_values import Other, ScriptObject, Storage, TensorView

MAX_BYTES = 64 * 2**20
"""Limit of one pickle. Names and sizes of a thousand tensors with optimizer state take under one
MiB."""
MAX_INSTRUCTIONS = 5_000_000
"""Limit of one pickle: some 60 describe a tensor."""
MAX_AXES = 64
"""Limit of a tensor, the same as torch's."""


class Described(NamedTuple):
    """The contents of a pickle, as a description."""

    value: Any
    """Made of plain containers, `TensorView`, `ScriptObject` and `Other`."""
    storages: dict[str, Storage]
    """All storages that it refers to, by key."""


class _Global(NamedTuple):
    name: str


def read_pickle(data: bytes) -> Any:
    """The value that `data` describes.

    Raises:
        InputError: the pickle names a function or type that holds no tensors, or is damaged.
    """
    if len(data) > MAX_BYTES:
        raise InputError(f"the pickle has {len(data):,} bytes\nexpected at most {MAX_BYTES:,}")
    return next(read_pickles(io.BytesIO(data))).value


def read_pickles(stream: io.BytesIO) -> Iterator[Described]:
    """Each of the pickles in `stream`, which is then positioned after the last one read.

    Raises:
        InputError: as `read_pickle`.
    """
    while True:
        machine = _Machine()
        try:
            value = machine.run(stream)
        except InputError:
            raise
        except (
            ValueError,
            TypeError,
            IndexError,
            KeyError,
            AttributeError,
            OverflowError,
        ) as error:
            raise InputError(f"the pickle is damaged: {type(error).__name__}: {error}") from None
        yield Described(value, machine.storages)


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def run(self, stream: io.BytesIO) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if opcode.name == "STOP":
                return self.stack.pop()
            if count > MAX_INSTRUCTIONS:
                raise InputError(f"the pickle has more than {MAX_INSTRUCTIONS:,} instructions")
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
            # The last two are Python 2's.
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINSTRING" | "SHORT_BINSTRING":
                push(argument)
            case "BINBYTES" | "SHORT_BINBYTES" | "BYTEARRAY8":
                push(Other("bytes"))
            case "EMPTY_DICT":
                push({})
            case "EMPTY_LIST" | "EMPTY_SET":  # nothing here needs a set, or to hash what is in it
                push([])
            case "EMPTY_TUPLE":
                push(())
            case "TUPLE" | "FROZENSET":
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
            case "APPENDS" | "ADDITEMS":
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
                push(self.storage(pop()))
            case "REDUCE":
                arguments, function = _expect(pop(), tuple), _expect(pop(), _Global)
                push(_call(function.name, arguments))
            case "NEWOBJ":
                arguments, kind = pop(), _expect(pop(), _Global)
                is_object = kind.name.startswith(names.SCRIPT_CLASSES) or kind.name in names.RECORDS
                if not is_object or arguments != ():
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

    def storage(self, identifier: Any) -> Storage:
        # The format before 1.6 has a sixth part: the storage that this one is a part of.
        kind, storage_type, key, _, size, *part_of = _expect(identifier, tuple)
        if part_of not in ([], [None]):
            raise ValueError("a part of a storage, as torch before 0.4 saved it")
        dtype = names.STORAGES[_expect(storage_type, _Global).name]
        _check_counts((size,))
        if kind != "storage" or not _expect(key, str).isalnum():
            raise ValueError(f"a storage named {_shown(key)}")
        described = Storage(key, dtype, size)
        storage = self.storages.setdefault(key, described)
        if storage != described:
            raise ValueError(f"storage {key} is described twice, and not the same")
        return storage


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"found {type(value).__name__} in place of {kind.__name__}")
    return value


def _shown(value: Any) -> str:
    """A short form of a value for a message: nested values may be endless."""
    return repr(value) if isinstance(value, str | int | float | None) else type(value).__name__


def _set_items(target: Any, items: list[Any]) -> None:
    keys, values = items[::2], items[1::2]
    for key in keys:
        # What nests may take for ever to hash.
        parts = key if isinstance(key, tuple) and len(key) <= MAX_AXES else (key,)
        if not all(isinstance(part, str | int | float | None) for part in parts):
            raise TypeError(f"found {type(key).__name__} as the key of a dict")
    _expect(target, dict).update(zip(keys, values, strict=True))


def _flat(mapping: dict[Any, Any]) -> list[Any]:
    return [part for item in mapping.items() for part in item]


def _global(name: str) -> _Global:
    # Python 2's name, which pickles of protocol 2 have.
    name = name.replace("__builtin__.", "builtins.", 1)
    if name in names.QUANTISED:
        raise InputError(
            f"the pickle asks for {name}: the file holds quantised tensors, which cannot be read\n"
            "expected floating-point weights: save those of the model before it was quantised"
        )
    if name not in names.KNOWN and not name.startswith(names.SCRIPT_CLASSES):
        raise InputError(
            f"the pickle asks for {name}, and nothing was run\n"
            "weights need only tensors, dicts and lists; in a program that trusts this file, save "
            "them alone: torch.save(model.state_dict(), path)"
        )
    return _Global(name)


def _call(name: str, arguments: tuple[Any, ...]) -> Any:
    if name in names.DICTS:
        return _dict(*arguments)
    if name in names.WRAPPERS:
        return arguments[0]
    if name in names.OTHERS:
        return Other(names.OTHERS[name])
    if name == names.REBUILD_FROM_TYPE:  # a tensor with attributes
        function, _, inner, _ = arguments
        if _expect(function, _Global).name == name:
            raise ValueError("a tensor's attributes within a tensor's attributes")
        return _call(function.name, _expect(inner, tuple))
    if name in names.REBUILD_TENSOR:
        return _tensor(names.REBUILD_TENSOR[name], arguments)
    raise ValueError(f"a call of {name} with {len(arguments)} arguments")


def _dict(items: Any = ()) -> dict[Any, Any]:
    """An OrderedDict of pairs is what Python 2 wrote."""
    if isinstance(items, dict):
        return items
    made: dict[Any, Any] = {}
    for key, value in items:
        _set_items(made, [key, value])
    return made


def _tensor(version: int, arguments: tuple[Any, ...]) -> TensorView | Other:
    storage, offset, shape, strides = arguments[:4]
    _expect(storage, Storage)
    if len(_expect(shape, tuple)) > MAX_AXES or len(shape) != len(_expect(strides, tuple)):
        raise ValueError(f"{len(shape)} axes with {len(strides)} strides")
    _check_counts((offset, *shape, *strides))
    if version == 3:  # types that have no storage of their own lie in one of bytes
        name = _expect(arguments[6], _Global).name
        if name not in names.DTYPES:
            return Other(f"a tensor of {name}")
        dtype = names.DTYPES[name]
        count, rest = divmod(storage.size * storage.dtype.itemsize, dtype.itemsize)
        if rest:
            raise ValueError(f"{storage.size} bytes of {name}")
        storage = Storage(storage.key, dtype, count)
    # Last, and seldom there: that what is stored is the negative or the conjugate of the tensor.
    metadata = arguments[7 if version == 3 else 6 :]
    if any(metadata):
        return Other("a tensor that is stored negated or conjugated")
    return TensorView(storage, offset, shape, strides)


def _check_counts(numbers: tuple[Any, ...]) -> None:
    for number in numbers:
        if type(number) is not int or not 0 <= number < 2**48:
            raise ValueError(f"a size of {_shown(number)}")
