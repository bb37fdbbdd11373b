"""Which of a checkpoint's contents are the weights, and how the model itself calls them."""

import io
import itertools
import json
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import flaxclip
from flaxclip.errors import InputError
from flaxclip.interop.archives.open_archive import open_archive
from flaxclip.interop.archives.safetensors_file import is_safetensors
from flaxclip.interop.open_clip.names import open_clip_table
from flaxclip.interop.open_clip.write_config import open_clip_json
from tests.helpers.small_models import CLIP, variables_of
from tests.helpers.torch_files import (
    RAW,
    Call,
    Raw,
    Tensor,
    assert_is,
    checkpoint,
    legacy_file,
    pickled,
    saved,
    torch_file,
)


@pytest.mark.parametrize("rest", [0, 2, 0x4B, 0x0303])
def test_a_safetensors_file_may_begin_with_any_byte(rest, write):
    """Its first bytes are the length of its header: those of a zip, a pickle or JSON, too."""
    entry = {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    header = json.dumps(entry).encode()
    for byte in range(0 if rest else len(header), 256):
        length = rest * 256 + byte
        data = struct.pack("<Q", length) + header.ljust(length) + struct.pack("<f", 1.5)
        (tensor,) = open_archive(write(data)).values()
        assert np.asarray(tensor) == [1.5]


def test_no_other_kind_of_file_is_taken_for_safetensors():
    npz = io.BytesIO()
    np.savez(npz, w=np.ones(3))
    legacy = {protocol: struct.pack("<BB", 0x80, protocol) for protocol in range(2, 6)}
    for start in (
        npz.getvalue(),
        saved(RAW),
        saved(RAW, legacy=True),
        *(begin + pickled(0x1950A86A20F9469CFC6C)[2:] for begin in legacy.values()),
        b'{"weight_map": {"w": "model.safetensors"}}',
        b'{\n  "metadata": {',
        b"        {}",
        b"",
        b"\x89HDF\r\n\x1a\n{",
    ):
        assert not is_safetensors(start)
    # As long as a header can be, and with the mark of a zip archive.
    assert is_safetensors(b"PK\3\4\0\0\0\0{")
    assert not is_safetensors(b"PK\3\4\24\0\0\0\0\0")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab", "a pointer of Git LFS"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"\x89HDF\r\n\x1a\n\0\0\0\0", "an HDF5 file"),
        (pickled({"w": 1}), "a pickle that is not of torch.save"),
        (b"\x80\x02", "a pickle that is not of torch.save"),
        (b"not weights", "no file of weights: starts with"),
    ],
)
def test_files_that_are_no_weights_are_called_by_what_they_are(data, message, write):
    with pytest.raises(InputError, match=message):
        open_archive(write(data))


def view(kind, key="0"):
    return Raw(pickled(("storage", Raw(kind), key, "cpu", 8))[2:-1] + b"Q")


def untyped(dtype, shape, offset=0):
    strides = (1,) * len(shape)
    storage = view(b"ctorch.storage\nUntypedStorage\n")
    dtype = Raw(f"ctorch\n{dtype}\n".encode())
    arguments = (
        storage,
        offset,
        shape,
        strides,
        False,
        Call("collections", "OrderedDict", ()),
        dtype,
    )
    return Call("torch._utils", "_rebuild_tensor_v3", arguments)


@pytest.mark.parametrize(
    ("name", "count", "dtype"),
    [
        ("uint16", 4, np.uint16),
        ("uint64", 1, np.uint64),
        ("float8_e4m3fn", 8, ml_dtypes.float8_e4m3fn),
        ("float8_e5m2", 8, ml_dtypes.float8_e5m2),
        ("float8_e4m3fnuz", 8, ml_dtypes.float8_e4m3fnuz),
        ("float8_e8m0fnu", 8, ml_dtypes.float8_e8m0fnu),
    ],
)
def test_newer_types_lie_in_storages_of_bytes(name, count, dtype, write):
    data = bytes(range(8))
    archive = open_archive(write(torch_file({"w": untyped(name, (count,))}, {"0": data})))
    assert archive["w"].dtype == dtype
    np.testing.assert_array_equal(
        np.asarray(archive["w"]).view(np.uint8), np.frombuffer(data, np.uint8)
    )
    with pytest.raises(InputError, match="w reaches beyond the"):
        open_archive(write(torch_file({"w": untyped(name, (count,), 1)}, {"0": data})))


def test_8_bit_floats_of_safetensors_are_numbers(write):
    tensors = {"w": np.arange(8).astype(ml_dtypes.float8_e4m3fn)}
    header = {"w": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}}
    start = json.dumps(header).encode()
    path = write(struct.pack("<Q", len(start)) + start + tensors["w"].tobytes())
    np.testing.assert_array_equal(np.asarray(open_archive(path)["w"]), tensors["w"], strict=True)


