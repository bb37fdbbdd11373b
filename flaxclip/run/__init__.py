"""Everything around the loop of a run: its command line, workdir, records and reports."""
