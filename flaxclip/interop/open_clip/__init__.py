"""open_clip's models: names of parameters and configuration, both ways."""
