"""What is asked of a tokenizer by callers whose types nobody checks."""

from flaxclip.models.inputs import TokenizerConfig


def unchecked(**fields):
    """A configuration as it is made where no types are checked."""
    config = TokenizerConfig()
    for name, value in fields.items():
        object.__setattr__(config, name, value)
    return config
