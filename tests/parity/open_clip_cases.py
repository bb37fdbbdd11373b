"""What both sides of a comparison with open_clip start from: sizes and weights. NumPy alone."""

import zlib
from collections.abc import Mapping

import numpy as np

# As in `clip_cases`, every axis has a length of its own. open_clip's head width of 64 makes three
# heads of the ResNet's 192 features; a stage of one block has nothing to scan.
TEXT = {
    "context_length": 13,
    "vocab_size": 97,
    "width": 40,
    "layers": 2,
    "heads": 5,
    "mlp_ratio": 3.0,
}
EMBED_DIM = 28
RESNET = {"image_size": 64, "width": 6, "layers": (1, 1, 3, 1)}
# Heads and the ratio of ViT-bigG-14.
BIGG = {
    "image_size": 28,
    "patch_size": 14,
    "width": 208,
    "layers": 2,
    "heads": 2,
    "mlp_ratio": 4.9231,
}
# The image is no multiple of the patch, as in ViT-SO400M-14-SigLIP-384.
SIGLIP = {
    "image_size": 29,
    "patch_size": 7,
    "width": 60,
    "layers": 3,
    "heads": 4,
    "mlp_ratio": 2.5,
}
CASES = {"resnet": RESNET, "bigG": BIGG, "siglip": SIGLIP}
# The images are such that no input of a ReLU lies within 1e-5 of 0, where rounding would decide
# whether it has a gradient. With so large an epsilon, a change tells a gradient's size, not only
# its sign.
RESNET_INPUTS = 231
ADAMW = {"lr": 1e-3, "betas": (0.9, 0.98), "eps": 1e-2, "weight_decay": 0.2}


def random_tensors(
    shapes: Mapping[str, tuple[int, ...]], layer_scale: float = 0.1
) -> dict[str, np.ndarray]:
    """A value for every tensor, of a trained model's size; a function of its name and shape.

    `layer_scale` is the size of FastViT's.
    """
    tensors = {}
    for name, shape in shapes.items():
        # RandomState, not default_rng: NumPy promises that this one's numbers never change.
        normal = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
        if name.endswith("num_batches_tracked"):
            continue
        if name == "logit_scale":
            value = np.log(20) + 0.1 * normal
        elif name == "logit_bias":
            value = -5 + normal
        elif name.endswith("running_var"):
            value = 0.5 + abs(normal)
        elif name.endswith("gamma") and len(shape) == 3:
            # Were they near 1, deep towers would overflow.
            value = layer_scale * normal
        elif len(shape) == 1 and name.endswith("weight"):
            value = 1 + 0.2 * normal
        elif len(shape) <= 1:
            value = 0.2 * normal
        elif ("embed" in name and "proj" not in name) or name.endswith(("latent", "probe")):
            value = 0.5 * normal
        elif name.endswith(("text_projection", "visual.proj")):  # [in, out]
            value = 1.5 * shape[0] ** -0.5 * normal
        else:
            value = 1.5 * np.prod(shape[1:]) ** -0.5 * normal
        tensors[name] = np.asarray(value, np.float32)
    return tensors


def sampled(size: int) -> np.ndarray:
    """Positions in a flattened tensor of `size` numbers that a reference keeps."""
    return np.unique(np.linspace(0, size - 1, 48).astype(int))
