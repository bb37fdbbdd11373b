import hashlib

import numpy as np
import pytest

from flaxclip.benchmark.readers.own import read_scenes
from flaxclip.benchmark.tasks import all_tasks
from flaxclip.data.sources.corpus import CorpusConfig, open_corpus
from flaxclip.data.sources.scenes import ALL, COLOURS, SEEN, SHAPES, SHIFTS, UNSEEN, ScenesSource


@pytest.fixture(scope="module")
def train():
    return ScenesSource("train", 32)


def test_unseen_combinations_take_two_of_every_colour_and_shape():
    assert len(SHAPES) >= 12
    assert len(COLOURS) >= 12
    assert len(UNSEEN) == 24
    assert set(SEEN) | set(UNSEEN) == set(ALL)
    assert not set(SEEN) & set(UNSEEN)
    for place, names in ((0, COLOURS), (1, SHAPES)):
        counts = [sum(pair[place] == name for pair in UNSEEN) for name in names]
        assert counts == [2] * len(names)


def test_training_neither_draws_nor_names_an_unseen_combination(train):
    labels, captions = zip(
        *((train.label(i), train[i].captions[0]) for i in range(4000)), strict=True
    )
    drawn = [train.classes[label] for label in labels]
    assert set(drawn) == set(SEEN)
    for (colour, shape), caption in zip(drawn, captions, strict=True):
        assert colour in caption
        assert shape in caption
        assert not any(f"{c} {s}" in caption for c, s in UNSEEN)


def test_an_example_is_a_function_of_split_and_index_alone(train):
    again = ScenesSource("train", 32)
    for index in (9_999_999, 0, 7):
        assert np.array_equal(train[index].image, again[index].image)
        assert train[index].captions[0] == again[index].captions[0]
    assert not np.array_equal(train[0].image, ScenesSource("seen", 32)[0].image)


@pytest.mark.parametrize("split", ["seen", "unseen", "shift", "wide"])
def test_evaluation_splits_are_balanced(split):
    source = ScenesSource(split, 16)
    labels = [source.label(index) for index in range(len(source))]
    assert len(set(np.bincount(labels))) == 1
    assert len(set(labels)) == len(source.classes)


def test_each_shift_is_as_frequent_in_every_class():
    source = ScenesSource("shift", 16)
    kinds = {(source.label(i), source.shift(i)) for i in range(len(source))}
    assert len(kinds) == len(source.classes) * len(SHIFTS)


def test_images_show_their_colour(train):
    """The colour nearest to the palette at the shape's place is the caption's, not by accident."""
    palette = np.array(list(COLOURS.values()), float)
    hits = 0
    for index in range(200):
        image = train[index].image.astype(float)
        nearest = ((image[:, :, None] - palette) ** 2).sum(-1).argmin(-1)
        colour = train.classes[train.label(index)][0]
        hits += (nearest == list(COLOURS).index(colour)).sum() >= 8
    assert hits > 180


def test_square_scenes_are_what_they_have_always_been():
    digest = hashlib.sha256()
    for split in ("train", "seen", "unseen", "shift"):
        source = ScenesSource(split, 24)
        for index in range(0, len(source), len(source) // 48):
            pair = source[index]
            digest.update(pair.image.tobytes() + pair.captions[0].encode())
    assert digest.hexdigest()[:16] == "bf9a8a038d7ca33c"


@pytest.mark.parametrize("split", ["train-wide", "wide"])
def test_wide_scenes_have_canvases_of_one_to_four_both_ways(split):
    source = ScenesSource(split, 16)
    shapes = [source[index].image.shape for index in range(300)]
    assert {min(shape[:2]) for shape in shapes} == {16}
    aspects = np.log([width / height for height, width, _ in shapes]) / np.log(4)
    assert -1 <= aspects.min() < -0.95
    assert 0.95 < aspects.max() <= 1
    # Log-uniform: a quarter in each quarter, of 300 draws 75 +- 7.5.
    assert all(abs(count - 75) < 25 for count in np.histogram(aspects, 4, (-1, 1))[0])
    assert source.name(3) == f"scenes/{split}/3"


def test_shapes_of_wide_scenes_lie_where_their_captions_say():
    source, found = ScenesSource("train-wide", 24), 0
    for index in range(400):
        pair = source[index]
        height, width, _ = pair.image.shape
        sides = [side for side in ("left", "right") if side in pair.captions[0]]
        if width < 2 * height or not sides:
            continue
        # Away from the shape, the background changes by little from one pixel to the next.
        changes = np.abs(np.diff(pair.image.astype(float), axis=0)).sum((0, 2))
        left, right = changes[: width // 2].sum(), changes[width // 2 :].sum()
        found += 1
        assert (left > right) == (sides[0] == "left"), index
    assert found > 20


def test_training_reads_wide_scenes_by_their_name():
    source = open_corpus(CorpusConfig(("scenes-wide",)), 16)
    assert (source.split, source.classes) == ("train-wide", SEEN)
    assert len(source) == len(ScenesSource("train", 16))


def test_a_task_names_unseen_combinations_on_wide_canvases(tmp_path):
    task = all_tasks()["scenes-wide"]
    assert (task.classes, len(task.distractors)) == (len(UNSEEN), len(SEEN))
    examples = read_scenes(task, task.sources[0], task.sources[0].split, tmp_path, 16)
    assert np.bincount(examples.labels).tolist() == [40] * len(UNSEEN)
    shapes = {examples.images[index].shape for index in range(50)}
    assert len(shapes) > 20
    assert examples.images.name(0) == "scenes/wide/0"
