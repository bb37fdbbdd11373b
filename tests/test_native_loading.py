"""Batches of images at their own aspect ratio, whose length is drawn for each step."""

import io
import os

import jax
import numpy as np
import PIL.Image
import pytest

from flaxclip.data.config import DataConfig
from flaxclip.data.images.eval_transform import NativeTransform
from flaxclip.data.images.native_size import PatchArrays, cut_into_patches
from flaxclip.data.images.train_transform import AugmentConfig, transform_for_training
from flaxclip.data.loader import load_batches
from flaxclip.data.order import HostRows, OrderConfig, batch_names, draw_order, example_rng
from flaxclip.data.sequence_lengths import schedule_lengths
from flaxclip.data.sources.tars.webdataset import WebDatasetSource
from flaxclip.data.workers.batch_shapes import BatchShape, LengthShapes, Row
from flaxclip.data.workers.shared_batches import SharedBatches, create_shared_memory
from flaxclip.errors import InputError
from flaxclip.models.inputs import ImageTransform
from flaxclip.models.patches import ImagePatches
from flaxclip.models.variants import VARIANTS
from flaxclip.sharding import MeshConfig, make_mesh
from tests.helpers.image_tars import write_shard

NATIVE = VARIANTS["ViT-tiny"]._replace(preprocess=ImageTransform("native", "bilinear"))
PATCH = NATIVE.model.vision.patch_size
LENGTHS = schedule_lengths([4, 16, 36], 300, 8, seed=5)  # 72, 16 and 8 pairs
SEED = 5


def png(height, width, seed=0):
    pixels = np.random.default_rng((height, width, seed)).integers(0, 256, (height, width, 3))
    file = io.BytesIO()
    PIL.Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """113 images of odd sizes, up to 1:30."""
    rng = np.random.default_rng(1)
    sizes = [(2, 60), (60, 2), (1, 1), *rng.integers(5, 60, (110, 2)).tolist()]
    pairs = {f"{i:03}": (png(*size, i), f"caption {i}") for i, size in enumerate(sizes)}
    path = tmp_path_factory.mktemp("corpus") / "0.tar"
    write_shard(path, pairs)
    return str(path)


def take(path, *, start=0, stop=6, spec=NATIVE, lengths=LENGTHS, teachers=(), **config):
    config = {"workers": 0} | config
    return list(
        load_batches(
            DataConfig(path=(path,), **config),
            spec,
            WebDatasetSource(path),
            make_mesh(MeshConfig()),
            batch_size=999,  # the schedule says it
            seed=SEED,
            start_step=start,
            stop_step=stop,
            teachers=teachers,
            lengths=lengths,
        )
    )


def on_host(batches):
    return [jax.device_get((loaded.batch.images, loaded.batch.tokens)) for loaded in batches]


