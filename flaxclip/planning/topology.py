"""Machines that are not here: as the TPU compiler describes them, or as virtual CPU devices."""

import contextlib
import dataclasses
import importlib.util
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from flaxclip.chips import Chip, find_chip
from flaxclip.errors import InputError

# Slices of each kind that the cloud rents out; the compiler takes other shapes too.
_EXAMPLES = {
    "v5e": "v5e:2x4 v5e:4x4 v5e:8x8 v5e:16x16",
    "v6e": "v6e:2x4 v6e:4x4 v6e:8x8 v6e:16x16",
    "v5p": "v5p:2x2x2 v5p:4x4x4 v5p:4x8x8 v5p:8x8x8",
    "v4": "v4:2x2x1 v4:2x2x4 v4:4x4x4 v4:4x8x8",
    "tpu7x": "tpu7x:2x2x1 tpu7x:2x2x2 tpu7x:4x4x4 tpu7x:4x8x8",
}
# As the cloud sets them up: both cores of a v4 chip are one device.
_OPTIONS: dict[str, dict[str, Any]] = {"v4": {"chip_config_name": "megacore"}}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices that a step can be compiled for."""

    name: str
    devices: list[jax.Device]
    chip: Chip | None
    """None for virtual devices, which have no published figures."""

    @property
    def hosts(self) -> int:
        return len({device.process_index for device in self.devices})


def open_topology(name: str, slices: int = 1) -> Topology:
    """The devices of `name`, such as `v5e:16x16`, or `cpu:8` for virtual devices of this machine.

    Call it with JAX on the CPU (`jax_platforms`): programs are compiled for the accelerator, not
    run.

    Args:
        name: kind of chip and shape of the slice.
        slices: how many of them, joined by the data centre's network.

    Raises:
        InputError: an unknown name, or no TPU compiler is installed.
    """
    kind, _, shape = name.partition(":")
    if kind == "cpu":
        if slices != 1:
            raise InputError("virtual devices are one slice\nleave --slices out")
        return _virtual_devices(name, shape)
    if kind not in _EXAMPLES:
        raise InputError(
            f"unknown topology {name!r}\nknown: {', '.join(_EXAMPLES.values())}, "
            "others of their kind, and cpu:N for N virtual devices"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            f"topology {name} needs the TPU compiler, and it is not installed\n"
            "pip install 'flaxclip[plan]', or plan for virtual devices with --topology cpu:8"
        )
    # libtpu looks for the TPU that it runs on, and locks it; here it only compiles.
    for variable, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_STDERR_LOG_LEVEL": "3",
        "TPU_MIN_LOG_LEVEL": "3",
    }.items():
        os.environ.setdefault(variable, value)
    if slices < 1:
        raise InputError(f"slices is {slices}\nit must be at least 1")
    options = _OPTIONS.get(kind, {}) | ({} if slices == 1 else {"num_slices": slices})
    try:
        devices: Any = topologies.get_topology_desc(name, platform="tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        raise InputError(
            f"the TPU compiler knows no topology {name!r}: {str(error).splitlines()[0]}\n"
            f"of this kind it knows, for example, {_EXAMPLES[kind]}"
        ) from None
    chip = find_chip(devices[0].device_kind)
    if slices > 1:
        if chip is not None and chip.dcn_bandwidth is None:
            raise InputError(
                f"the network between slices of {kind} has no published figure\nplan one slice"
            )
        name = f"{slices} x {name}"
    return Topology(name, list(devices), chip)


def _virtual_devices(name: str, count: str) -> Topology:
    if not re.fullmatch(r"[1-9]\d*", count):
        raise InputError(
            f"topology {name!r} names no number of virtual devices\nexpected, for example, cpu:8"
        )
    # Where JAX has its devices already, their number can no longer be chosen.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", int(count))
    devices = jax.devices("cpu")
    if len(devices) < int(count):
        raise InputError(
            f"topology {name!r} has more devices than this process has: {len(devices)}\n"
            f"start it with XLA_FLAGS=--xla_force_host_platform_device_count={count}"
        )
    return Topology(name, devices[: int(count)], None)
