"""Corpora, transforms, tokenizers, and the (seed, step) -> batch pipeline."""
