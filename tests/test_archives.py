"""Files of weights: real ones are read, and hostile ones are refused before they do anything."""

import io
import json
import os
import pickle
import re
import struct
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from flaxclip.errors import InputError
from flaxclip.interop.archives import torch_pickle
from flaxclip.interop.archives.open_archive import open_archive
from tests.helpers.torch_files import (
    Call,
    Raw,
    Script,
    Tensor,
    legacy_file,
    pickled,
    saved,
    torch_file,
    without_checksums,
)

GOLDEN = Path(__file__).parent / "golden" / "archives"
ARRAYS = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "a.bias": np.ones(3, np.float16),
    "n": np.array(7),
}
TENSOR = Tensor("0", "FloatStorage", 6, 0, (2, 3), (3, 1))
SIX = np.arange(6, dtype=np.float32).tobytes()


@pytest.fixture(scope="module")
def numbers():
    with np.load(GOLDEN / "numbers.npz") as arrays:
        return dict(arrays)


def read(path):
    return {name: np.asarray(tensor) for name, tensor in open_archive(path).items()}


def npz(arrays, compress=False, **raw):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if compress else 0) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.save(member, array)
            archive.writestr(f"{name}.npy", member.getvalue())
        for name, data in raw.items():
            archive.writestr(f"{name}.npy", data)
    return file.getvalue()


