"""Files of DataCompDR against torch, which writes them, and torchvision, which makes crops."""

import gzip
import io

import ml_dtypes
import numpy as np
import PIL.Image
import pytest

from flaxclip.data.images.changes import apply_changes
from flaxclip.data.reinforced.datacompdr import _read_vectors, read_crop

torch = pytest.importorskip("torch")

# `RandAugment.op_names` of apple/ml-mobileclip, training/dr/transforms.py, at commit 4144bb1.
NAMES = (
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color",
    "Contrast", "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize",
)  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True])
def test_vectors_that_torch_saves_are_read(legacy):
    arrays = {"image_emb": torch.randn(30, 1536), "text_emb": torch.randn(6, 1536)}
    tensors = {name: tensor.bfloat16() for name, tensor in arrays.items()}
    file = io.BytesIO()
    torch.save(tensors, file, _use_new_zipfile_serialization=not legacy)
    found = _read_vectors(gzip.compress(file.getvalue()), "pth.gz")
    for name, tensor in tensors.items():
        assert found[name].dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(found[name].astype(np.float32), tensor.float().numpy())


@pytest.mark.parametrize("number", range(len(NAMES)))
def test_operations_are_torchvisions_to_the_pixel(number):
    autoaugment = pytest.importorskip("torchvision.transforms.autoaugment")
    space = autoaugment.RandAugment()._augmentation_space(31, (224, 224))
    assert set(space) == set(NAMES)
    rng = np.random.default_rng(number)
    coarse = PIL.Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8))
    image = coarse.resize((224, 224), PIL.Image.Resampling.BICUBIC)
    magnitudes, signed = space[NAMES[number]]
    for bin_ in (9,) if magnitudes.ndim == 0 else (0, 9, 17, 30):
        strength = float(magnitudes[bin_]) if magnitudes.ndim else 0.0
        for magnitude in {strength, -strength} if signed else {strength}:
            nearest = autoaugment.InterpolationMode.NEAREST
            theirs = autoaugment._apply_op(image, NAMES[number], magnitude, nearest, None)
            changes = read_crop([[0, 0, 9, 9], [[number, magnitude]]]).changes
            ours = apply_changes(np.asarray(image), changes)
            np.testing.assert_array_equal(ours, np.asarray(theirs), err_msg=f"{magnitude}")
