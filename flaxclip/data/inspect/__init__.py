"""`python -m flaxclip.data.inspect`: inspect a corpus."""
