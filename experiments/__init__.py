"""Runs worth naming. Installed as `flaxclip.experiments`, so that `NAME` alone finds them."""
