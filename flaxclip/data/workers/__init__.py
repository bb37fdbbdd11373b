"""Processes that make examples beside training. No JAX, no Flax."""
