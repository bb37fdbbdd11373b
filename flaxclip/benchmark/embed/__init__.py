"""Embeddings of whole corpora on disk, in layouts that others read, and search over them."""
