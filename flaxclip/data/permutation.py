"""Permutations, each a function of its length and a tuple of seeds."""

import functools

import numpy as np
from grain.experimental import index_shuffle


def permute(position: int, length: int, seeds: tuple[int, ...]) -> int:
    """The value at `position` of a permutation of 0, …, length - 1, which is not stored.

    The same as `grain.MapDataset.range(length).shuffle(seed)`, without its dozen calls.
    """
    shuffled = index_shuffle(position, max_index=length - 1, seed=hash_of(seeds), rounds=4)
    return int(shuffled)


_MOST_STORED = 2**16


def permute_stored(position: int, length: int, seeds: tuple[int, ...]) -> int:
    """Like `permute`, but another permutation; of up to 65,536 numbers it is stored.

    `permute` goes through 65,536 numbers to find one of a few hundred, which takes 0.1 ms.
    """
    if length > _MOST_STORED:
        return permute(position, length, seeds)
    return int(_stored(length, seeds)[position])


@functools.lru_cache(1024)  # in the storage order, a batch goes through as many windows
def _stored(length: int, seeds: tuple[int, ...]) -> np.ndarray:
    # The raw bits are the same in all versions of NumPy; what its `permutation` makes of them may
    # change.
    keys = np.random.Philox(np.random.SeedSequence(seeds)).random_raw(length)
    return np.argsort(keys, kind="stable").astype(np.int32)


@functools.lru_cache(1024)  # in the storage order, a batch goes through as many windows
def hash_of(seeds: tuple[int, ...]) -> int:
    """32 bits, different for different seeds."""
    # Not their sum: epoch 1 of seed 0 would be epoch 0 of seed 1.
    return int(np.random.SeedSequence(seeds).generate_state(1)[0])