KINDS = {
    "safetensors": safetensors.numpy.save(ARRAYS),
    "state dict": saved(ARRAYS),
    "TorchScript": saved(ARRAYS, script=True),
    "before 1.6": saved(ARRAYS, legacy=True),
    "no checksums": without_checksums(saved(ARRAYS)),
    "npz": npz(ARRAYS),
    "compressed npz": npz(ARRAYS, compress=True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_is_read_whatever_its_name(kind, write):
    tensors = open_archive(write(KINDS[kind]))
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        name: array.shape for name, array in ARRAYS.items()
    }
    for name, array in ARRAYS.items():
        assert tensors[name].dtype == array.dtype
        np.testing.assert_array_equal(np.asarray(tensors[name]), array, strict=True)


NO_CHECKSUMS = ("safetensors", "before 1.6", "before_1_6.pt", "no checksums", "no_checksums.pt")


@pytest.mark.parametrize("file", ["torchscript.pt", "checkpoint.pt", "before_1_6.pt"])
def test_archives_of_torch_are_read(file, numbers):
    tensors = read(GOLDEN / file)
    expected = {n.removeprefix("model/"): x for n, x in numbers.items() if n.startswith("model/")}
    assert tensors.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(tensors[name], array, strict=True)


def test_views_that_share_a_storage_are_told_apart(numbers):
    tensors = read(GOLDEN / "views.pt")
    assert tensors["bfloat16"].dtype == ml_dtypes.bfloat16
    assert tensors["float64"].dtype == np.float64
    for name, array in tensors.items():
        np.testing.assert_array_equal(array.astype(np.float32), numbers[f"views/{name}"])


def test_a_checkpoint_of_torch_2_14_is_read_with_all_that_lies_in_it():
    tensors = read(GOLDEN / "weights_only.pt")
    with np.load(GOLDEN / "new_types.npz") as expected:
        assert tensors.keys() == set(expected)
        for name, array in tensors.items():
            np.testing.assert_array_equal(array.astype(np.float32), expected[name], err_msg=name)
    assert tensors["part"].dtype == np.uint16
    assert tensors["float8_e4m3fn"].dtype == ml_dtypes.float8_e4m3fn


def test_what_torch_saved_without_checksums_is_read():
    with zipfile.ZipFile(GOLDEN / "no_checksums.pt") as archive:
        assert {entry.CRC for entry in archive.infolist()} == {0}
        assert archive.testzip() is not None
    np.testing.assert_array_equal(read(GOLDEN / "no_checksums.pt")["w"], np.arange(6))


def test_threads_read_an_npz_together(write):
    arrays = {f"{n}": np.full(300, n, np.float32) for n in range(400)}
    whole = io.BytesIO()
    np.savez(whole, **arrays)
    tensors = open_archive(write(whole.getvalue()))
    often = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as threads:
            read = list(threads.map(lambda name: np.asarray(tensors[name]), arrays))
    finally:
        sys.setswitchinterval(often)
    np.testing.assert_array_equal(read, list(arrays.values()))


def test_bfloat16_of_safetensors_and_npz(write):
    arrays = {"w": np.arange(4).astype(ml_dtypes.bfloat16)}
    for data in (safetensors.numpy.save(arrays), npz(arrays)):
        (array,) = read(write(data)).values()
        np.testing.assert_array_equal(array, arrays["w"], strict=True)


def test_sharded_safetensors_are_joined(write):
    write(safetensors.numpy.save({"a": ARRAYS["a.weight"]}), "model-00001-of-00002.safetensors")
    write(safetensors.numpy.save({"b": ARRAYS["a.bias"]}), "model-00002-of-00002.safetensors")
    files = {f: f"model-0000{n}-of-00002.safetensors" for n, f in enumerate("ab", 1)}
    index = write(json.dumps({"metadata": {}, "weight_map": files}).encode(), "index.json")
    assert read(index).keys() == {"a", "b"}
    index = write(json.dumps({"weight_map": files | {"c": files["a"]}}).encode(), "index.json")
    with pytest.raises(InputError, match="tensor c is in the index, but not in model-00001-of"):
        open_archive(index)


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", ""])
def test_an_index_cannot_name_files_elsewhere(shard, write):
    index = write(json.dumps({"weight_map": {"w": shard}}).encode(), "index.json")
    with pytest.raises(InputError, match="the index names the file"):
        open_archive(index)


class _MakesAFolder:
    """Unpickled by Python, it leaves a trace."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def hostile_pickles(trace):
    """Each leaves `trace` behind, or another effect, if anything of it is run."""
    made = _MakesAFolder(trace)
    code = f"__import__('os').mkdir({str(trace)!r})"
    key = b"X\x01\x00\x00\x00a"
    return {
        "os.mkdir": {"w": Raw(pickle.dumps(made, protocol=2)[2:-1])},
        "os.mkdir, protocol 4": Raw(pickle.dumps(made, protocol=4)[2:-1]),
        "eval": {"w": Call("builtins", "eval", (code,))},
        "getattr": Call("builtins", "getattr", (Raw(b"cos\nsystem\n"), "__call__")),
        "torch.load": Call("torch", "load", (str(trace),)),
        "numpy's scalar": Call("numpy.core.multiarray", "scalar", (1,)),
        "old-style instance": Raw(f"(S'{trace}'\nios\nmkdir\n".encode()),
        "old-style object": Raw(b"(cos\nmkdir\n" + key + b"o"),
        "a script class called": Call("__torch__", "os.mkdir", (str(trace),)),
        "attributes set on a function": Raw(
            b"ctorch._utils\n_rebuild_tensor_v2\n}" + key + b"K\1sb"
        ),
        "a new object of a known type": Raw(b"ccollections\nOrderedDict\n)\x81"),
        "the registry of extensions": Raw(b"\x82\x01"),
    }


@pytest.mark.parametrize("as_file", [torch_file, legacy_file])
@pytest.mark.parametrize("name", hostile_pickles(Path("x")))
def test_pickles_that_call_functions_run_nothing(name, as_file, write, tmp_path):
    path = write(as_file(hostile_pickles(tmp_path / "ran")[name], {}))
    with pytest.raises(InputError) as error:
        open_archive(path)
    assert sorted(tmp_path.iterdir()) == [path]
    message = str(error.value)
    assert message.startswith(str(path))
    if name in ("os.mkdir", "os.mkdir, protocol 4", "eval", "getattr", "torch.load"):
        assert re.search(r"asks for (posix\.mkdir|builtins\.\w+|os\.system|torch\.load)", message)
        assert "nothing was run" in message


def test_python_would_have_run_it(tmp_path):
    """So that the test above does not pass for want of an effect."""
    hostile = hostile_pickles(tmp_path / "ran")
    pickle.loads(pickled(hostile["os.mkdir"]))
    assert (tmp_path / "ran").is_dir()


def self_containing():
    """A module that is its own child: memo 0 is the object, stored in its own attributes."""
    return Raw(b"c__torch__\nM\n)\x81q\x00}X\x01\x00\x00\x00mh\x00sb")


def doubling(depth):
    """Modules with two names for the same child, `depth` times: 2^depth paths in a few bytes."""
    opcodes = b"c__torch__\nM\n)\x81q\x00"
    for level in range(depth):
        get, put = bytes([level]), bytes([level + 1])
        opcodes += b"c__torch__\nM\n)\x81q" + put + b"}(X\x01\x00\x00\x00ah" + get
        opcodes += b"X\x01\x00\x00\x00bh" + get + b"ub"
    return Raw(opcodes)


DAMAGED = "the pickle is damaged"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"w": TENSOR._replace(shape=(3, 3))}, "w reaches beyond the 6 numbers"),
        ({"w": TENSOR._replace(offset=1)}, "w reaches beyond the 6 numbers"),
        ({"w": TENSOR._replace(offset=-1)}, "a size of -1"),
        ({"w": TENSOR._replace(strides=(-3, 1))}, "a size of -3"),
        ({"w": TENSOR._replace(shape=(2**40,), strides=(0,))}, "w repeats 6 stored numbers"),
        ({"w": TENSOR._replace(shape=(2,))}, DAMAGED),
        ({"w": TENSOR._replace(shape=(2.0, 3))}, "a size of 2.0"),
        ({"w": TENSOR._replace(size=7)}, "w lies in 7 numbers of float32, but 24 bytes are"),
        ({"w": TENSOR._replace(kind="DoubleStorage")}, "6 numbers of float64, but 24 bytes"),
        ({"w": TENSOR._replace(kind="QInt8Storage")}, "asks for torch.QInt8Storage"),
        ({"w": TENSOR._replace(key="../0")}, "a storage named"),
        ({"w": TENSOR._replace(key="9")}, "the archive has no entry archive/data/9"),
        ({"w": TENSOR, "epoch": 3}, "'epoch' in the file is of type int, not a tensor"),
        ({3: TENSOR}, "a dict with 3 for a name, not a state dict"),
        ({"w": TENSOR._replace(part_of=(("1", 0, 6),))}, "a part of a storage"),
        ([TENSOR], "the file holds a list"),
        (self_containing(), "more than 10,000 modules"),
        (doubling(100), "more than 10,000 modules"),
        ({"w": Raw(b"(" * 100_000)}, DAMAGED),
        (Raw(b"}" + b"(" * 50_000 + b"t" * 50_000 + b"Ns"), "found tuple as the key of a dict"),
        (Raw(b"h\x07"), DAMAGED),
        (Raw(b"X\xff\xff\xff\x7fabc"), DAMAGED),
        (Raw(b"\x8e" + b"\xff" * 8), DAMAGED),
        (Raw(b"Nr\xff\xff\xff\x7f0"), "an instruction that torch does not write: POP"),
    ],
)
def test_descriptions_that_cannot_be_are_refused(value, message, write):
    path = write(torch_file(value, {"0": SIX}))
    with pytest.raises(InputError, match=message):
        open_archive(path)


def test_what_nests_without_end_is_neither_written_out_nor_hashed(write):
    """A tuple of the same tuple twice, a hundred times over, in a few bytes."""
    value = Raw(b")" + b"q\x00h\x00\x86" * 100)
    type_and_key = (Raw(b"ctorch\nFloatStorage\n"), value)
    for message, described in {
        "a size of tuple": {"w": TENSOR._replace(shape=(value, 3))},
        "found tuple as the key of a dict": Raw(b"}" + value.opcodes + b"Ns"),
        "found tuple in place of str": Raw(
            pickled(("storage", *type_and_key, "cpu", 6))[2:-1] + b"Q"
        ),
        "'w' in the file is of type list, not a tensor": {"w": Call("builtins", "set", ([value],))},
    }.items():
        with pytest.raises(InputError, match=message):
            open_archive(write(torch_file(described, {"0": SIX})))


def test_a_pickle_of_too_many_instructions_is_given_up(write, monkeypatch):
    monkeypatch.setattr(torch_pickle, "MAX_INSTRUCTIONS", 1000)
    for as_file in (torch_file, legacy_file):
        with pytest.raises(InputError, match="more than 1,000 instructions"):
            open_archive(write(as_file(Raw(b"N" * 1002), {})))


def test_a_script_without_tensors_has_none(write):
    value = Script("M", {"child": Script("N", {"training": True}), "sizes": [1]})
    assert open_archive(write(torch_file(value, {}))) == {}


def test_a_storage_is_checked_when_it_is_read(write):
    data = bytearray(torch_file({"w": TENSOR}, {"0": SIX}))
    data[data.index(SIX) + 3] ^= 1
    tensors = open_archive(write(bytes(data)))
    with pytest.raises(InputError, match="tensor w cannot be read: Bad CRC-32"):
        np.asarray(tensors["w"])


def test_zip_bombs_are_refused_before_they_take_memory(write):
    zeros = bytes(2**28)
    bomb = torch_file({"w": TENSOR._replace(size=2**26)}, {"0": zeros}, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 2**20
    with pytest.raises(InputError, match=r"archive/data.pkl is compressed\ntorch writes none"):
        open_archive(write(bomb))
    bomb = npz({"w": np.zeros(2**25)}, compress=True)
    with pytest.raises(InputError, match="bytes that expand to 268,435,584"):
        open_archive(write(bomb))
    with pytest.raises(InputError, match="the pickle has 67,108,865 bytes"):
        torch_pickle.read_pickle(bytes(2**26 + 1))


def test_an_npy_header_must_fit_the_bytes_that_follow(write):
    member = io.BytesIO()
    np.save(member, np.zeros(3, np.float32))
    huge = member.getvalue().replace(b"(3,)", b"(9,)")
    with pytest.raises(InputError, match=r"tensor w of shape \[9\] .* does not fill the 140 bytes"):
        open_archive(write(npz({}, w=huge)))
    with pytest.raises(InputError, match="tensor w holds Python objects"):
        open_archive(write(npz({"w": np.array([{}], object)})))
    with pytest.raises(InputError, match="tensor w has no usable header"):
        open_archive(write(npz({}, w=b"\x93NUMPY\x01\x00\x10\x00{'descr': a()")))


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "archive/../../evil", "a\\..\\evil"])
def test_entries_outside_the_archive_are_refused(name, write):
    file = io.BytesIO(torch_file({"w": TENSOR}, {"0": SIX}))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(name, b"")
    with pytest.raises(InputError, match="outside of its folder"):
        open_archive(write(file.getvalue()))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_entries_of_one_name_are_refused(write):
    file = io.BytesIO(torch_file({"w": TENSOR}, {"0": SIX}))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("archive/data/0", SIX)
    with pytest.raises(InputError, match="two entries 'archive/data/0'"):
        open_archive(write(file.getvalue()))


def test_big_endian_archives_are_refused(write):
    file = io.BytesIO(torch_file({"w": TENSOR}, {"0": SIX}))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("archive/byteorder", "big")
    with pytest.raises(InputError, match="byte order b'big'"):
        open_archive(write(file.getvalue()))


def test_safetensors_of_other_types_are_refused_by_name(write):
    header = json.dumps({"w": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}).encode()
    path = write(struct.pack("<Q", len(header)) + header + b"ab")
    with pytest.raises(InputError, match="tensor w is of type F4"):
        open_archive(path)


@pytest.mark.parametrize("data", [b"", b"<html>", b"{}", b"[]", b"{not json", b"PK\3\4", bytes(99)])
def test_other_files_are_refused(data, write):
    with pytest.raises(InputError):
        open_archive(write(data))


EVERY_KIND = [
    *KINDS,
    "torchscript.pt",
    "checkpoint.pt",
    "views.pt",
    "before_1_6.pt",
    "weights_only.pt",
    "no_checksums.pt",
]


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_cut_off_files_are_refused(kind, write):
    data = KINDS[kind] if kind in KINDS else (GOLDEN / kind).read_bytes()
    for length in np.linspace(0, len(data) - 1, 40).astype(int):
        with pytest.raises(InputError):
            read(write(data[:length]))


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_flipped_bits_never_give_other_numbers_in_silence(kind, write):
    """Nor any other exception than ours.

    Without checksums the numbers may change. Tensors may be missing, where it is the
    archive's list that is damaged; whoever wants them all says so then.
    """
    data = KINDS[kind] if kind in KINDS else (GOLDEN / kind).read_bytes()
    good = read(write(data))
    rng = np.random.default_rng(0)
    refused = 0
    for position in rng.choice(len(data), min(len(data), 150), replace=False):
        damaged = bytearray(data)
        damaged[position] ^= 1 << rng.integers(8)
        try:
            tensors = read(write(bytes(damaged)))
        except InputError:
            refused += 1
            continue
        if kind not in NO_CHECKSUMS:
            for name, array in tensors.items():
                np.testing.assert_array_equal(array, good[name], strict=True)
    assert refused > 10


def test_plain_values_are_read_as_they_are():
    value = {"a": [1, 2.5, None, True, (3, "x")], "t": TENSOR, "big": 2**40}
    result = torch_pickle.read_pickle(pickled(value))
    assert result["a"] == [1, 2.5, None, True, (3, "x")]
    assert result["big"] == 2**40
    assert (result["t"].shape, result["t"].end) == ((2, 3), 6)
