"""Sources of pairs: one reader a format, all with the same interface."""
