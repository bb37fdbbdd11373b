"""Plans of runs for machines that are not here: the step is compiled, read and counted."""
