"""The length of each step, and the pairs that fit."""

import pytest

from flaxclip.data.sequence_lengths import LengthSchedule, schedule_lengths
from flaxclip.errors import InputError


def test_pairs_fill_the_budget_in_multiples_of_the_divisor():
    schedule = schedule_lengths([256, 128, 1024], 9000, 4, seed=0)
    assert schedule.lengths == (128, 256, 1024)
    assert schedule.pairs == (68, 32, 8)  # 9000 / 128 = 70.3, / 256 = 35.2, / 1024 = 8.8


def test_each_step_begins_where_the_one_before_has_ended():
    schedule = schedule_lengths([16, 32, 64], 640, 2, seed=3)
    position = 0
    for step in range(500):
        length = schedule.at(step)
        assert length.first == position
        assert length.pairs == 640 // length.patches // 2 * 2
        position += length.pairs


def test_a_step_far_ahead_is_where_the_sum_of_all_before_it_says():
    far, schedule = 3 * 2**16 + 5, schedule_lengths([16, 32], 64, 1, seed=9)
    sums = sum(schedule.at(step).pairs for step in range(far))
    assert LengthSchedule((16, 32), (4, 2), 9).at(far).first == sums


def test_all_lengths_come_equally_often_and_other_seeds_draw_others():
    drawn = [schedule_lengths([16, 32, 64, 128], 128, 1, 0).at(s).patches for s in range(8000)]
    # Of 8,000 draws a quarter is 2,000 +- 39.
    assert all(abs(drawn.count(length) - 2000) < 160 for length in (16, 32, 64, 128))
    other = [schedule_lengths([16, 32, 64, 128], 128, 1, 1).at(s).patches for s in range(8000)]
    assert 1800 < sum(a == b for a, b in zip(drawn, other, strict=True)) < 2200


@pytest.mark.parametrize("lengths", [(), (0, 16), (16, 16)])
def test_lengths_that_are_none_or_twice_are_refused(lengths):
    with pytest.raises(InputError, match=r"data.sequence_lengths is .*\nexpected one or more"):
        schedule_lengths(lengths, 1000, 1, 0)


def test_a_budget_below_one_image_a_part_is_refused():
    with pytest.raises(InputError) as refusal:
        schedule_lengths([128, 1024], 8191, 8, 0)
    assert str(refusal.value) == (
        "data.token_budget is 8,191 patches a step\n"
        "a batch is cut into 8 parts, and 8 images of 1,024 patches, the longest of "
        "data.sequence_lengths, have 8,192: give a step at least as many, lower --batch-divisor, "
        "or leave out the longest"
    )
    with pytest.raises(InputError, match=r"of 16 patches have 128: .*, lower --batch-divisor$"):
        schedule_lengths([16], 127, 8, 0)
    assert schedule_lengths([128, 1024], 8192, 8, 0).pairs == (64, 8)
