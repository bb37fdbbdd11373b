"""transformers' models: names of parameters and configuration, both ways."""
