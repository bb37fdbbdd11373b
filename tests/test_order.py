import dataclasses
import hashlib
import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxclip.data.order import (
    Draw,
    HostRows,
    OrderConfig,
    batch_names,
    corpus_orders,
    describe_storage_order,
    draw_order,
    example_rng,
    repeated_in_batches,
    replacement,
)
from flaxclip.data.sequence_lengths import schedule_lengths
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


@dataclasses.dataclass(frozen=True)
class Bucket(Numbers):
    """The same in object storage."""

    run_length: int | None = 104
    reads_remotely: bool = True


def examples(order, start, stop):
    return [order[position].example for position in range(start, stop)]


@pytest.mark.parametrize("window", [None, 16, 40, 149, 5000])
@pytest.mark.parametrize("length", [1, 2, 37, 150])
def test_every_epoch_holds_every_example_once_in_another_order(length, window):
    order = draw_order(Numbers(length), OrderConfig(window=window), seed=3, batch_size=16)
    epochs = [examples(order, n * length, (n + 1) * length) for n in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(length))] * 2
    assert epochs[0] != epochs[1] or length < 3
    assert {order[length].visit, order[2 * length - 1].visit} == {1}


def digest(order, stop):
    draws = [tuple(order[position]) for position in range(stop)]
    return hashlib.sha256(repr(draws).encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("length", "config", "expected"),
    [
        (37, OrderConfig(window=None), "aa57a93cb0c45b98"),
        (1000, OrderConfig(window=None), "5f22565a6381fc08"),
        (1000, OrderConfig(), "5f22565a6381fc08"),
        (37, OrderConfig(window=16), "01450e138a70fc29"),
        (1000, OrderConfig(window=40), "46526bdf7579f2bd"),
        (1000, OrderConfig(window=160), "c9c3833d05634d55"),
        (1003, OrderConfig(window=331), "ecf0e0ab42dc2829"),
    ],
)
def test_runs_of_earlier_builds_go_on_in_their_order(length, config, expected):
    """What build ba0bdcf drew."""
    assert digest(draw_order(Numbers(length), config, 5, 16), 2 * length + 7) == expected
    # On disk, and where examples are read one by one, "auto" is no order of its own.
    for source in (Bucket(length, run_length=None), Bucket(length, reads_remotely=False)):
        assert digest(draw_order(source, config, 5, 16), 2 * length + 7) == expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (OrderConfig(), "724deea410d1e637"),
        (OrderConfig(window=None), "724deea410d1e637"),
        (OrderConfig(window=48), "f74da970e4b7a66f"),
    ],
)
def test_mixtures_of_earlier_builds_go_on_in_their_order(config, expected):
    mixture = MixtureSource([Numbers(300, "a"), Numbers(50, "b")], [0.7, 0.3])
    assert digest(draw_order(mixture, config, 5, 16), 700) == expected


