"""Where the cycles and bytes of a compiled step go."""
