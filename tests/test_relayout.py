"""Tensors of files in places of another order, a block at a time."""

import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from einops import rearrange

from flaxclip.errors import InputError
from flaxclip.interop import relayout
from flaxclip.interop.archives.safetensors_file import open_safetensors
from flaxclip.interop.relayout import empty_aligned, fill

# einops: a tensor's axes, and their order in the memory that is filled.
ORDERS = ["a b c -> a b c", "a b c -> b c a", "a b c -> c b a", "a b c -> b a c", "a b c -> a c b"]


def stored(tensor, folder):
    """The tensor as a file has it."""
    file = folder / "model.safetensors"
    safetensors.numpy.save_file({"other": np.ones(3, np.float16), "x": tensor}, file)
    return open_safetensors(file)["x"]


def place_for(tensor, order):
    """Uninitialised memory in this order, seen in the order of the tensor's axes."""
    theirs, ours = order.split(" -> ")
    room = empty_aligned(rearrange(tensor, order).shape)
    return rearrange(room, f"{ours} -> {theirs}")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("block", [7, 60, 500, 2**18])
def test_every_number_arrives_whatever_the_block(block, order, dtype, tmp_path, monkeypatch):
    """A block is less than a row, no multiple of one, several rows, and the whole tensor."""
    monkeypatch.setattr(relayout, "_BLOCK", block)
    tensor = np.random.default_rng(0).standard_normal((19, 5, 11), np.float32).astype(dtype)
    place = place_for(tensor, order)
    fill(place, stored(tensor, tmp_path))
    np.testing.assert_array_equal(place, tensor.astype(np.float32))
    fill(place, -tensor)
    np.testing.assert_array_equal(place, -tensor.astype(np.float32))


def test_bits_of_numbers_that_are_none_stay_as_they_are(tmp_path):
    bits = np.array([[0x7FC00001, 0xFF800000, 0x7FA12345], [1, 0x80000000, 0x7F800000]], np.uint32)
    for order in ("a b -> a b", "a b -> b a"):
        place = place_for(bits, order)
        fill(place, stored(bits.view(np.float32), tmp_path))
        np.testing.assert_array_equal(place.view(np.uint32), bits)


@pytest.mark.parametrize("shape", [(), (1,), (0, 3)])
def test_one_number_and_none(shape, tmp_path):
    place = empty_aligned(shape)
    fill(place, stored(np.full(shape, 3, np.float32), tmp_path))
    np.testing.assert_array_equal(place, np.full(shape, 3, np.float32))


@pytest.mark.parametrize("order", ["a b -> a b", "a b -> b a"])
def test_a_file_that_has_become_shorter_is_named_as_damaged(order, tmp_path):
    tensor = np.ones((300, 40), np.float32)
    found = stored(tensor, tmp_path)
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.truncate(30_000)
    with pytest.raises(InputError, match="tensor x cannot be read: the file is shorter"):
        fill(place_for(tensor, order), found)
    with pytest.raises(InputError, match="tensor x cannot be read: the file is shorter"):
        np.asarray(found)


@pytest.mark.parametrize(("order", "most"), [("a b -> a b", 0.1), ("a b -> b a", 1.1)])
def test_no_copy_of_a_tensor_is_in_memory_beside_its_place(order, most, tmp_path):
    tensor = np.ones((2048, 2048), np.float32)
    found, place = stored(tensor, tmp_path), place_for(tensor, order)
    tracemalloc.start()
    try:
        fill(place, found)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < most * 4 * relayout._BLOCK
    np.testing.assert_array_equal(place, tensor)
