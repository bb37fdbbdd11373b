"""`python -m flaxclip.data.inspect`: what is in a corpus."""