def assert_same(ours, theirs):
    for one, other in zip(on_host(ours), on_host(theirs), strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("augment", [AugmentConfig(), AugmentConfig(crop_scale=None, flip=0.5)])
def test_rows_are_what_the_transform_makes_of_each_pair(corpus, augment):
    source = WebDatasetSource(corpus)
    order = draw_order(source, OrderConfig(), SEED, 1)
    batches = take(corpus, augment=augment)
    assert {LENGTHS.at(step).patches for step in range(len(batches))} == {4, 16, 36}
    for step, loaded in enumerate(batches):
        patches, pairs, first = LENGTHS.at(step)
        names = batch_names(source, OrderConfig(), SEED, 999, step, LENGTHS)
        images = []
        for position, name in zip(range(first, first + pairs), names, strict=True):
            draw = order[position]
            assert source.name(draw.example) == name
            transform = NativeTransform(PATCH, patches, NATIVE.preprocess)
            rng = example_rng(SEED, draw, "image")
            images.append(
                transform_for_training(source[draw.example].image, transform, augment, rng)
            )
        expected = cut_into_patches(images, PATCH, patches, pairs)
        found = loaded.batch.images
        assert isinstance(found, ImagePatches)
        assert found.patches.shape == (pairs, patches, 3 * PATCH**2)
        np.testing.assert_array_equal(found.patches, expected.patches)
        np.testing.assert_array_equal(found.grid, expected.grid)
        assert loaded.batch.tokens.shape[0] == pairs
        assert loaded.patches == sum(len(i) * i.shape[1] for i in images) // PATCH**2


def test_a_resumed_run_and_one_with_workers_have_the_same_batches(corpus):
    straight = take(corpus)
    assert_same(straight[3:], take(corpus, start=3))
    by_workers = take(corpus, workers=2)
    assert_same(straight, by_workers)
    assert [one.patches for one in straight] == [other.patches for other in by_workers]


def test_every_example_comes_once_an_epoch(corpus):
    source = WebDatasetSource(corpus)
    names = []
    for step in range(12):
        names += batch_names(source, OrderConfig(), SEED, 999, step, LENGTHS)
    epochs = len(names) // len(source)
    assert epochs >= 2
    for epoch in range(epochs):
        part = names[epoch * len(source) : (epoch + 1) * len(source)]
        assert len(set(part)) == len(source)


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_divide_each_step_between_them(hosts):
    for step in [*range(50), 70_000]:
        whole = HostRows(999, 0, 1, LENGTHS).of_step(step)
        parts = [HostRows(999, host, hosts, LENGTHS).of_step(step) for host in range(hosts)]
        assert [position for part in parts for position in part] == list(whole)
        assert len({len(part) for part in parts}) == 1


def test_a_slot_has_room_for_the_largest_batch_and_slots_do_not_overlap():
    shapes = LengthShapes(LENGTHS, hosts=2, patch_size=PATCH, context_length=7)
    sizes = [
        pairs // 2 * (patches * 3 * PATCH**2 + 2 * 4 + 7 * 4)
        for patches, pairs in zip(LENGTHS.lengths, LENGTHS.pairs, strict=True)
    ]
    assert shapes.nbytes == max(sizes)
    descriptor = create_shared_memory()
    try:
        shared = SharedBatches(descriptor, shapes, slots=3, workers=2)
        assert 3 * max(sizes) < os.fstat(descriptor).st_size < 3 * max(sizes) + 1024
        shared.positions[:], shared.needed[:] = -1, 7
        steps = range(3)
        for slot, step in enumerate(steps):
            jax.tree.map(lambda array, slot=slot: array.fill(slot + 1), shared.batch(slot, step))
        for slot, step in enumerate(steps):
            batch = shared.batch(slot, step)
            patches, pairs, _ = LENGTHS.at(step)
            assert batch.images.patches.shape == (pairs // 2, patches, 3 * PATCH**2)
            assert all((array == slot + 1).all() for array in jax.tree.leaves(batch))
        assert (shared.positions == -1).all()
        assert shared.needed[0] == 7
        del shared, batch
    finally:
        os.close(descriptor)


def test_what_a_slot_held_before_is_no_patch_of_a_smaller_image():
    shape = BatchShape(1, (6, 3 * PATCH**2), 2)
    arrays = shape.arrays(bytearray(b"\xff" * shape.nbytes))
    assert isinstance(arrays.images, PatchArrays)
    image = np.full((PATCH, 2 * PATCH, 3), 9, np.uint8)
    arrays.write(0, Row(image[:, ::-1], np.zeros(2, np.int32), False, ()))
    assert (arrays.images.patches[0, :2] == 9).all()
    assert not arrays.images.patches[0, 2:].any()
    assert arrays.images.grid.tolist() == [[1, 2]]


def test_an_image_too_long_for_a_length_is_replaced_and_named(tmp_path):
    file = io.BytesIO()
    PIL.Image.new("L", (9_000_000, 1)).save(file, "PNG")
    pairs = {f"{i}": (png(8, 8 + i), "short") for i in range(9)} | {"long": (file.getvalue(), "!")}
    write_shard(tmp_path / "0.tar", pairs)
    schedule = schedule_lengths([1], 16, 8, seed=0)
    whole = AugmentConfig(crop_scale=None)
    loaded = take(str(tmp_path / "0.tar"), stop=1, lengths=schedule, augment=whole, workers=1)
    assert loaded[0].replaced == ("0.tar/long: 9000000 x 1 pixels do not fit 1 patches",) * len(
        loaded[0].replaced
    )
    assert 1 <= len(loaded[0].replaced) <= 2  # an epoch has ten pairs, the batch sixteen
    assert loaded[0].patches == 16


@pytest.mark.parametrize("lengths", [(0, 16), (16, 16)])
def test_lengths_that_are_none_or_twice_are_refused(lengths):
    with pytest.raises(InputError, match=r"data.sequence_lengths is \d+ 16\nexpected different"):
        DataConfig(sequence_lengths=lengths)


def test_a_budget_below_one_image_is_refused():
    DataConfig(sequence_lengths=(16, 64), token_budget=64)
    with pytest.raises(InputError, match="expected at least those of one image, 64"):
        DataConfig(sequence_lengths=(16, 64), token_budget=63)
    with pytest.raises(InputError, match="token_budget is 0"):
        DataConfig(token_budget=0)


def test_what_lengths_do_not_go_with_is_refused(corpus):
    square = VARIANTS["ViT-tiny"]
    with pytest.raises(InputError, match="resize is shortest\na length is of images at their own"):
        take(corpus, spec=square)
    with pytest.raises(InputError, match="cannot learn from teachers"):
        take(corpus, teachers=(square,))
    with pytest.raises(InputError, match="36 patches an image has 4 pairs\nthe mesh divides a bat"):
        take(corpus, lengths=schedule_lengths([4, 36], 32 * 4 + 36, 4, seed=0))
