"""Corpora in tables: Parquet, CSV, TSV."""
