"""The evaluation transform that belongs to a model."""

from flaxclip.data.transforms import ImageTransform
from flaxclip.models.clip import CLIPConfig


def model_transform(config: CLIPConfig) -> ImageTransform:
    """As `config` says."""
    return ImageTransform(
        size=config.vision.image_size,
        resize_mode=config.resize,
        interpolation=config.interpolation,
        transparency=config.transparency,
        crop_rounding=config.crop_rounding,
    )