TENSOR = Tensor("0", "FloatStorage", 2, 0, (2,), (1,))


def called(name, *arguments):
    module, _, function = name.rpartition(".")
    return Call(module, function, arguments)


BESIDE = {
    "device": called("torch.device", "cuda", 0),
    "size": called("torch.Size", (1, 2)),
    "dtype": Raw(b"ctorch\nbfloat16\n"),
    "set": called("__builtin__.set", [1, 2]),
    "bytes": called("_codecs.encode", "ab\xff", "latin1"),
    "no bytes": called("__builtin__.bytes"),
    "bytearray": called("__builtin__.bytearray", called("_codecs.encode", "x", "latin1")),
    "complex": called("__builtin__.complex", 1.0, 2.0),
    "counter": called("collections.Counter", {"a": 2}),
    "layout": called("torch.serialization._get_layout", "torch.strided"),
    "keys": Raw(
        pickled({})[2:-1] + b"(K\x01K\x02\x86K\x03NK\x01G" + struct.pack(">d", 1.5) + b"K\x02u"
    ),
    "namespace": Raw(b"cargparse\nNamespace\n)\x81}X\x02\0\0\0lrG" + bytes(8) + b"sb"),
    "Python 2": called("collections.OrderedDict", [["a", Raw(b"U\x01b")]]),
    "protocols 3 to 5": Raw(b"(C\x01aB\x01\0\0\0a\x8f(K\1\x90(K\1\x91t"),
    "sparse": called("torch._utils._rebuild_sparse_tensor", Raw(b"N"), ()),
    "meta": called("torch._utils._rebuild_meta_tensor_no_storage", Raw(b"ctorch\nfloat32\n"), (2,)),
}


@pytest.mark.parametrize("as_file", ["zip", "before 1.6"])
def test_what_torch_takes_beside_weights_is_taken_and_not_run(as_file, write):
    value = {"state_dict": {"w": TENSOR}} | BESIDE
    numbers = np.array([1.5, 2.5], np.float32)
    data = (
        torch_file(value, {"0": numbers.tobytes()})
        if as_file == "zip"
        else legacy_file(value, {"0": (2, numbers.tobytes())})
    )
    assert_is(open_archive(write(data)), {"w": numbers})


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (BESIDE["sparse"], "'w' in the file is of type a sparse tensor, not a tensor that"),
        (BESIDE["meta"], "is of type a tensor without numbers"),
        (untyped("float4_e2m1fn_x2", (8,)), "is of type a tensor of torch.float4_e2m1fn_x2"),
        (called("torch._utils._rebuild_qtensor"), "_rebuild_qtensor: the file holds quantised"),
        (
            called("torch._utils._rebuild_tensor_v2", view(b"ctorch\nByteStorage\n"), 0, (8,), (1,),
                   False, {}, {"neg": True}),
            "is of type a tensor that is stored negated",
        ),
        (untyped("uint16", (4,) * 65), "65 axes"),
    ],
)  # fmt: skip
def test_tensors_whose_numbers_are_not_those_stored_are_refused_by_name(tensor, message, write):
    with pytest.raises(InputError, match=message):
        open_archive(write(torch_file({"w": tensor}, {"0": bytes(8)})))


def tensor_arguments():
    storage = Raw(pickled(("storage", Raw(b"ctorch\nFloatStorage\n"), "0", "cpu", 2))[2:-1] + b"Q")
    return storage, 0, (2,), (1,), False, Call("collections", "OrderedDict", ())


def test_parameters_with_attributes_are_tensors(write):
    inner = called("torch._utils._rebuild_tensor_v2", *tensor_arguments())
    hooks = Call("collections", "OrderedDict", ())
    with_state = called("torch._utils._rebuild_parameter_with_state", inner, True, hooks, {"a": 1})
    rebuild = Raw(b"ctorch._utils\n_rebuild_tensor_v2\n")
    kind = Raw(b"ctorch\nTensor\n")
    from_type = called("torch._tensor._rebuild_from_type_v2", rebuild, kind, tensor_arguments(), {})
    numbers = np.arange(2, dtype=np.float32)
    archive = open_archive(
        write(torch_file({"a": with_state, "b": from_type}, {"0": numbers.tobytes()}))
    )
    assert_is(archive, {"a": numbers, "b": numbers})


PREFIXES = ("module.", "_orig_mod.", "model.", "_fsdp_wrapped_module.", "clip.")


