"""The present states of many shards: one by one, or from listings of their folders."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from flaxclip.data.sources.shard_paths import shown
from flaxclip.data.sources.storage import Version, version_of
from flaxclip.errors import InputError


def versions_of_all(paths: Sequence[str]) -> list[Version]:
    """The state of each shard.

    Raises:
        InputError: some do not exist, or cannot be opened.
    """
    missing = []

    def look(path: str) -> Version:
        try:
            return version_of(path)
        except FileNotFoundError:
            missing.append(path)
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"cannot open shard {shown(path)}: {reason}") from None
        return Version(0, 0)

    # In object storage each is a request.
    with ThreadPoolExecutor(32) as pool:
        versions = list(pool.map(look, paths))
    if missing:
        raise InputError(
            f"{len(missing):,} of {len(paths):,} shards do not exist\n"
            f"first: {shown(min(missing))}\n"
            "check the pattern, or finish the download"
        )
    return versions
