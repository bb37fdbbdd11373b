"""Named architectures, by family; `models/variants.py` has them all."""
