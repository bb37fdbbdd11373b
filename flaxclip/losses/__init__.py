"""Contrastive losses as pure functions on global arrays."""
