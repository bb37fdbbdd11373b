"""Torch's files, written without torch, honest ones and others."""

import io
import struct
import zipfile
from typing import Any, NamedTuple

import numpy as np

RAW = {"visual.proj": np.ones((2, 3), np.float32), "logit_scale": np.array(1.0, np.float32)}


class Tensor(NamedTuple):
    """A view of a storage, as torch writes it."""

    key: str
    kind: str
    size: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    part_of: tuple[Any, ...] = ()
    """Of the format before 1.6, where a storage may be a part of another: (None,) if it is not."""


class Script(NamedTuple):
    """An object of a TorchScript class."""

    name: str
    attributes: dict[str, Any]


class Call(NamedTuple):
    """A call of a function by name."""

    module: str
    name: str
    arguments: tuple[Any, ...]


class Raw(NamedTuple):
    """Instructions as they are."""

    opcodes: bytes


def pickled(value: Any) -> bytes:
    """A pickle, protocol 2, with the instructions that torch uses."""
    return b"\x80\x02" + _opcodes(value) + b"."


def _opcodes(value: Any) -> bytes:
    match value:
        case Raw(opcodes):
            return opcodes
        case Call(module, name, arguments):
            return f"c{module}\n{name}\n".encode() + _opcodes(arguments) + b"R"
        case Script(name, attributes):
            return f"c__torch__\n{name}\n".encode() + b")\x81" + _opcodes(attributes) + b"b"
        case Tensor(key, kind, size, offset, shape, strides, part_of):
            storage_type = Raw(f"ctorch\n{kind}\n".encode())
            storage = Raw(_opcodes(("storage", storage_type, key, "cpu", size, *part_of)) + b"Q")
            hooks = Call("collections", "OrderedDict", ())
            arguments = (storage, offset, shape, strides, False, hooks)
            return _opcodes(Call("torch._utils", "_rebuild_tensor_v2", arguments))
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int() if -(2**31) <= value < 2**31:
            return b"J" + struct.pack("<i", value)
        case int():
            number = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8a" + bytes([len(number)]) + number
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + b"".join(map(_opcodes, value)) + b"t"
        case list():
            return b"](" + b"".join(map(_opcodes, value)) + b"e"
        case dict():
            items = (part for item in value.items() for part in item)
            return b"}(" + b"".join(map(_opcodes, items)) + b"u"
    raise TypeError(type(value))


_KINDS = {
    "float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
}  # fmt: skip


def torch_file(value: Any, storages: dict[str, bytes], compression: int = 0) -> bytes:
    """An archive whose pickle describes `value`."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled(value))
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
        archive.writestr("archive/version", "3\n")
    return file.getvalue()


def legacy_file(value: Any, storages: dict[str, tuple[int, bytes]]) -> bytes:
    """A file of the format before 1.6; `storages` are counts of numbers, and the numbers."""
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    file = b"".join(map(pickled, (0x1950A86A20F9469CFC6C, 1001, machine, value, [*storages])))
    return file + b"".join(struct.pack("<q", count) + data for count, data in storages.values())


def saved(arrays: dict[str, np.ndarray], script: bool = False, legacy: bool = False) -> bytes:
    """What `torch.save` makes of a state dict, or `torch.jit.save` of a model that has it."""
    tensors, storages = stored(arrays, legacy=legacy)
    if legacy:
        sizes = {tensor.key: tensor.size for tensor in tensors.values()}
        return legacy_file(tensors, {key: (sizes[key], data) for key, data in storages.items()})
    return torch_file(_modules(tensors) if script else tensors, storages)


def stored(
    arrays: dict[str, np.ndarray], first: int = 0, legacy: bool = False
) -> tuple[dict[str, Tensor], dict[str, bytes]]:
    """Tensors and storages of a state dict; keys count from `first`."""
    tensors, storages = {}, {}
    for number, (name, array) in enumerate(arrays.items(), first):
        array = np.array(array, order="C")
        strides = tuple(step // array.itemsize for step in array.strides)
        kind, part_of = _KINDS[array.dtype.name], (None,) if legacy else ()
        tensors[name] = Tensor(str(number), kind, array.size, 0, array.shape, strides, part_of)
        storages[str(number)] = array.tobytes()
    return tensors, storages


def checkpoint(value: dict[str, Any]) -> bytes:
    """What `torch.save` makes of a dict in which dicts of arrays are state dicts."""
    storages: dict[str, bytes] = {}

    def described(part: Any) -> Any:
        if not isinstance(part, dict):
            return part
        arrays = {name: x for name, x in part.items() if isinstance(x, np.ndarray)}
        tensors, more = stored(arrays, len(storages))
        storages.update(more)
        return {
            name: tensors[name] if name in tensors else described(x) for name, x in part.items()
        }

    return torch_file(described(value), storages)


def without_checksums(archive: bytes) -> bytes:
    """The zip archive as torch writes it after `torch.serialization.set_crc32_options(False)`."""
    changed = bytearray(archive)
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        at = file.start_dir
        for entry in file.infolist():
            for place in (entry.header_offset + 14, at + 16):
                changed[place : place + 4] = bytes(4)
            at += 46 + len(entry.filename) + len(entry.extra) + len(entry.comment)
    return bytes(changed)


def _modules(tensors: dict[str, Tensor]) -> Script:
    children: dict[str, Any] = {}
    for name, tensor in tensors.items():
        first, _, rest = name.partition(".")
        if rest:
            children.setdefault(first, {})[rest] = tensor
        else:
            children[first] = tensor
    attributes = {
        name: _modules(child) if isinstance(child, dict) else child
        for name, child in children.items()
    }
    return Script("Module", {"training": True} | attributes)


def assert_is(archive, arrays):
    assert archive.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(np.asarray(archive[name]), array)
