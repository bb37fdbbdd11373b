"""What surrounds the loop of one run: its command line, workdir, records and reports."""
