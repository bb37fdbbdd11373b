"""Report unreadable records: one by one while they are few, then by shard."""

import collections
from collections.abc import Iterable

_NAMED = 20  # one by one; with more, a log would hold little else
_SHARDS = 10  # named in a summary


class Replacements:
    """Unreadable records that were replaced by others, counted by shard, on one host of a run.

    A record that is drawn again in a later epoch counts again.
    """

    def __init__(self) -> None:
        self.total = 0
        self._by_shard: collections.Counter[str] = collections.Counter()
        self._untold: collections.Counter[str] = collections.Counter()

    def add(self, step: int, records: Iterable[str]) -> list[str]:
        """Count `records` (name, colon, reason); returns lines to report at once."""
        lines = []
        for record in records:
            shard = _shard(record)
            self.total += 1
            self._by_shard[shard] += 1
            if self.total <= _NAMED:
                lines.append(f"step {step}: unreadable record, replaced by another: {record}")
            else:
                self._untold[shard] += 1
            if self.total == _NAMED:
                lines.append("further unreadable records are only counted, by shard")
        return lines

    def recent(self) -> list[str]:
        """Lines to report on those that `add` has not named since the last call."""
        untold, self._untold = self._untold, collections.Counter()
        if not untold:
            return []
        return [f"{untold.total():,} more unreadable records replaced: {_listed(untold)}"]

    def summary(self) -> list[str]:
        """Lines to report at the end of the run."""
        if not self.total:
            return []
        return [f"{self.total:,} unreadable records were replaced: {_listed(self._by_shard)}"]


def _shard(record: str) -> str:
    """The shard or folder in a record's name: see `Source.name`."""
    name = record.split(": ", 1)[0]
    return name.rpartition("/")[0] or name


def _listed(counts: collections.Counter[str]) -> str:
    named = [f"{shard} {count:,}" for shard, count in counts.most_common(_SHARDS)]
    others = len(counts) - len(named)
    return ", ".join(named) + (f", and {others:,} other shards" if others else "")
