"""Where pairs come from: one reader a format, all with the same interface."""
