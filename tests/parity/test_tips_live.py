"""TIPSv2 with random weights: transformers' embeddings, logits, pixels and tokens, both ways.

pip install transformers torch torchvision sentencepiece
python -m pytest tests/parity/test_tips_live.py
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import safetensors.numpy

import flaxclip
from flaxclip.api import CLIPModel
from flaxclip.data.tokenizers.load import load_tokenizer
from flaxclip.interop.export import export
from flaxclip.interop.huggingface.tips import as_theirs, tips_json, tips_table
from flaxclip.interop.name_table import unflatten
from flaxclip.models.cost import model_cost
from flaxclip.models.inputs import TokenizerConfig
from flaxclip.models.variants import VARIANTS
from tests.helpers import multilingual
from tests.parity.images import photographs
from tests.parity.open_clip_cases import random_tensors

torch = pytest.importorskip("torch", reason="torch is a peer, not a requirement")
transformers = pytest.importorskip("transformers", reason="transformers is a peer")
pytest.importorskip("google.protobuf", reason="transformers reads SentencePiece models by it")
if not hasattr(transformers, "Tipsv2Model"):
    pytest.skip("transformers has no TIPSv2", allow_module_level=True)

NAMES = [name for name in VARIANTS if name.startswith("TIPSv2")]
CAPTIONS = ["a photo of a cat", "Две собаки", "A CAT " * 20, "x"]


def small(family, file):
    spec = VARIANTS["TIPSv2-B-14"]
    config = spec.model
    sizes = {"width": 32, "layers": 2, "heads": 4}
    return spec._replace(
        model=dataclasses.replace(
            config,
            vision=dataclasses.replace(
                config.vision, **sizes, image_size=42, family=family, mlp_ratio=2.75
            ),
            text=dataclasses.replace(config.text, **sizes, vocab_size=700, context_length=16),
            embed_dim=32,
        ),
        tokenizer=TokenizerConfig("tips", str(file)),
    )


def variables_of(config):
    table = tips_table(config)
    tensors = random_tensors(table.their_shapes())
    return jax.tree.map(jnp.asarray, unflatten(dict(table.to_ours(tensors))))


def assert_same(ours, theirs, tokens):
    """Embeddings and logits; the images are random."""
    side = ours.config.vision.image_size
    images = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), np.uint8)
    with torch.no_grad():
        out = theirs.double()(
            pixel_values=torch.tensor(images / 255).permute(0, 3, 1, 2).double(),
            input_ids=torch.tensor(np.asarray(tokens)).long(),
            attention_mask=torch.tensor(np.asarray(tokens) != 0).long(),
        )
    zimg = np.asarray(flaxclip.api.encode_image(ours.variables, jnp.asarray(images), ours.spec))
    ztxt = np.asarray(flaxclip.api.encode_text(ours.variables, jnp.asarray(tokens), ours.spec))
    np.testing.assert_allclose(zimg, out.image_embeds.numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(ztxt, out.text_embeds.numpy(), rtol=0, atol=1e-5)
    logits = np.exp(float(ours.params["logit_scale"])) * zimg @ ztxt.T
    expected = out.logits_per_image.numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize("family", ["tips", "tips_gated"])
def test_what_we_write_and_transformers_writes_again(family, tmp_path):
    spec = small(family, multilingual.write_tips(tmp_path))
    ours, folder = CLIPModel(spec, variables_of(spec.model)), tmp_path / "out"
    differences = export(spec, ours.variables, folder, "huggingface", overwrite=False)
    assert differences == [] or "transparent" in differences[0]
    theirs, problems = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    assert type(theirs).__name__ == "Tipsv2Model"
    assert not problems["missing_keys"]
    assert not problems["unexpected_keys"]
    tokens = ours.tokenize(CAPTIONS)
    assert_same(ours, theirs, tokens)
    theirs.float().save_pretrained(folder)
    saved = safetensors.numpy.load_file(folder / "model.safetensors")
    shapes = {name: x.shape for name, x in saved.items()}
    zeros = {name: np.zeros(shape) for name, shape in tips_table(spec.model).their_shapes().items()}
    assert shapes == {name: x.shape for name, x in as_theirs(zeros).items()}
    again = flaxclip.load(folder)
    assert dataclasses.replace(again.config, init_logit_scale=spec.model.init_logit_scale) == (
        spec.model
    )
    assert_same(again, theirs, tokens)


def test_the_processor_of_what_we_write(tmp_path):
    """Tokens are equal, and pixels to a level of 255: torchvision resizes tensors."""
    pytest.importorskip("torchvision", reason="torchvision is a peer, not a requirement")
    spec = small("tips", multilingual.write_tips(tmp_path))
    ours, folder = CLIPModel(spec, variables_of(spec.model)), tmp_path / "out"
    export(spec, ours.variables, folder, "huggingface", overwrite=False)
    processor = transformers.AutoProcessor.from_pretrained(folder)
    assert type(processor).__name__ == "Tipsv2Processor"
    padded = processor.tokenizer(
        CAPTIONS, padding="max_length", truncation=True, max_length=16, return_tensors="np"
    )
    again = flaxclip.load(folder)
    np.testing.assert_array_equal(again.tokenize(CAPTIONS), padded["input_ids"])
    for path in photographs():
        image = PIL.Image.open(path).convert("RGB")
        pixels = processor.image_processor(image, return_tensors="np")["pixel_values"][0]
        ours_pixels = again.preprocess([image])[0] / 255
        assert abs(ours_pixels.transpose(2, 0, 1) - pixels).max() < 1.001 / 255, path


@pytest.mark.parametrize("name", NAMES)
def test_parameters_of_all_sizes(name):
    spec = VARIANTS[name]
    written = tips_json(spec)
    config = transformers.Tipsv2Config(
        text_config=written["text_config"], vision_config=written["vision_config"]
    )
    with torch.device("meta"):
        theirs = transformers.Tipsv2Model(config)
    mask_token = spec.model.vision.width
    count = sum(x.numel() for x in theirs.parameters())
    assert count == model_cost(spec.model).parameters + mask_token


def test_ids_of_captions_in_many_languages(tmp_path):
    file = multilingual.write_tips(tmp_path)
    multilingual.write_settings(tmp_path, "Tipsv2Tokenizer", eos_token=None)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert type(theirs).__name__ == "Tipsv2Tokenizer"
    expected = theirs(
        multilingual.CAPTIONS, max_length=40, padding="max_length", truncation=True,
        return_tensors="np",
    ).input_ids  # fmt: skip
    ours = load_tokenizer(TokenizerConfig("tips", str(file)), 40)(multilingual.CAPTIONS)
    different = [
        t for t, a, b in zip(multilingual.CAPTIONS, ours, expected, strict=True)
        if list(a) != list(b)
    ]  # fmt: skip
    assert not different, (len(different), different[:5])
