"""An epoch's order for object storage: mixed well enough, and fetched once over all hosts.

A request to object storage takes as long for 4 MiB as for one example, so neighbouring examples are
fetched together, as runs. The runs of an epoch are permuted. What is then drawn from several runs
at a time decides how well a batch is mixed, and which hosts need a run:

    rows of a batch   0 … 31         32 … 63        64 … 95        …
    lane              0              1              2
    runs, permuted    0 … 15         16 … 31        32 … 47        …    while these are read
                      16 L …         16 L + 16 …    16 L + 32 …    …    then these, with L lanes

A lane is a group of neighbouring rows, the same in every batch. It goes through a window of 16
runs, in shuffled order, and then through the next. A host loads neighbouring rows, hence whole
lanes: it needs the runs of its own lanes and no others.
"""

import dataclasses
import functools
import math

from flaxclip.data.permutation import permute

RUNS = 16
"""Runs in a window."""

_LANE_ROWS = 32
_FEWEST_LANES = 32  # so that small batches are drawn from many runs


@dataclasses.dataclass(frozen=True)
class StorageOrder:
    """The order of the examples in each epoch of a corpus that is fetched in runs.

    A function of these fields and the epoch alone. All lanes change their windows at the same step,
    every `window_steps`. What is left at the end of an epoch, from a half to one and a half windows
    a lane, is divided among the lanes evenly, with the rows in which an epoch begins or ends within
    a batch: so lanes are the same rows in all epochs, and smaller corpora have smaller windows.

    Costs, with runs of 104 examples: a host needs its share of an epoch's runs, 1.00 to 1.03 times,
    if it has whole lanes; if it has only a part of a lane, all of the lane's runs. Open are 16 runs
    a lane, 2.5 MiB a row of the batch if a run has 5 MiB, and with `window_steps` read ahead twice
    as much. A position takes 6 µs, of 1.28 billion; at random, each in another epoch, 25.

    Mixing: each open run gives a batch two examples on average, or fewer below 1,024 rows. A corpus
    without an order is mixed as by a whole shuffle. Of one that is sorted into 1,000 classes of 12
    runs each, batches of 128, 1,024 and 4,096 have 111, 375 and 864 classes, where a whole shuffle
    has 120, 638 and 984 (`experiments/perf/mixing.py`), which a short run can feel.
    """

    examples: int
    """At least twice the batch size: in a smaller corpus there is nothing to divide among lanes."""
    run_length: int
    """Examples that are fetched together; the last run may be shorter."""
    batch_size: int
    """Positions of the stream from one batch to the next."""
    seeds: tuple[int, ...]

    @functools.cached_property
    def lanes(self) -> int:
        """Lanes of a batch, 32 rows each, as far as its size allows.

        Otherwise their number is a power of two, so that as many hosts have whole lanes.
        """
        lanes, rest = divmod(self.batch_size, _LANE_ROWS)
        if rest:
            lanes = 2 ** max(0, round(math.log2(self.batch_size / _LANE_ROWS)))
        return max(lanes, min(_FEWEST_LANES, self.batch_size))

    @functools.cached_property
    def window_steps(self) -> int:
        """Steps in which every lane goes through one window."""
        return -(-RUNS * self.run_length * self.lanes // self.batch_size)

    def example(self, epoch: int, position: int) -> int:
        """The example at `position` of `epoch`, for 0 <= position < examples."""
        start, length, place = self._window(epoch, position)
        seeds = (*self.seeds, epoch)
        slot = start + permute(place, length, (*seeds, start))
        # The short run stays last, so that the others begin where windows do.
        run, offset = divmod(slot, self.run_length)
        whole = self.examples // self.run_length
        if run < whole:
            run = permute(run, whole, (*seeds, 2**32 + 1))
        return run * self.run_length + offset

    def _window(self, epoch: int, position: int) -> tuple[int, int, int]:
        """The window that is read at a position: its first slot, its length, the place in it.

        Slots are the examples of the epoch with its runs permuted.
        """
        batch, steps = self.batch_size, self.window_steps
        # Rows that the epoch has in the batch in which it begins, and in the one where it ends.
        head = -epoch * self.examples % batch
        whole_batches, last = divmod(self.examples - head, batch)
        step, row = divmod(position - head, batch)  # step is -1 in the head
        lane = ((row + 1) * self.lanes - 1) // batch
        first, stop = lane * batch // self.lanes, (lane + 1) * batch // self.lanes
        width = stop - first

        left = max(0, (whole_batches - (steps + 1) // 2) // steps) * steps
        if 0 <= step < left:
            begun, step = divmod(step, steps)
            start = begun * steps * batch + first * steps
            return start, width * steps, step * width + row - first

        # The last windows, from step `left` on, with the rows of the head before them.
        def slots_of_rows(stop: int) -> int:
            """Slots of the rows before `stop`."""
            in_head = max(0, stop - (batch - head))
            return in_head + stop * (whole_batches - left) + min(stop, last)

        start = slots_of_rows(first)
        length = slots_of_rows(stop) - start
        first_in_head = max(first, batch - head)
        if step < 0:
            place = row - first_in_head
        else:
            place = max(0, stop - first_in_head) + (step - left) * width + row - first
        return left * batch + start, length, place
