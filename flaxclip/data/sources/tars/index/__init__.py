"""The index of tar shards: where the members of each pair are."""
