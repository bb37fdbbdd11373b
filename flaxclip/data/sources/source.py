"""The interface between corpora of every kind and the loader.

A corpus is a sequence of examples, each an image with its captions. Its index is its place in that
sequence; training visits it once an epoch, and every visit makes one row of a batch.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8


class Pair(NamedTuple):
    """One image with its captions, as stored: the image encoded, or already as pixels."""

    image: bytes | UInt8[np.ndarray, "height width 3"]
    captions: tuple[str, ...]
    """At least one, none of them blank; a visit to the example draws one."""
    weights: tuple[float, ...] | None = None
    """Relative weights of the captions in the draw. If None, all are equal."""


class UnreadableExampleError(Exception):
    """An example that exists but yields no pair; the message names the fault.

    The loader replaces such an example, counts it and logs its name: one broken image among
    billions must not stop a run.
    """


@runtime_checkable
class Source(Protocol):
    """Random access by position. Must be picklable: worker processes hold a copy.

    A source that leaves out files has a `left_out`: counts by reason. If images can be missing
    while their captions exist, it has `captions(index)`, which returns those of `Pair`. If reading
    an example means waiting for a network, it has `reads_remotely`, which is True: many threads of
    a process then read at once. If neighbours are then better read together, it has `run_length`:
    the number of examples in some 5 MiB, which one request fetches; a multiple of 4, or None if it
    cannot read in runs. Run k is of the examples from k * run_length on. `order.window` "auto"
    draws the examples of few runs at a time; a change of the number changes that order. If a name
    may have to be waited for, it has `place(index)`, which does as well and is not.
    """

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def __getitem__(self, index: int) -> Pair:
        """The example at `index`, for 0 <= index < len, with the captions that training draws from.

        Raises:
            UnreadableExampleError: the example is there but cannot be used.
        """
        ...

    def fields(self, index: int) -> Mapping[str, Any]:
        """All fields stored beside the image, by name: JSON values. Not needed for training.

        The text beside an image is `txt`; the values of its JSON, and the columns of a table, have
        their own names.

        Raises:
            UnreadableExampleError: it cannot be read.
        """
        ...

    def name(self, index: int) -> str:
        """A name by which a person can find this example, e.g. `00003.tar/000030017`.

        The part before the last slash names the shard or folder; broken examples are counted by it.
        """
        ...


def reads_remotely(source: object) -> bool:
    """True if reading an example may mean waiting for a network."""
    return getattr(source, "reads_remotely", False)


def place(source: Source, index: int) -> str:
    """The name of an example, or what does as well for a person; is not waited for."""
    told: str = getattr(source, "place", source.name)(index)
    return told


def run_length(source: Source) -> int | None:
    """Examples that are best read together; None if each is read alone."""
    length: int | None = getattr(source, "run_length", None)
    return length
