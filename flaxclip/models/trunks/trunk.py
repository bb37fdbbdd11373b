"""The questions that the rest of flaxclip asks an image tower's configuration."""

import abc
from collections.abc import Mapping

from flax import linen as nn

from flaxclip.models.compute import ComputeConfig


class TrunkConfig(abc.ABC):
    """Base of the configurations of image towers, which are frozen dataclasses.

    A subclass has these fields. No other has its values of `family`: a `config.json` is read as the
    one that it fits.
    """

    image_size: int
    """Side of the square input, pixels."""
    width: int
    """Channels of the first layer."""
    layers: int | tuple[int, ...]
    """Blocks, or those of each stage."""
    family: str
    is_transformer: bool
    """True if it is a stack of transformer blocks: it can leave patches out, and an unrolled one
    compiles in reasonable time."""

    @property
    @abc.abstractmethod
    def patch_size(self) -> int:
        """Pixels between two positions of the last feature map."""

    @property
    def grid(self) -> int:
        """Positions along one side of the last feature map."""
        return self.image_size // self.patch_size

    @property
    @abc.abstractmethod
    def deepest_stack(self) -> int:
        """Blocks in the longest stack of equal ones."""

    @property
    def has_projection(self) -> bool:
        """True if embeddings may have another width than the tower."""
        return True

    @property
    def averages_statistics(self) -> bool:
        """True if batch norms go on averaging their statistics in training."""
        return False

    @property
    def architecture(self) -> "TrunkConfig":
        """Itself, with the defaults of settings that concern its training alone."""
        return self

    @property
    def tensor_divides(self) -> Mapping[str, int]:
        """Counts that devices along `tensor` share, by what is counted; the same for all blocks."""
        return {}

    @abc.abstractmethod
    def describe(self) -> str:
        """Its shape, for people."""

    @abc.abstractmethod
    def make_tower(self, embed_dim: int, compute: ComputeConfig) -> nn.Module:
        """The tower; called with normalised pixels and `train`, it returns [b, embed_dim]."""
