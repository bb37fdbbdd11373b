"""Images at their own aspect ratio: sizes, pixels and embeddings equal to transformers' SigLIP 2.

pip install torch transformers
python -m pytest tests/parity/test_naflex_live.py

Pixels are compared on Pillow, as without torchvision, of 30 photographs or, without scikit-image,
of fewer and of pieces of these.
"""

import numpy as np
import PIL.Image
import pytest

import flaxclip
from flaxclip.api import encode_text
from flaxclip.data.images.eval_transform import NativeTransform, preprocess
from flaxclip.data.images.native_size import cut_into_patches, native_grid
from flaxclip.interop.export import export
from flaxclip.models.inputs import CENTRED_MEAN, CENTRED_STD, ImageTransform
from tests.helpers.small_models import assert_same, with_tokenizer
from tests.parity.images import photographs, photographs_and_pieces
from tests.parity.open_clip_cases import random_tensors
from tests.parity.siglip_peer import TINY, their_config

torch = pytest.importorskip("torch", reason="torch is a peer, not a requirement")
transformers = pytest.importorskip("transformers", reason="transformers is a peer")

NATIVE = ImageTransform("native", "bilinear", "white", "down", mean=CENTRED_MEAN, std=CENTRED_STD)
PATCH = TINY["vision"]["patch_size"]
# Height and width in patches, at 128 patches and at 256: squares, 1:5, 5:1 and 1 x n.
SHAPES = [(11, 11), (16, 16), (5, 25), (25, 5), (1, 128), (128, 1), (1, 3), (9, 13)]
LENGTHS = (128, 256)


def test_sizes_of_ten_thousand_images():
    from transformers.models.siglip2 import image_processing_pil_siglip2 as theirs

    rng = np.random.default_rng(0)
    sizes = [*rng.integers(1, 5001, (10_000, 2)).tolist(), [1, 5000], [5000, 1], [1, 1]]
    for height, width in sizes:
        patch, most = int(rng.choice([14, 16, 32])), int(rng.integers(1, 1025))
        rows, columns = native_grid(height, width, patch, most)
        expected = theirs.get_image_size_for_max_num_patches(height, width, patch, most)
        assert (rows * patch, columns * patch) == expected, (height, width, patch, most)


@pytest.mark.parametrize("max_patches", [128, 256, 576])
def test_photographs_come_out_equal(max_patches):
    # Unless told to make images RGB, theirs cuts patches of four values a pixel from some.
    processor = transformers.Siglip2ImageProcessorPil(
        do_rescale=False, do_normalize=False, do_convert_rgb=True
    )
    images = photographs_and_pieces(30)
    assert len(images) >= 30
    for name, image in images:
        theirs = processor(image, max_num_patches=max_patches, return_tensors="np")
        pixels = preprocess(image, NativeTransform(16, max_patches, NATIVE))
        ours = cut_into_patches([pixels], 16, max_patches, rows=1)
        np.testing.assert_array_equal(ours.grid, theirs["spatial_shapes"], err_msg=name)
        np.testing.assert_array_equal(ours.patches, theirs["pixel_values"], err_msg=name)


def test_files_of_photographs_are_decoded_as_they_are():
    transform = NativeTransform(16, 256, NATIVE)
    for path in photographs():
        opened = preprocess(PIL.Image.open(path), transform)
        np.testing.assert_array_equal(preprocess(path.read_bytes(), transform), opened)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A directory that transformers wrote, and the model in it, which computes in float64."""
    folder = tmp_path_factory.mktemp("naflex")
    model = transformers.Siglip2Model(their_config(TINY, 2)).eval()
    tensors = random_tensors({name: tuple(x.shape) for name, x in model.state_dict().items()})
    model.load_state_dict({name: torch.tensor(x) for name, x in tensors.items()}, strict=True)
    model.save_pretrained(folder)
    transformers.Siglip2ImageProcessorPil(patch_size=PATCH).save_pretrained(folder)
    return folder, model.double()


def outputs_of(model, images, tokens, max_patches):
    processor = transformers.Siglip2ImageProcessorPil(patch_size=PATCH)
    inputs = processor(images, max_num_patches=max_patches, return_tensors="pt")
    inputs["pixel_values"] = inputs["pixel_values"].double()
    with torch.no_grad():
        return model(**inputs, input_ids=torch.tensor(tokens).long())


def images_of(shapes):
    rng = np.random.default_rng(2)
    return [
        PIL.Image.fromarray(rng.integers(0, 256, (PATCH * rows, PATCH * columns, 3), np.uint8))
        for rows, columns in shapes
    ]


@pytest.mark.parametrize("max_patches", LENGTHS)
def test_embeddings_and_logits_are_the_same(written, max_patches):
    folder, theirs = written
    ours = flaxclip.load(folder)
    images = images_of(SHAPES)
    text = TINY["text"]
    tokens = np.random.default_rng(3).integers(
        0, text["vocab_size"], (4, text["context_length"]), np.int32
    )
    expected = outputs_of(theirs, images, tokens, max_patches)
    zimg = np.asarray(ours.encode_image(images, max_patches=max_patches))
    ztxt = np.asarray(encode_text(ours.variables, tokens, ours.spec, ours.compute))
    np.testing.assert_allclose(zimg, expected.image_embeds.numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(ztxt, expected.text_embeds.numpy(), rtol=0, atol=1e-5)
    logits = ours.logit_scale * zimg @ ztxt.T + np.asarray(ours.params["logit_bias"])
    reference = expected.logits_per_image.numpy()
    np.testing.assert_allclose(logits, reference, rtol=0, atol=1e-5 * abs(reference).max())


def test_a_batch_holds_all_shapes_and_the_default_is_the_processors(written):
    folder, theirs = written
    ours = flaxclip.load(folder)
    assert ours.transform.max_patches == 256
    images = images_of(SHAPES)
    tokens = np.zeros((1, TINY["text"]["context_length"]), np.int32)
    expected = outputs_of(theirs, images, tokens, 256).image_embeds.numpy()
    np.testing.assert_allclose(ours.encode_image(images), expected, rtol=0, atol=1e-5)


def test_what_we_write_is_read_by_both(written, vocabulary, tmp_path):
    folder, theirs = written
    ours = flaxclip.load(folder, tokenizer=str(vocabulary))
    export(ours.spec, ours.variables, tmp_path / "out", "huggingface", overwrite=False)
    again = transformers.AutoModel.from_pretrained(tmp_path / "out")
    assert isinstance(again, transformers.Siglip2Model)
    for name, tensor in theirs.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name].double(), tensor, err_msg=name)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out", backend="pil")
    assert (processor.patch_size, processor.max_num_patches) == (PATCH, 256)
    mine = flaxclip.load(tmp_path / "out")
    assert mine.spec.preprocess == ours.spec.preprocess
    assert_same(mine, with_tokenizer(mine.spec, file=None), ours.variables)
