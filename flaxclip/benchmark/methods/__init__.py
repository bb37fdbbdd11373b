"""What a model is asked: zero-shot classification, retrieval, choices, probes."""
