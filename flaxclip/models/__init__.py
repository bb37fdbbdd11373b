"""Encoders: image tower, text tower, and CLIP, which holds both."""
