"""Permutations that are computed value by value, each a function of a tuple of seeds."""

import functools
import math
from collections.abc import Callable

import numpy as np

_ROUNDS = 6
_MASK = 2**64 - 1


def permute(position: int, length: int, seeds: tuple[int, ...]) -> int:
    """The value at `position` of a permutation of 0, …, length - 1; some 2 µs for any length.

    A Feistel network on pairs of numbers up to the root of `length`, applied again where it leaves
    the range (Black & Rogaway 2002, "Ciphers with arbitrary finite domains").
    """
    side = math.isqrt(length - 1) + 1
    while True:
        left, right = divmod(position, side)
        for key in _round_keys(seeds):
            mixed = (right + key) * 0x9E3779B97F4A7C15 & _MASK
            mixed = (mixed ^ mixed >> 32) * 0xD6E8FEB86659FD93 & _MASK
            left, right = right, (left + (mixed >> 32)) % side
        position = left * side + right
        if position < length:
            return position


def permute_as_grain(position: int, length: int, seeds: tuple[int, ...]) -> int:
    """The same in the permutation of `grain.MapDataset.range(length).shuffle(hash_of(seeds))`.

    Grain permutes no fewer than 2^16 values and leaves out those beyond the length: it takes 4 µs
    for a million values, 0.3 ms for a hundred.
    """
    return int(grains_shuffle()(position, max_index=length - 1, seed=hash_of(seeds), rounds=4))


@functools.cache
def grains_shuffle() -> Callable[..., int]:
    """Grain's function; to be called for the first time while no other thread may import.

    While Grain is imported, etils (1.15, `epy.lazy_imports`) has replaced `builtins.__import__` for
    all threads: what another one imports at that moment, as JAX does in functions while it traces a
    step, becomes a stand-in for a module that there may not be.
    """
    # It brings JAX, which takes a second and 130 MB: of each process that loads data, and those
    # that follow the order for object storage need none of it.
    from grain.experimental import index_shuffle

    return index_shuffle


@functools.lru_cache(64)
def hash_of(seeds: tuple[int, ...]) -> int:
    """32 bits, different for different seeds."""
    # Not their sum: epoch 1 of seed 0 would be epoch 0 of seed 1.
    return int(np.random.SeedSequence(seeds).generate_state(1)[0])


@functools.lru_cache(1024)  # in the storage order, a batch goes through as many windows
def _round_keys(seeds: tuple[int, ...]) -> list[int]:
    keys: list[int] = np.random.SeedSequence(seeds).generate_state(_ROUNDS, np.uint64).tolist()
    return keys
