import dataclasses
import itertools
from collections import Counter

import numpy as np
import pytest

from flaxclip.data.order import (
    Draw,
    HostRows,
    OrderConfig,
    batch_names,
    draw_order,
    example_rng,
    repeated_in_batches,
    replacement,
)
from flaxclip.data.sources.mixture import MixtureSource
from flaxclip.data.sources.source import Pair
from flaxclip.errors import InputError


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Examples that are their own numbers: a corpus of any size."""

    length: int
    corpus: str = "numbers"

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return Pair(b"", (f"{self.corpus} {index}",))

    def fields(self, index):
        return {"txt": f"{self.corpus} {index}"}

    def name(self, index):
        return f"{self.corpus}/{index}"


def examples(order, start, stop):
    return [order[position].example for position in range(start, stop)]


@pytest.mark.parametrize("window", [None, 16, 40, 149, 5000])
@pytest.mark.parametrize("length", [1, 2, 37, 150])
def test_every_epoch_holds_every_example_once_in_another_order(length, window):
    order = draw_order(Numbers(length), OrderConfig(window=window), seed=3)
    epochs = [examples(order, n * length, (n + 1) * length) for n in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(length))] * 2
    assert epochs[0] != epochs[1] or length < 3
    assert {order[length].visit, order[2 * length - 1].visit} == {1}


@pytest.mark.parametrize("window", [None, 64])
def test_orders_of_different_seeds_and_epochs_have_nothing_in_common(window):
    length = 300
    epochs = [
        examples(
            draw_order(Numbers(length), OrderConfig(window=window), seed), start, start + length
        )
        for seed in range(2)
        for start in (0, length)
    ]
    for one, other in itertools.combinations(epochs, 2):
        # Chance: one place in common on average.
        assert sum(a == b for a, b in zip(one, other, strict=True)) < 10
    for epoch in epochs:
        assert sum(a + 1 == b for a, b in itertools.pairwise(epoch)) < length // 8


def test_a_windowed_epoch_reads_a_few_stretches_at_a_time():
    length, window = 10_003, 320
    order = draw_order(Numbers(length), OrderConfig(window=window), seed=0)
    for start in range(0, length - window, 9 * window):
        stretches = {example // 20 for example in examples(order, start, start + window)}
        # The short stretch at the end of the corpus moves the others' borders by its length.
        assert len(stretches) <= 18
        assert max(stretches) - min(stretches) > 100


def test_drawing_with_replacement_is_uniform_and_a_function_of_seed_and_position():
    config = OrderConfig(sampling="with_replacement")
    order = draw_order(Numbers(100), config, seed=1)
    drawn = examples(order, 0, 5000)
    counts = np.bincount(drawn, minlength=100)
    assert abs(counts - 50).max() < 5 * np.sqrt(50)
    assert len(set(drawn[:100])) < 75  # 63.4 are expected
    assert drawn[500:510] == examples(draw_order(Numbers(100), config, seed=1), 500, 510)
    assert drawn[:10] != examples(draw_order(Numbers(100), config, seed=2), 0, 10)
    assert len({order[position].visit for position in range(100)}) == 100


def test_a_mixture_keeps_its_weights_in_every_batch_and_every_corpus_its_epochs():
    mixture = MixtureSource([Numbers(300, "a"), Numbers(50, "b"), Numbers(7, "c")], [0.5, 0.3, 0.2])
    order = draw_order(mixture, OrderConfig(), seed=0)
    draws = [order[position] for position in range(1000)]
    for batch in range(10):
        part = [mixture.name(draw.example) for draw in draws[batch * 100 : batch * 100 + 100]]
        assert Counter(name.split("/")[0] for name in part) == pytest.approx(
            {"mixture.0": 50, "mixture.1": 30, "mixture.2": 20}, abs=1
        )
    for start, length, weight in ((0, 300, 0.5), (300, 50, 0.3), (350, 7, 0.2)):
        own = [draw for draw in draws if start <= draw.example < start + length]
        assert len(own) == 1000 * weight
        for visit in range(len(own) // length):
            epoch = own[visit * length : (visit + 1) * length]
            assert {draw.visit for draw in epoch} == {visit}
            assert sorted(draw.example - start for draw in epoch) == list(range(length))
    assert mixture[349].captions == ("b 49",)
    assert mixture.fields(350) == {"txt": "c 0"}
    assert mixture.name(356) == "mixture.2/c/6"


def test_a_corpus_that_gives_a_batch_more_pairs_than_it_has_is_warned_of():
    mixture = MixtureSource([Numbers(300, "a"), Numbers(20, "b")], [3, 1])
    assert repeated_in_batches(Numbers(100), 100) == []
    assert repeated_in_batches(mixture, 80) == []
    (line,) = repeated_in_batches(Numbers(100), 250)
    assert "batch of 250 takes 250 pairs from the corpus, which has 100: each is in" in line
    assert "2.5 times on average" in line
    (line,) = repeated_in_batches(mixture, 200)
    assert "takes 50 pairs from mixture.1, which has 20: each is in a batch 2.5 times" in line
    assert len(repeated_in_batches(mixture, 2000)) == 2
    # What it says is what is drawn.
    order = draw_order(mixture, OrderConfig(), seed=0)
    counts = Counter(examples(order, 0, 200))
    assert [counts[example] for example in range(300, 320)] == pytest.approx([2.5] * 20, abs=0.5)
    assert max(counts[example] for example in range(300)) == 1


@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_any_number_of_hosts_loads_the_same_global_batches(hosts):
    rows = [HostRows(16, index, hosts) for index in range(hosts)]
    for step in range(6):
        positions = [position for host in rows for position in host.of_step(step)]
        assert positions == list(range(step * 16, step * 16 + 16))


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ("epochs", [[0, 3, 1, 2], [4, 5, 6, 7], [9, 8, 4, 6]]),
        ("with_replacement", [[8, 9, 8, 3], [0, 0, 4, 5], [1, 3, 0, 4]]),
    ],
)
def test_step_0_has_the_batch_of_the_first_update(sampling, expected):
    """The one that earlier builds called the batch of step 1: their runs go on as they began."""
    config = OrderConfig(sampling=sampling)
    for step, numbers in enumerate(expected):
        names = batch_names(Numbers(10), config, seed=3, batch_size=4, step=step)
        assert names == [f"numbers/{number}" for number in numbers]


def test_a_place_far_out_in_a_large_corpus_is_found_at_once():
    order = draw_order(Numbers(5 * 10**9), OrderConfig(), seed=0)
    far = [order[10**13 + n] for n in range(300)]
    assert {draw.visit for draw in far} == {2000}
    assert len({draw.example for draw in far}) == 300
    assert max(draw.example for draw in far) > 2**32


def test_randomness_of_an_example_is_its_own():
    draws = [Draw(example, visit) for example in range(20) for visit in range(20)]
    streams = [
        tuple(example_rng(seed, draw, purpose).integers(2**63, size=8))
        for seed in (0, 1)
        for purpose in ("caption", "image")
        for draw in draws
    ]
    # Not only are the streams others: no part of one appears in another.
    assert len({number for stream in streams for number in stream}) == len(streams) * 8
    assert tuple(example_rng(1, draws[-1], "image").integers(2**63, size=8)) == streams[-1]


def test_a_replacement_comes_from_the_same_corpus():
    mixture = MixtureSource([Numbers(100), Numbers(10), Numbers(100)], [1, 1, 1])
    assert {replacement(mixture, 105, attempt) for attempt in range(200)} == set(range(100, 110))
    assert replacement(Numbers(10**6), 5, 0) == replacement(Numbers(10**6), 5, 0)
    assert len({replacement(Numbers(10**6), example, 0) for example in range(1000)}) > 990


def test_orders_that_cannot_be_meant_are_refused():
    for options, message in (
        ({"window": 3}, "order.window is 3\nit must be at least 16"),
        ({"window": 64, "sampling": "with_replacement"}, "goes with sampling by epochs alone"),
    ):
        with pytest.raises(InputError, match=message):
            OrderConfig(**options)
    with pytest.raises(InputError, match="seed is -1"):
        draw_order(Numbers(5), OrderConfig(), seed=-1)
