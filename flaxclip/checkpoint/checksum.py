"""Checksums of arrays, computed on the devices, to verify checkpoints and compare replicas.

A checksum is the sum, modulo 2^32, of a hash of every element's bits and position. Addition modulo
2^32 is associative, so the sum is the same however an array is divided. The hash is a bijection of
the bits, so a change of a single element always changes it; any other damage goes unnoticed once in
2^32 times.
"""

import functools
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped, UInt32


def checksum(array: Shaped[Array, "..."]) -> UInt32[Array, ""]:
    """Checksum of one array, by the module's formula; works on shards as well as on the whole."""
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    unsigned = jnp.dtype(f"uint{8 * array.dtype.itemsize}")
    bits = jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
    position, stride = jnp.zeros(array.shape, jnp.uint32), 1
    for axis in reversed(range(array.ndim)):
        position += jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis) * np.uint32(stride)
        stride = stride * array.shape[axis] % 2**32
    # Knuth, The Art of Computer Programming 3, section 6.4: 2^32 over the golden ratio.
    return jnp.sum(_mix(bits ^ position * np.uint32(2654435769)), dtype=jnp.uint32)


def _mix(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """The finalizer of MurmurHash3 (Appleby 2011), `fmix32`."""
    x = (x ^ x >> 16) * np.uint32(0x85EBCA6B)
    x = (x ^ x >> 13) * np.uint32(0xC2B2AE35)
    return x ^ x >> 16


def tree_checksums(tree: Any) -> dict[str, int]:
    """Name of each array in `tree` -> its checksum; waits until the arrays are there."""
    sums = jax.device_get(_tree_checksums(tree))
    return {name: int(value) for (name, _), value in zip(_named(tree), sums, strict=True)}


def sha256_of_checksums(checksums: Mapping[str, int]) -> str:
    """One hash of all arrays, from `tree_checksums`: of the same numbers under the same names it is
    the same, whatever their order.
    """
    return hashlib.sha256(json.dumps(dict(sorted(checksums.items()))).encode()).hexdigest()


@jax.jit
def _tree_checksums(tree: Any) -> list[UInt32[Array, ""]]:
    return [checksum(leaf) for leaf in jax.tree.leaves(tree)]


def diverged_replicas(tree: Any, mesh: Mesh) -> list[str]:
    """`NAME on DEVICES` for each array whose copies on `mesh` are not all the same, bit for bit.

    The devices named are those that differ from the majority. Every host gets the same answer.
    """
    named = _named(tree)
    shardings: list[Any] = [leaf.sharding for _, leaf in named]
    specs = tuple(sharding.spec for sharding in shardings)
    sums = np.asarray(_shard_checksums(mesh, specs)([leaf for _, leaf in named]))
    diverged = []
    for (name, leaf), column in zip(named, sums.T, strict=True):
        copies = defaultdict(list)  # the part of the array that a device holds -> its checksums
        parts = leaf.sharding.devices_indices_map(leaf.shape)
        for device, value in zip(mesh.devices.flat, column, strict=True):
            copies[str(parts[device])].append((device, int(value)))
        odd = [device for same_part in copies.values() for device in _minority(same_part)]
        if odd:
            where = ", ".join(f"device {d.id} of host {d.process_index}" for d in odd)
            diverged.append(f"{name} on {where}")
    return diverged


@functools.cache
def _shard_checksums(mesh: Mesh, specs: tuple[PartitionSpec, ...]) -> Any:
    """Compiled: arrays -> [devices, arrays] checksums of each device's own part, everywhere."""

    def own(leaves: Sequence[Array]) -> UInt32[Array, "1 arrays"]:
        return jnp.stack([checksum(leaf) for leaf in leaves])[None]

    on_each = jax.shard_map(
        own,
        mesh=mesh,
        in_specs=(list(specs),),
        out_specs=PartitionSpec(mesh.axis_names, None),
        check_vma=False,
    )
    return jax.jit(on_each, out_shardings=NamedSharding(mesh, PartitionSpec()))


def _minority(copies: list[tuple[jax.Device, int]]) -> list[jax.Device]:
    [(majority, _)] = Counter(value for _, value in copies).most_common(1)
    return [device for device, value in copies if value != majority]


def _named(tree: Any) -> list[tuple[str, Array]]:
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
