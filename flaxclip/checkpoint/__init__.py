"""Checkpoints: their layout, saving, restoring. Nothing else knows Orbax."""
