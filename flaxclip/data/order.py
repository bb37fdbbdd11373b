"""Position in the stream -> which example, at which of its visits; in constant time.

The stream has no end, and every row of every batch has its position in it: row r of the batch of
step s has position s * batch_size + r, and step 0 is the first update. Where steps differ in size,
a `LengthSchedule` says where each begins. So nothing is dropped: a batch in which an epoch ends
goes on with the first examples of the next, and no batch is short.

In `epochs` every example comes once before any comes again. A mixture has no epochs of its own:
each of its corpora does, and passes through them at the pace of its weight.
"""

import dataclasses
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

from flaxclip.data.permutation import grains_shuffle, hash_of, permute_as_grain
from flaxclip.data.sequence_lengths import LengthSchedule
from flaxclip.data.sources.mixture import MixtureSource
from flaxclip.data.sources.source import Source, reads_remotely, run_length
from flaxclip.data.storage_order import RUNS, StorageOrder
from flaxclip.errors import InputError

_STRETCHES = 16  # a window holds: enough to mix, few enough to be read in a row


class Draw(NamedTuple):
    """The example at one position of the stream."""

    example: int
    visit: int
    """Number of the visit, different for all visits to the example: all randomness of a row is a
    function of (seed, visit, example). In `epochs`, it is the epoch."""


@runtime_checkable
class Order(Protocol):
    """A stream of draws without end."""

    def __getitem__(self, position: int) -> Draw:
        """The draw at a position; takes constant time."""
        ...


@dataclasses.dataclass(frozen=True)
class OrderConfig:
    """The order of the examples of a corpus."""

    sampling: Literal["epochs", "with_replacement"] = "epochs"
    """`epochs`: every example once, in another order each time. `with_replacement`: each draw from
    all examples."""
    window: int | Literal["auto"] | None = "auto"
    """If None, an epoch is shuffled as a whole, so that neighbours in a batch lie far apart in the
    corpus. If a number of examples, the corpus is cut into runs of a sixteenth of it; the runs are
    shuffled as wholes, then the examples within every sixteen runs in a row. For disks that are
    slow at random access. auto: for object storage, an order of runs of neighbours that are fetched
    with one request each, and by one host each (`storage_order.py`); for disks, as None."""

    def __post_init__(self) -> None:
        if isinstance(self.window, int) and self.window < _STRETCHES:
            raise InputError(f"order.window is {self.window}\nit must be at least {_STRETCHES}")
        if isinstance(self.window, int) and self.sampling == "with_replacement":
            raise InputError(
                "order.window goes with sampling by epochs alone\n"
                "drawing with replacement jumps through the whole corpus"
            )


def draw_order(
    source: Source,
    config: OrderConfig,
    seed: int,
    batch_size: int,
    lengths: LengthSchedule | None = None,
) -> Order:
    """The stream of draws from `source`.

    `batch_size` matters to the storage order alone, which each corpus of a mixture has by itself,
    for its share of a batch. Grain spreads these rows over the batch. Where the share is no whole
    number, lanes move along the rows by a part of a row each step, and hosts need some of the runs
    of their neighbours: at 32,768 rows on 64 hosts, a corpus is fetched once with weights 1 and 1,
    1.3 and 1.6 times with 7 and 3, 1.2 and 2.2 times with 9 and 1.

    With `lengths`, batches have the size that these say. The storage order then has as many lanes
    as for the usual batch, so it mixes as well; and since each step goes through its rows by
    columns (`LengthSchedule.by_columns`), a host keeps to its own lanes and a corpus is still
    fetched once over all hosts. Other orders do not depend on the size of batches.

    Raises:
        InputError: the seed is negative.
    """
    if seed < 0:
        raise InputError(f"seed is {seed}\nit must not be negative")
    orders = corpus_orders(source, config, seed, lengths.usual_pairs if lengths else batch_size)
    order: Order = orders[0]
    if isinstance(source, MixtureSource):  # a MapDataset takes 25 µs more an example
        import grain

        order = grain.MapDataset.mix(
            [grain.MapDataset.source(order) for order in orders], list(source.weights)
        )
    if lengths is not None and any(order.storage for order in orders):
        return OrderByColumns(order, lengths)
    return order


@dataclasses.dataclass(frozen=True)
class OrderByColumns:
    """An order made for batches of one size, for batches of several: see `draw_order`."""

    order: Order
    lengths: LengthSchedule

    def __getitem__(self, position: int) -> Draw:
        return self.order[self.lengths.by_columns(position)]


