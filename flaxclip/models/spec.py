"""What comes with weights."""

from typing import NamedTuple

from flaxclip.models.clip import CLIPConfig
from flaxclip.models.inputs import ImageTransform, TokenizerConfig


class ModelSpec(NamedTuple):
    """All that comes with weights: the architecture, and the preprocessing of its inputs."""

    model: CLIPConfig
    preprocess: ImageTransform = ImageTransform()
    tokenizer: TokenizerConfig = TokenizerConfig()
