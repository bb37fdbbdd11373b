"""Index tar shards once, for all who read them."""
