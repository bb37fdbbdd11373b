"""What comes with weights."""

import dataclasses
from typing import NamedTuple

from flaxclip.errors import InputError
from flaxclip.models.clip import CLIPConfig
from flaxclip.models.inputs import ImageTransform, TokenizerConfig


class ModelSpec(NamedTuple):
    """All that comes with weights: the architecture, and the preprocessing of its inputs."""

    model: CLIPConfig
    preprocess: ImageTransform = ImageTransform()
    tokenizer: TokenizerConfig = TokenizerConfig()

    def with_max_patches(self, max_patches: int) -> "ModelSpec":
        """The same, for images of at most so many patches.

        Raises:
            InputError: its images are squares, or the number is not positive.
        """
        if self.preprocess.resize != "native":
            raise InputError(
                f"max_patches is {max_patches}, and the model takes squares of "
                f"{self.model.vision.image_size} pixels\nleave it out: it is for models that take "
                "images at their own aspect ratio, such as SigLIP 2's NaFlex"
            )
        if max_patches < 1:
            raise InputError(f"max_patches is {max_patches}\nan image has at least one patch")
        how = dataclasses.replace(self.preprocess, max_patches=max_patches)
        return self._replace(preprocess=how)
