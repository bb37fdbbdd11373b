"""Processes that make batches beside training. No JAX, no Flax."""
