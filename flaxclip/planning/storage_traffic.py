"""What a run asks of object storage, and what that costs."""

import dataclasses

from flaxclip.data.sources.runs import RUN_BYTES

REQUEST_PRICE = 0.0004 / 1000
"""Dollars for a request (Class B operation, Standard storage; Google Cloud's "Pricing examples" of
Cloud Storage, 2024)."""
INTERNET_PRICE = 0.12
"""Dollars for a GB that leaves Google Cloud, in the first and dearest tier (there)."""


@dataclasses.dataclass(frozen=True)
class StorageTraffic:
    """Of a whole run that reads each of its pairs from a bucket, none from a cache."""

    pair_bytes: float
    bytes: float
    requests: float
    """Of runs of neighbouring pairs, over all hosts."""

    @property
    def request_dollars(self) -> float:
        return self.requests * REQUEST_PRICE

    @property
    def internet_dollars(self) -> float:
        """For a bucket outside the machines' cloud; within a region, data is free."""
        return self.bytes / 1e9 * INTERNET_PRICE

    def host_bytes_per_second(self, host_images_per_second: float) -> float:
        """Bandwidth that a host needs, to be on time."""
        return host_images_per_second * self.pair_bytes


def storage_traffic(pairs: int, pair_bytes: float) -> StorageTraffic:
    """The traffic of a run of `pairs` pairs, those seen again included."""
    size = pairs * pair_bytes
    return StorageTraffic(pair_bytes, size, max(size / RUN_BYTES, 1))


def describe(traffic: StorageTraffic) -> str:
    """A sentence for the terminal."""
    unit, name = (1e12, "TB") if traffic.bytes >= 1e12 else (1e9, "GB")
    return (
        f"at {traffic.pair_bytes / 1000:g} kB a pair, {traffic.bytes / unit:,.3g} {name} in "
        f"{traffic.requests:,.0f} requests, which cost ${traffic.request_dollars:,.2f}; data is "
        f"free within a region, ${traffic.internet_dollars:,.0f} over the internet (Google's list "
        "prices)"
    )