@pytest.mark.parametrize("kind", ["safetensors", "torch", "npz"])
def test_prefixes_of_training_are_taken_off_in_any_order(kind, write):
    for count in (1, 2, 3):
        for prefixes in itertools.permutations(PREFIXES, count):
            arrays = {"".join(prefixes) + name: array for name, array in RAW.items()}
            file = io.BytesIO()
            np.savez(file, **arrays)
            data = {
                "safetensors": safetensors.numpy.save(arrays),
                "torch": saved(arrays),
                "npz": file.getvalue(),
            }[kind]
            assert_is(open_archive(write(data)), RAW)


def test_parts_that_are_compiled_or_wrapped_alone_are_found(write):
    arrays = {"visual._orig_mod.proj": RAW["visual.proj"], "logit_scale": RAW["logit_scale"]}
    assert_is(open_archive(write(saved(arrays))), RAW)
    arrays = {f"module.{name}": array for name, array in arrays.items()}
    assert_is(open_archive(write(saved(arrays))), RAW)


def test_names_that_no_wrapper_made_stay(write):
    for arrays in (
        {"module.w": RAW["visual.proj"], "w": RAW["logit_scale"]},
        {"module": RAW["visual.proj"]},
        {"my_orig_mod.w": RAW["visual.proj"]},
        {"vision_model.w": RAW["visual.proj"]},
    ):
        assert_is(open_archive(write(saved(arrays))), arrays)
    with pytest.raises(InputError, match=r"two tensors have the same name .* a\._orig_mod\.w"):
        open_archive(write(saved({"a.w": RAW["logit_scale"], "a._orig_mod.w": RAW["logit_scale"]})))


@pytest.mark.parametrize(
    "key", ["state_dict", "model_state_dict", "model", "module", "net", "params"]
)
def test_checkpoints_hold_the_weights_under_several_names(key, write):
    wrapped = {f"module.{name}": array for name, array in RAW.items()}
    for value in ({key: wrapped}, {key: wrapped, "epoch": 3}, {"model": {key: wrapped}}):
        archive = open_archive(write(checkpoint({"optimizer": {"state": {}}} | value)))
        assert_is(archive, RAW)
        assert archive.describe() == ""


def test_numbers_of_several_types_in_one_file_are_read_as_they_are(write):
    """Mixed precision leaves norms in float32 and casts what else there is."""
    types = (ml_dtypes.bfloat16, np.float16, np.float32)
    arrays = {
        f"visual.{number}.weight": np.linspace(-3, 3, 6, dtype=np.float32).astype(dtype)
        for number, dtype in enumerate(types)
    }
    assert_is(open_archive(write(safetensors.numpy.save(arrays))), arrays)
    del arrays["visual.0.weight"]  # torch's bfloat16 is among its files in tests/golden/archives
    assert_is(open_archive(write(checkpoint({"optimizer": {}, "state_dict": arrays}))), arrays)


def test_a_loss_beside_the_weights_is_not_one_of_them(write):
    value = {
        "state_dict": RAW,
        "best": RAW["logit_scale"],
        "loss_avg": {"train": RAW["visual.proj"]},
    }
    archive = open_archive(write(checkpoint(value)))
    assert_is(archive, RAW)
    assert archive.key == "state_dict"


@pytest.mark.parametrize("scale", ["visual.proj.weight_scale", "visual.proj.SCB"])
def test_quantised_weights_are_refused_by_name(scale, tmp_path):
    tensors = open_clip_table(CLIP.model).to_theirs(variables_of(CLIP))
    tensors |= {scale: np.ones(3, np.float32)}
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(open_clip_json(CLIP)))
    with pytest.raises(InputError, match=f"tensor {scale} belongs to quantised weights"):
        flaxclip.load(tmp_path / "model.safetensors")


def test_8_bit_floats_without_scales_are_read_as_the_numbers_they_are(tmp_path):
    tensors = open_clip_table(CLIP.model).to_theirs(variables_of(CLIP))
    small = {name: array.astype(ml_dtypes.float8_e5m2) for name, array in tensors.items()}
    header, start = {}, 0
    for name, array in small.items():
        offsets = [start, start := start + array.nbytes]
        header[name] = {"dtype": "F8_E5M2", "shape": array.shape, "data_offsets": offsets}
    text = json.dumps(header).encode()
    data = struct.pack("<Q", len(text)) + text + b"".join(a.tobytes() for a in small.values())
    (tmp_path / "model.safetensors").write_bytes(data)
    (tmp_path / "open_clip_config.json").write_text(json.dumps(open_clip_json(CLIP)))
    back = open_clip_table(CLIP.model).to_theirs(flaxclip.load(tmp_path).variables)
    for name, array in small.items():
        np.testing.assert_array_equal(back[name], array.astype(np.float32))