@pytest.mark.parametrize("window", [None, 64])
def test_orders_of_different_seeds_and_epochs_have_nothing_in_common(window):
    length = 300
    epochs = [
        examples(
            draw_order(Numbers(length), OrderConfig(window=window), seed, 16), start, start + length
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
    order = draw_order(Numbers(length), OrderConfig(window=window), seed=0, batch_size=16)
    for start in range(0, length - window, 9 * window):
        stretches = {example // 20 for example in examples(order, start, start + window)}
        # The short stretch at the end of the corpus moves the others' borders by its length.
        assert len(stretches) <= 18
        assert max(stretches) - min(stretches) > 100


def test_drawing_with_replacement_is_uniform_and_a_function_of_seed_and_position():
    config = OrderConfig(sampling="with_replacement")
    order = draw_order(Numbers(100), config, seed=1, batch_size=16)
    drawn = examples(order, 0, 5000)
    counts = np.bincount(drawn, minlength=100)
    assert abs(counts - 50).max() < 5 * np.sqrt(50)
    assert len(set(drawn[:100])) < 75  # 63.4 are expected
    assert drawn[500:510] == examples(
        draw_order(Numbers(100), config, seed=1, batch_size=16), 500, 510
    )
    assert drawn[:10] != examples(draw_order(Numbers(100), config, seed=2, batch_size=16), 0, 10)
    assert len({order[position].visit for position in range(100)}) == 100


def test_a_mixture_keeps_its_weights_in_every_batch_and_every_corpus_its_epochs():
    mixture = MixtureSource([Numbers(300, "a"), Numbers(50, "b"), Numbers(7, "c")], [0.5, 0.3, 0.2])
    order = draw_order(mixture, OrderConfig(), seed=0, batch_size=16)
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
    order = draw_order(mixture, OrderConfig(), seed=0, batch_size=16)
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
    order = draw_order(Numbers(5 * 10**9), OrderConfig(), seed=0, batch_size=16)
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
        draw_order(Numbers(5), OrderConfig(), seed=-1, batch_size=16)
    assert OrderConfig("with_replacement").window == "auto"


@settings(max_examples=40)
@given(
    length=st.integers(1, 400), run_length=st.integers(1, 40), seed=st.integers(0, 3),
    batch_size=st.one_of(st.integers(1, 20), st.sampled_from([63, 64, 128, 130])),
    epoch=st.integers(0, 10**4),
)  # fmt: skip
def test_every_epoch_from_object_storage_holds_every_example_once(
    length, run_length, batch_size, epoch, seed
):
    source = Bucket(length, run_length=run_length)
    order = draw_order(source, OrderConfig(), seed, batch_size)
    assert (order.storage is None) == (length < 2 * batch_size)
    start = epoch * length
    draws = [order[position] for position in range(start, start + length)]
    assert sorted(draw.example for draw in draws) == list(range(length))
    assert {draw.visit for draw in draws} == {epoch}
    # Alone, a position gives what it gives among others.
    alone = draw_order(source, OrderConfig(), seed, batch_size)
    assert alone[start + length // 2] == draws[length // 2]


def test_an_order_for_object_storage_is_a_function_of_the_seed_and_pinned():
    order = draw_order(Bucket(900, run_length=4), OrderConfig(), 3, 32)
    assert examples(order, 0, 6) == [789, 226, 882, 238, 597, 483]
    assert examples(order, 10**9, 10**9 + 6) == [327, 87, 328, 437, 304, 877]
    assert digest(order, 1900) == "db7ed321f833a6a9"
    orders = [
        examples(draw_order(Bucket(900, run_length=4), OrderConfig(), seed, 32), start, start + 900)
        for seed in range(2)
        for start in (0, 900)
    ]
    for one, other in itertools.combinations(orders, 2):
        assert sum(a == b for a, b in zip(one, other, strict=True)) < 10


@pytest.mark.parametrize("hosts", [2, 8])
@pytest.mark.parametrize("epoch", [0, 7])
def test_every_run_is_fetched_by_one_host(hosts, epoch):
    length, run_length, batch_size = 10_007, 8, 512
    order = draw_order(Bucket(length, run_length=run_length), OrderConfig(), 0, batch_size)
    needed = [set() for _ in range(hosts)]
    open_runs = []
    for step in range(epoch * length // batch_size, (epoch + 1) * length // batch_size + 1):
        for runs, host in zip(needed, range(hosts), strict=True):
            draws = [order[p] for p in HostRows(batch_size, host, hosts).of_step(step)]
            runs |= {draw.example // run_length for draw in draws if draw.visit == epoch}
        open_runs.append(len({order[step * batch_size + row].example // 8 for row in range(16)}))
    runs = -(-length // run_length)
    assert len(set.union(*needed)) == runs
    # A few at the end of an epoch, where windows do not end with a run, are needed by two.
    assert sum(map(len, needed)) < runs + hosts + 1
    assert max(map(len, needed)) < 1.1 * runs / hosts
    # Within an epoch, a lane, here of 16 rows, draws from sixteen runs at a time.
    assert 8 <= np.median(open_runs) <= 16


def test_a_batch_is_drawn_from_many_runs_and_each_run_goes_to_many_batches():
    for batch_size, lanes, steps in ((128, 32, 416), (1000, 32, 54), (1024, 32, 52)):
        order = draw_order(Bucket(10**7), OrderConfig(), 0, batch_size)
        assert (order.storage.lanes, order.storage.window_steps) == (lanes, steps)
        runs = Counter(example // 104 for example in examples(order, 0, batch_size))
        # Chance leaves out a part of the open runs, 37% where each gives one example on average.
        expected = 16 * lanes * (1 - math.exp(-batch_size / (16 * lanes)))
        assert len(runs) > 0.9 * expected
        # The first lane's, in its first window.
        rows_of_lane = range(batch_size // lanes)
        drawn = Counter(
            order[step * batch_size + row].example // 104
            for step in range(steps // 2)
            for row in rows_of_lane
        )
        assert 16 <= len(drawn) <= 17  # where a window does not end with a run
        assert max(drawn.values()) < 75


def test_small_batches_and_odd_ones_have_lanes():
    orders = {
        size: corpus_orders(Bucket(10**6), OrderConfig(), 0, size)[0].storage
        for size in (1, 2, 7, 8, 127, 960, 32768)
    }
    assert {size: order.lanes for size, order in orders.items()} == {
        1: 1, 2: 2, 7: 7, 8: 8, 127: 32, 960: 32, 32768: 1024,
    }  # fmt: skip


def test_a_place_far_out_in_object_storage_is_found_at_once():
    order = draw_order(Bucket(5 * 10**9), OrderConfig(), 0, 32768)
    far = [order[10**13 + n] for n in range(300)]
    assert {draw.visit for draw in far} == {2000}
    assert len({draw.example for draw in far}) == 300
    assert max(draw.example for draw in far) > 2**32


def test_each_corpus_of_a_mixture_has_the_order_of_where_it_lies():
    remote, local = Bucket(3000, "remote", run_length=4), Numbers(300, "local")
    mixture = MixtureSource([remote, local], [3, 1])
    order = draw_order(mixture, OrderConfig(), 0, 64)
    draws = [order[position] for position in range(8000)]
    for start, length, number in ((0, 3000, 0), (3000, 300, 1)):
        own = [draw for draw in draws if start <= draw.example < start + length]
        assert len(own) == (6000, 2000)[number]
        assert sorted(draw.example - start for draw in own[:length]) == list(range(length))
    # The first row of the first lane, of 48 / 32, in the steps of its window.
    lane = {draws[step * 64].example // 4 for step in range(43)}
    assert len([run for run in lane if run < 750]) <= 17
    assert describe_storage_order(mixture, OrderConfig(), 64) == [
        "mixture.0: runs of 4 neighbouring examples, windows of 16 runs in 32 lanes"
    ]


def test_other_orders_have_no_lanes():
    for source, config in (
        (Numbers(10**6), OrderConfig()),
        (Bucket(10**6), OrderConfig(window=None)),
        (Bucket(10**6), OrderConfig(window=640)),
        (Bucket(10**6), OrderConfig("with_replacement")),
    ):
        assert describe_storage_order(source, config, 64) == []
    assert describe_storage_order(Bucket(10**6), OrderConfig(), 512) == [
        "runs of 104 neighbouring examples, windows of 16 runs in 32 lanes"
    ]


MIXED = schedule_lengths([128, 256, 576], 2**16, 32, seed=1)  # 512, 256 and 96 pairs


@pytest.mark.parametrize("lengths", [MIXED, schedule_lengths([16, 48], 768, 8, seed=2)])
def test_steps_of_several_sizes_go_through_the_stream_by_columns(lengths):
    stop = lengths.at(40).first
    assert [lengths.step_at(p) for p in range(0, stop, 7)] == [
        next(s for s in range(40) if lengths.at(s + 1).first > p) for p in range(0, stop, 7)
    ]
    moved = [lengths.by_columns(position) for position in range(stop)]
    assert len(set(moved)) == stop
    whole = stop // lengths.usual_pairs * lengths.usual_pairs
    assert set(range(whole - lengths.usual_pairs)) <= set(moved)
    most = max(lengths.pairs) + lengths.usual_pairs
    assert all(abs(place - position) < most for position, place in enumerate(moved))


@pytest.mark.parametrize("hosts", [2, 8])
def test_hosts_keep_their_runs_where_steps_differ_in_size(hosts):
    length, run_length = 2_003, 8
    order = draw_order(Bucket(length, run_length=run_length), OrderConfig(), 0, 999, MIXED)
    needed, draws = [set() for _ in range(hosts)], []
    step = 0
    while MIXED.at(step).first < 2 * length:
        for runs, host in zip(needed, range(hosts), strict=True):
            drawn = [order[p] for p in HostRows(999, host, hosts, MIXED).of_step(step)]
            runs |= {draw.example // run_length for draw in drawn if draw.visit == 1}
            draws += drawn
        step += 1
    # The first epoch is complete, and every example came once.
    assert sorted(draw.example for draw in draws if draw.visit == 0) == list(range(length))
    runs = -(-length // run_length)
    assert sum(map(len, needed)) < 1.1 * runs
