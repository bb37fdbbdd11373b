"""Attention: dot products, rotations of positions, pooling, and the kernel for TPUs."""
