"""`python -m flaxclip.data.prepare`: a corpus -> shuffled ArrayRecord shards and a datasheet."""
