"""What a run needs on a machine that is not here: compiled, read and counted."""
