"""Zero-shot evaluation of checkpoints; knows nothing of training."""
