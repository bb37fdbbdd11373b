import io
import itertools

import jax
import numpy as np
import pytest
from PIL import Image

from flaxclip.data.config import DataConfig
from flaxclip.data.examples import ExampleLoader
from flaxclip.data.images.eval_transform import SizedTransform
from flaxclip.data.images.train_transform import AugmentConfig
from flaxclip.data.loader import load_batches
from flaxclip.data.order import OrderConfig, batch_names, draw_order
from flaxclip.data.sources.scenes import ScenesSource
from flaxclip.data.sources.tars.webdataset import WebDatasetSource
from flaxclip.data.tokenizers.load import load_tokenizer
from flaxclip.errors import InputError
from flaxclip.models.inputs import TokenizerConfig
from flaxclip.models.variants import VARIANTS
from flaxclip.sharding import MeshConfig, make_mesh
from tests.helpers.command_lines import run_cli
from tests.helpers.image_tars import jpeg, write_shard
from tests.helpers.left_open import nothing_left_open

TINY = VARIANTS["ViT-tiny"]
HALF = AugmentConfig(crop_scale=(0.5, 1.0))
WHOLE = AugmentConfig(crop_scale=None)
LEAVES_OPEN = """
import faulthandler

from flaxclip.data.config import DataConfig
from flaxclip.data.loader import load_batches
from flaxclip.data.sources.scenes import ScenesSource
from flaxclip.models.variants import VARIANTS
from flaxclip.sharding import MeshConfig, make_mesh

faulthandler.dump_traceback_later(60, exit=True)
feed = load_batches(
    DataConfig(workers=1), VARIANTS["ViT-tiny"], ScenesSource("train", 32),
    make_mesh(MeshConfig()), batch_size=16, seed=0, start_step=0, stop_step=100,
)
next(feed)
"""


def take(source, *, config=None, start=0, stop=3, seed=0, batch_size=16):
    mesh = make_mesh(MeshConfig())
    return list(
        load_batches(
            config or DataConfig(augment=WHOLE, workers=0),
            TINY,
            source,
            mesh,
            batch_size=batch_size,
            seed=seed,
            start_step=start,
            stop_step=stop,
        )
    )


def host(loaded):
    return jax.device_get(loaded.batch)


@pytest.fixture(scope="module")
def scenes():
    return ScenesSource("train", 32)


def test_a_batch_is_a_function_of_seed_and_step(scenes):
    run = take(scenes, stop=4)
    resumed = take(scenes, start=2, stop=4)
    for straight, again in zip(run[2:], resumed, strict=True):
        assert np.array_equal(host(straight).images, host(again).images)
        assert np.array_equal(host(straight).tokens, host(again).tokens)
    other = take(scenes, stop=1, seed=1)
    assert not np.array_equal(host(run[0]).images, host(other[0]).images)


def test_a_batch_holds_the_examples_that_its_step_names(scenes):
    for step, loaded in enumerate(take(scenes, stop=3)):
        names = batch_names(scenes, OrderConfig(), seed=0, batch_size=16, step=step)
        images = [scenes[int(name.rpartition("/")[2])].image for name in names]
        assert np.array_equal(host(loaded).images, np.stack(images))


def test_worker_processes_change_nothing(scenes):
    alone = take(scenes, stop=4)
    for workers in (1, 2):
        config = DataConfig(augment=WHOLE, workers=workers)
        for one, other in zip(alone, take(scenes, config=config, stop=4), strict=True):
            assert np.array_equal(host(one).images, host(other).images)
            assert np.array_equal(host(one).tokens, host(other).tokens)


def test_batches_lie_divided_over_the_mesh(scenes):
    images = take(scenes, stop=1)[0].batch.images
    assert len(images.sharding.device_set) == 8
    assert {shard.data.shape[0] for shard in images.addressable_shards} == {2}


def example_loader(source, augment=HALF, seed=0):
    tokenizer = load_tokenizer(TokenizerConfig(), 20)
    return ExampleLoader(
        source,
        draw_order(source, OrderConfig(), seed, batch_size=16),
        tokenizer,
        SizedTransform(32),
        augment,
        seed,
    )


def example(load, position):
    return load(range(position, position + 1), lambda _: None)[0]


def test_an_example_is_cropped_differently_in_each_epoch_and_the_same_again(tmp_path):
    image = Image.effect_noise((64, 64), 90).convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    write_shard(tmp_path / "0.tar", {"a": (buffer.getvalue(), "noise")})
    load = example_loader(WebDatasetSource(str(tmp_path / "0.tar")))
    assert np.array_equal(example(load, 0).image, example(load, 0).image)
    assert not np.array_equal(example(load, 0).image, example(load, 1).image)


def test_unreadable_examples_are_replaced_by_a_function_of_their_number_and_named(tmp_path):
    pairs = {f"{i:03}": (jpeg(i), f"shade {i}") for i in range(40)}
    pairs["007"] = (b"not an image", "broken")
    pairs["011"] = (jpeg(11)[:200], "cut off")
    write_shard(tmp_path / "0.tar", pairs)
    source = WebDatasetSource(str(tmp_path / "0.tar"))
    config = DataConfig(path=(str(tmp_path / "0.tar"),), workers=1)
    batches = take(source, config=config, stop=5)  # 80 examples: two epochs
    replaced = list(itertools.chain.from_iterable(loaded.replaced for loaded in batches))
    assert sorted(name.split(":")[0] for name in replaced) == ["0.tar/007"] * 2 + ["0.tar/011"] * 2

    load = example_loader(source, WHOLE)
    broken = next(position for position in range(40) if load.order[position].example == 7)
    again = next(position for position in range(40, 80) if load.order[position].example == 7)
    assert np.array_equal(example(load, broken).tokens, example(load, again).tokens)
    assert "not a" in example(load, broken).replaced[0]


def test_a_corpus_that_is_broken_at_large_stops_the_run(tmp_path):
    write_shard(tmp_path / "0.tar", {f"{i}": (b"x", "caption") for i in range(20)})
    load = example_loader(WebDatasetSource(str(tmp_path / "0.tar")))
    with pytest.raises(InputError, match="16 examples in a row are unreadable"):
        example(load, 0)


def test_captions_that_lose_their_end_are_counted(tmp_path):
    long = " ".join(["word"] * 40)
    write_shard(
        tmp_path / "0.tar",
        {f"{i}": (jpeg(i), long if i % 4 == 0 else "short") for i in range(16)},
    )
    source = WebDatasetSource(str(tmp_path / "0.tar"))
    assert take(source, stop=1)[0].truncated == 4


def test_a_feed_that_is_dropped_ends_its_workers(scenes):
    with nothing_left_open():
        feed = load_batches(
            DataConfig(augment=WHOLE, workers=1), TINY, scenes, make_mesh(MeshConfig()),
            batch_size=16, seed=0, start_step=0, stop_step=100,
        )  # fmt: skip
        next(feed)
        del feed


def test_a_program_that_leaves_a_feed_open_ends(tmp_path):
    (tmp_path / "leaves.py").write_text(LEAVES_OPEN)
    result = run_cli("leaves", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
