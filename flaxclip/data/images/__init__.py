"""Bytes of an image -> pixels: decoding, resizing, the transforms of evaluation and training."""
