"""Towers as programs without Python: StableHLO, and ONNX."""