@dataclasses.dataclass(frozen=True)
class CorpusOrder:
    """The draws from one corpus, by index."""

    examples: int
    config: OrderConfig
    seeds: tuple[int, ...]
    first_example: int = 0
    """Index of its first example in the mixture."""
    storage: StorageOrder | None = None
    """The order in each epoch, if it is the one for object storage."""

    def __post_init__(self) -> None:
        # The first draw may be that of a thread, which must not import Grain.
        if self.config.sampling == "epochs" and self.storage is None:
            grains_shuffle()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__post_init__()

    def __len__(self) -> int:
        return 2**62  # Grain knows no endless source

    def __getitem__(self, number: int) -> Draw:
        if self.config.sampling == "with_replacement":
            example = int(np.random.default_rng((*self.seeds, number)).integers(self.examples))
            return Draw(self.first_example + example, number)
        epoch, position = divmod(number, self.examples)
        window = self.config.window
        if self.storage is not None:
            example = self.storage.example(epoch, position)
        elif isinstance(window, int) and window < self.examples:
            example = self._windowed(position, -(-window // _STRETCHES), (*self.seeds, epoch))
        else:
            example = permute_as_grain(position, self.examples, (*self.seeds, epoch))
        return Draw(self.first_example + example, epoch)

    def _windowed(self, position: int, stretch: int, seeds: tuple[int, ...]) -> int:
        """Shuffle positions within their window, then whole stretches of examples."""
        size = stretch * _STRETCHES
        window, position = divmod(position, size)
        size = min(size, self.examples - window * size)
        position = window * stretch * _STRETCHES + permute_as_grain(
            position, size, (*seeds, window)
        )

        # The last stretch is shorter than the others, which are permuted; it is put among them.
        whole, short = divmod(self.examples, stretch)
        short_at = hash_of((*seeds, 2**32)) % (whole + 1) * stretch
        if short_at <= position < short_at + short:
            return whole * stretch + position - short_at
        if position >= short_at + short:
            position -= short
        place, offset = divmod(position, stretch)
        return permute_as_grain(place, whole, (*seeds, 2**32 + 1)) * stretch + offset


def corpus_orders(
    source: Source, config: OrderConfig, seed: int, batch_size: int
) -> list[CorpusOrder]:
    """The order of each corpus of a mixture, or of the only one."""
    if not isinstance(source, MixtureSource):
        storage = _storage_order(source, config, (seed,), batch_size)
        return [CorpusOrder(len(source), config, (seed,), storage=storage)]
    # Grain takes weights in hundredths of the smallest.
    counts = [int(weight * (100 / min(source.weights))) for weight in source.weights]
    orders = []
    for number, part in enumerate(source.sources):
        seeds, rows = (seed, number), max(1, round(batch_size * counts[number] / sum(counts)))
        storage = _storage_order(part, config, seeds, rows)
        orders.append(CorpusOrder(len(part), config, seeds, source.starts[number], storage))
    return orders


def _storage_order(
    source: Source, config: OrderConfig, seeds: tuple[int, ...], batch_size: int
) -> StorageOrder | None:
    length = run_length(source)
    if config.window != "auto" or config.sampling != "epochs" or length is None:
        return None
    if not reads_remotely(source) or len(source) < 2 * batch_size:
        return None
    return StorageOrder(len(source), length, batch_size, seeds)


def describe_storage_order(source: Source, config: OrderConfig, batch_size: int) -> list[str]:
    """A line on the order of each corpus that is read in the one for object storage."""
    orders = corpus_orders(source, config, 0, batch_size)
    names = [f"mixture.{n}: " for n in range(len(orders))] if len(orders) > 1 else [""]
    return [
        f"{name}runs of {order.storage.run_length:,} neighbouring examples, "
        f"windows of {RUNS} runs in {order.storage.lanes:,} lanes"
        for name, order in zip(names, orders, strict=True)
        if order.storage is not None
    ]


def example_rng(seed: int, draw: Draw, purpose: Literal["caption", "image"]) -> np.random.Generator:
    """The random generator of one visit to an example; captions and images have their own."""
    # Philox counts upwards in the counter's first word: examples must differ in another.
    counter = np.array([0, draw.example, ("caption", "image").index(purpose), 0], np.uint64)
    key = np.array([seed, draw.visit], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def replacement(source: Source, example: int, attempt: int) -> int:
    """Index of the example of the same corpus that replaces an unreadable one.

    A function of the broken example's index alone, so that every host and every restart agrees.
    """
    start, stop = 0, len(source)
    if isinstance(source, MixtureSource):
        start, stop = source.bounds(example)
    rng = np.random.Generator(np.random.Philox(key=[example, attempt]))
    return int(rng.integers(start, stop))


def repeated_in_batches(source: Source, batch_size: int) -> list[str]:
    """A line of warning for each corpus that gives a batch more pairs than it has.

    Copies of a pair in one batch are false negatives: the loss contrasts them as if they did not
    match.
    """
    parts: list[tuple[str, int, float]] = [("the corpus", len(source), batch_size)]
    if isinstance(source, MixtureSource):
        total = sum(source.weights)
        parts = [
            (f"mixture.{number}", len(part), batch_size * weight / total)
            for number, (part, weight) in enumerate(
                zip(source.sources, source.weights, strict=True)
            )
        ]
    return [
        f"a batch of {batch_size:,} takes {share:,.0f} pairs from {name}, which has {pairs:,}: "
        f"each is in a batch {share / pairs:.3g} times on average, and the loss contrasts these "
        "copies as if they did not match; a smaller batch or more pairs avoid that"
        for name, pairs, share in parts
        if share > pairs
    ]


@dataclasses.dataclass(frozen=True)
class HostRows:
    """Positions in the endless stream that one host loads, step after step.

    Row r of the global batch at step s has position `s * batch_size + r`, or `lengths.at(s).first +
    r`, on any number of hosts.
    """

    batch_size: int
    """Pairs of every batch, or with `lengths` of a usual one."""
    process_index: int
    process_count: int
    lengths: LengthSchedule | None = None

    @property
    def local_batch_size(self) -> int:
        return self.batch_size // self.process_count

    def of_step(self, step: int) -> range:
        """Positions of this host's rows of the batch of `step`."""
        first, pairs = step * self.batch_size, self.batch_size
        if self.lengths is not None:
            _, pairs, first = self.lengths.at(step)
        local = pairs // self.process_count
        first += self.process_index * local
        return range(first, first + local)


def batch_names(
    source: Source,
    config: OrderConfig,
    seed: int,
    batch_size: int,
    step: int,
    lengths: LengthSchedule | None = None,
) -> list[str]:
    """Names of the examples in the global batch of `step`, row by row.

    With `lengths`, batches have the sizes that these say. An unreadable example has its own name
    here, though another one replaces it.
    """
    order = draw_order(source, config, seed, batch_size, lengths)
    positions = HostRows(batch_size, 0, 1, lengths).of_step(step)
    return [source.name(order[position].example) for position in positions]
