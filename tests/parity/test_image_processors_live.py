"""Pixels equal to those of transformers' image processors, set up from our reading of their files.

pip install transformers
python -m pytest tests/parity/test_image_processors_live.py

On Pillow, as without torchvision; more photographs with scikit-image and scikit-learn.
"""

import io
import json

import numpy as np
import PIL.Image
import pytest

from flaxclip.data.images.eval_transform import SizedTransform, preprocess
from flaxclip.interop.huggingface.read_config import read_config
from tests.parity.images import kinds_of_file, photographs

transformers = pytest.importorskip("transformers", reason="transformers is a peer")

SIZE = 64
KINDS = kinds_of_file()


@pytest.fixture(scope="module", params=["clip", "siglip", "siglip squashed by clip's"])
def processor(request):
    square = {"height": SIZE, "width": SIZE}
    if request.param == "clip":
        return transformers.CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=square)
    if request.param == "siglip":
        return transformers.SiglipImageProcessorPil(size=square, resample=2)
    return transformers.CLIPImageProcessorPil(size=square, crop_size=square)


@pytest.fixture(scope="module", params=["preprocessor_config.json", "processor_config.json"])
def transform(request, processor, tmp_path_factory) -> SizedTransform:
    folder = tmp_path_factory.mktemp("saved")
    processor.save_pretrained(folder)
    if request.param == "processor_config.json":
        saved = (folder / "preprocessor_config.json").rename(folder / "alone.json")
        values = {"image_processor": json.loads(saved.read_text())}
        (folder / request.param).write_text(json.dumps(values))
    config = {"model_type": "clip", "vision_config": {"image_size": SIZE}}
    (folder / "config.json").write_text(json.dumps(config))
    return SizedTransform(SIZE, read_config(folder)[0].preprocess)


def by_transformers(processor, image: PIL.Image.Image) -> np.ndarray:
    batch = processor(image, do_rescale=False, do_normalize=False, return_tensors="np")
    return batch["pixel_values"][0].transpose(1, 2, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_comes_out_equal(kind, processor, transform):
    theirs = by_transformers(processor, PIL.Image.open(io.BytesIO(KINDS[kind])))
    np.testing.assert_array_equal(preprocess(KINDS[kind], transform), theirs)


def test_every_margin_is_cropped_as_they_do(processor, transform):
    rng = np.random.default_rng(2)
    for margin in range(9):
        for shape in ((SIZE, SIZE + margin, 3), (SIZE + margin, SIZE, 3), (97, 97 + margin, 3)):
            pixels = rng.integers(0, 256, shape, dtype=np.uint8)
            theirs = by_transformers(processor, PIL.Image.fromarray(pixels))
            np.testing.assert_array_equal(preprocess(pixels, transform), theirs, err_msg=shape)


def test_photographs_come_out_equal(processor, transform):
    paths = photographs()
    assert paths
    for path in paths:
        theirs = by_transformers(processor, PIL.Image.open(path))
        ours = preprocess(path.read_bytes(), transform)
        np.testing.assert_array_equal(ours, theirs, err_msg=path.name)
