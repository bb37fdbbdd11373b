"""Intervals of scores, and of differences between two checkpoints."""

import numpy as np
import pytest

from flaxclip.benchmark.intervals import (
    paired_difference,
    share_of_hits,
    share_of_worst_group,
    share_per_class,
)


def test_examples_that_are_all_wrong_or_all_right_leave_room_for_others():
    wrong, right = (share_of_hits(np.full(46, hit), 0.1) for hit in (False, True))
    # Of a share below p, 46 misses in a row have a probability above 2.5%: (1 - p)^46.
    assert (wrong.value, wrong.chance, wrong.low) == (0, 0.1, 0)
    assert (1 - wrong.high) ** 46 == pytest.approx(0.025)
    assert (right.value, right.chance) == (1, 0.1)
    assert (right.low, right.high) == pytest.approx((1 - wrong.high, 1))


def test_classes_that_are_all_right_leave_room_where_few_examples_say_so():
    hits = np.full(60, True)
    even = share_per_class(hits, np.arange(60) % 3, 1 / 3)
    assert (even.value, even.high) == (1, 1)
    assert even.low == pytest.approx(share_of_hits(hits, 1 / 3).low)
    counts = np.array([2, 18, 40])
    uneven = share_per_class(hits, np.repeat([0, 1, 2], counts), 1 / 3)
    shares = np.linspace(1e-3, 1, 400)
    first, second = np.meshgrid(shares, shares)
    third = (0.025 / (first ** counts[0] * second ** counts[1])) ** (1 / counts[2])
    means = (first + second + third)[third <= 1] / 3
    # No shares of the grid, which just misses the lowest, have a lower mean.
    assert means.min() - 3e-4 < uneven.low <= means.min()
    none = share_per_class(~hits, np.repeat([0, 1, 2], counts), 1 / 3)
    assert (none.value, none.low, none.high) == (0, 0, pytest.approx(1 - uneven.low))


def test_a_group_that_is_all_right_or_all_wrong_leaves_room_for_others():
    groups = np.repeat([4, 5], [10, 30])
    right = share_of_worst_group(np.full(40, True), groups, 0.5)
    assert (right.value, right.low**10, right.high) == (1, pytest.approx(0.025), 1)
    wrong = share_of_worst_group(groups == 4, groups, 0.5)
    assert (wrong.value, wrong.low, (1 - wrong.high) ** 30) == (0, 0, pytest.approx(0.025))


def test_the_paired_test_sees_what_two_intervals_do_not():
    other = np.arange(1000) < 600
    better = other | (np.arange(1000) >= 985)
    difference = paired_difference(better, other)
    assert difference.value == pytest.approx(0.015)
    assert difference.low > 0
    assert difference.p_value == pytest.approx(2 * 0.5**15)
    assert paired_difference(other, other) == (0, 0, 0, 1)
