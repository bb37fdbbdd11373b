"""Files of weights -> tensors by name, without torch and without running what a file contains."""
