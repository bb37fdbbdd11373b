"""Whether the difference between two checkpoints is real: paired tests, task by task."""
