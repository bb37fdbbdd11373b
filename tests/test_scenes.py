import numpy as np
import pytest

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


@pytest.mark.parametrize("split", ["seen", "unseen", "shift"])
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
