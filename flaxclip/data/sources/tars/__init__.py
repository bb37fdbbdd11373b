"""Tars of pairs, as webdataset and img2dataset write them, with random access."""
