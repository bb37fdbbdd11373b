"""Pretrain CLIP with JAX and Flax, and measure it."""
