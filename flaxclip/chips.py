"""Published figures of accelerator chips, for MFU and for planning."""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of one chip, or of the part of it that JAX calls a device.

    If None, not published, or not needed to plan.
    """

    device_kind: str
    """The name that JAX gives to the device."""
    peak_flops: float
    """Dense bfloat16 FLOP/s."""
    source: str
    """Source of the figures."""
    hbm_bytes: float | None = None
    """Memory that the TPU compiler lets a program use; the system takes some of the chip's."""
    hbm_bandwidth: float | None = None
    """Bytes/s."""
    ici_bandwidth: float | None = None
    """Bytes/s that a chip receives through all its links to other chips together: half the
    published bidirectional figure."""
    torus_axes: int | None = None
    """Dimensions of the network of chips; a chip has two links along each."""
    dcn_bandwidth: float | None = None
    """Bytes/s of a host's network cards, divided by its chips."""
    clock: float | None = None
    """Cycles/s: `peak_flops` over the FLOPs that a chip's matrix units do in a cycle."""
    devices: int = 1
    """JAX's devices in one chip, each with its own memory."""
    on_chip_bandwidth: float | None = None
    """Bytes/s that a device receives from the others of its chip."""


_DOCS = "docs.cloud.google.com/tpu/docs"
_NVIDIA = "NVIDIA's data sheet of the SXM part, without sparsity"

CHIPS: tuple[Chip, ...] = (
    Chip(
        device_kind="TPU v4",
        peak_flops=275e12,
        hbm_bytes=30.75 * GIB,
        hbm_bandwidth=1200e9,
        ici_bandwidth=6 * 50e9,
        torus_axes=3,
        clock=275e12 / (2 * 8 * 128 * 128),
        source=f"{_DOCS}/v4; links: Jouppi et al. 2023 (TPU v4), table 4",
    ),
    Chip(
        device_kind="TPU v5 lite",
        peak_flops=197e12,
        hbm_bytes=15.75 * GIB,
        hbm_bandwidth=819e9,
        ici_bandwidth=400e9 / 2,
        torus_axes=2,
        dcn_bandwidth=6.4e12 / 8 / 256,  # 6.4 Tbit/s for a pod
        clock=197e12 / (2 * 4 * 128 * 128),
        source=f"{_DOCS}/v5e",
    ),
    Chip(
        device_kind="TPU v5",
        peak_flops=459e12,
        hbm_bytes=95.73 * GIB,
        hbm_bandwidth=2765e9,
        ici_bandwidth=1200e9 / 2,
        torus_axes=3,
        dcn_bandwidth=50e9 / 8,
        clock=459e12 / (2 * 8 * 128 * 128),
        source=f"{_DOCS}/v5p",
    ),
    Chip(
        device_kind="TPU v6 lite",
        peak_flops=918e12,
        hbm_bytes=31.24 * GIB,
        hbm_bandwidth=1638e9,
        ici_bandwidth=800e9 / 2,
        torus_axes=2,
        dcn_bandwidth=25.6e12 / 8 / 256,  # 25.6 Tbit/s for a pod
        # The page speaks of two units of 256 x 256. With two, 918 TFLOP/s would take 3.5 GHz, and
        # the compiler estimates fewer cycles for a product of 16,384^3 than two need.
        clock=918e12 / (2 * 4 * 256 * 256),
        source=f"{_DOCS}/v6e",
    ),
    # Half a chip: JAX shows the two chiplets as devices of their own. They share the links to other
    # chips, of which a chiplet has half here, even where one could pass on what it has received.
    Chip(
        device_kind="TPU7x",
        peak_flops=2307e12 / 2,
        hbm_bytes=94.74 * GIB,
        hbm_bandwidth=7380e9 / 2,
        ici_bandwidth=1200e9 / 2 / 2,
        torus_axes=3,
        dcn_bandwidth=100e9 / 8 / 2,
        # By the compiler's estimate for a product of 16,384^3, four units of 256 x 256 a chiplet.
        clock=2307e12 / 2 / (2 * 4 * 256 * 256),
        devices=2,
        # Six times one of a chip's six links, which have 1200 GB/s in both directions together.
        on_chip_bandwidth=6 * 1200e9 / 2 / 6,
        source=f"{_DOCS}/tpu7x",
    ),
    Chip(device_kind="NVIDIA A100-SXM4-40GB", peak_flops=312e12, source=_NVIDIA),
    Chip(device_kind="NVIDIA A100-SXM4-80GB", peak_flops=312e12, source=_NVIDIA),
    Chip(device_kind="NVIDIA H100 80GB HBM3", peak_flops=989e12, source=_NVIDIA),
    Chip(device_kind="NVIDIA H200", peak_flops=989e12, source=_NVIDIA),
)


def find_chip(device_kind: str) -> Chip | None:
    """The chip that JAX calls `device_kind`; None for one that is not in the table."""
    return next((chip for chip in CHIPS if chip.device_kind == device_kind), None)
