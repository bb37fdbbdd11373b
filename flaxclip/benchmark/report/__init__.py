"""Results -> tables, charts and a page, from files alone."""
