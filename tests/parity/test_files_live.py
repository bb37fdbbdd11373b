"""Files that transformers and torch write, read by us, and ours, read by transformers.

pip install torch transformers safetensors sentencepiece protobuf
python -m pytest tests/parity/test_files_live.py
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

import flaxclip
from flaxclip.api import CLIPModel, encode_image, encode_text
from flaxclip.interop.export import export
from flaxclip.interop.open_clip import open_clip_table
from tests.parity.clip_cases import TINY as CLIP_CASE
from tests.parity.clip_cases import huggingface_config, pixel_values, random_inputs
from tests.parity.open_clip_cases import random_tensors
from tests.parity.pictures import photographs
from tests.parity.test_siglip_live import SO400M, call_theirs, their_config
from tests.parity.test_siglip_live import TINY as SIGLIP_CASE
from tests.test_interop import (
    CLIP,
    RESNET,
    SIGLIP,
    SIGLIP2,
    as_transformers,
    variables_of,
    vocabulary,
)

torch = pytest.importorskip("torch", reason="torch is a peer, not a requirement")
transformers = pytest.importorskip("transformers", reason="transformers is a peer")

__all__ = ["vocabulary"]
BATCH_SIZE = 6


def randomised(model):
    """`model` with weights as large as a trained model's."""
    shapes = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    tensors = {name: torch.tensor(x) for name, x in random_tensors(shapes).items()}
    model.load_state_dict(tensors, strict=True)
    return model


def assert_same_outputs(model, images, tokens, zimg, ztxt, logits):
    """Embeddings and logits equal to 1e-5, relative to unit length and to the largest logit."""
    ours_img = np.asarray(encode_image(model.variables, jnp.asarray(images), model.config))
    ours_txt = np.asarray(encode_text(model.variables, jnp.asarray(tokens), model.config))
    np.testing.assert_allclose(ours_img, zimg, rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours_txt, ztxt, rtol=0, atol=1e-5)
    bias = float(model.params.get("logit_bias", 0.0))
    ours = np.exp(float(model.params["logit_scale"])) * ours_img @ ours_txt.T + bias
    np.testing.assert_allclose(ours, logits, rtol=0, atol=1e-5 * abs(logits).max())


def clip_outputs(model, images, tokens):
    with torch.no_grad():
        out = model.double().eval()(
            input_ids=torch.tensor(tokens).long(),
            pixel_values=torch.tensor(pixel_values(images)).double(),
        )
    return out.image_embeds.numpy(), out.text_embeds.numpy(), out.logits_per_image.numpy()


def siglip_outputs(model, version, case, images, tokens):
    with torch.no_grad():
        out = call_theirs(model.double().eval(), version, case, images, tokens)
    return out.image_embeds.numpy(), out.text_embeds.numpy(), out.logits_per_image.numpy()


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("saved", ["safetensors", "shards", "bin"])
def test_a_clip_that_transformers_wrote(activation, saved, tmp_path):
    config = transformers.CLIPConfig(**huggingface_config(CLIP_CASE, activation))
    theirs = randomised(transformers.CLIPModel(config))
    size = "50KB" if saved == "shards" else "5GB"
    theirs.save_pretrained(tmp_path, max_shard_size=size)
    if saved == "bin":
        torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    side = CLIP_CASE["vision"]["image_size"]
    processor(transformers.CLIPImageProcessorPil, side).save_pretrained(tmp_path)
    inputs = random_inputs(CLIP_CASE, BATCH_SIZE)
    model = flaxclip.load(tmp_path)
    assert model.config.vision.activation == activation
    assert_same_outputs(model, *inputs, *clip_outputs(theirs, *inputs))


def processor(kind, side):
    if kind is transformers.CLIPImageProcessorPil:
        return kind(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    return kind(
        size={"height": side, "width": side},
        # What `pixel_values` does to the pictures of these tests.
        image_mean=transformers.CLIPImageProcessorPil.image_mean,
        image_std=transformers.CLIPImageProcessorPil.image_std,
    )


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("case", [SIGLIP_CASE, SO400M], ids=["tiny", "SO400M-width"])
def test_a_siglip_that_transformers_wrote(version, case, tmp_path):
    kind = transformers.SiglipModel if version == 1 else transformers.Siglip2Model
    theirs = randomised(kind(their_config(case, version)))
    theirs.save_pretrained(tmp_path)
    side = case["vision"]["image_size"]
    processor(transformers.SiglipImageProcessorPil, side).save_pretrained(tmp_path)
    inputs = random_inputs(case, BATCH_SIZE)
    outputs = siglip_outputs(theirs, version, case, *inputs)
    assert_same_outputs(flaxclip.load(tmp_path), *inputs, *outputs)


@pytest.mark.parametrize("config", [CLIP, SIGLIP, SIGLIP2], ids=["clip", "siglip", "siglip2"])
def test_what_we_write_gives_the_same_logits_in_transformers(config, vocabulary, tmp_path):
    if config.tokenizer != "clip":
        config = dataclasses.replace(config, tokenizer_file=vocabulary)
    ours = CLIPModel(config, variables_of(config))
    export(config, ours.variables, tmp_path / "out", "huggingface", overwrite=False)
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "out").double().eval()
    rng = np.random.default_rng(0)
    pictures = [PIL.Image.fromarray(rng.integers(0, 256, (30, 41, 3), np.uint8)) for _ in range(3)]
    captions = ["a red circle", "a photo of a cat", "two dogs at the beach"]
    images, tokens = ours.preprocess(pictures), ours.tokenize(captions)

    image_processor = transformers.AutoImageProcessor.from_pretrained(
        tmp_path / "out", backend="pil"
    )
    pixels = image_processor(pictures, return_tensors="np")["pixel_values"]
    mean, std = np.array(config.image_mean), np.array(config.image_std)
    expected = ((images / 255 - mean) / std).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(pixels, expected, rtol=0, atol=1e-6)
    with torch.no_grad():
        out = theirs(
            input_ids=torch.tensor(tokens).long(), pixel_values=torch.tensor(pixels).double()
        )
    assert_same_outputs(
        ours, images, tokens, out.image_embeds.numpy(), out.text_embeds.numpy(),
        out.logits_per_image.numpy(),
    )  # fmt: skip


TEXTS = [
    "a photo of a cat", "A Photo, of a CAT!", "two   dogs\tat the beach", "", "it's 3.14 o'clock",
    " World_wide", "fish &amp; chips <|endoftext|>",
    "naïve café — façade", "a very " * 40 + "long caption",
]  # fmt: skip


def test_the_tokenizer_that_we_write_gives_the_same_ids_in_transformers(tmp_path):
    export(CLIP, variables_of(CLIP), tmp_path / "out", "huggingface", overwrite=False)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    length = CLIP.text.context_length
    ids = theirs(TEXTS, padding="max_length", truncation=True, max_length=length)["input_ids"]
    ours = CLIPModel(as_transformers(CLIP), {}).tokenize(TEXTS)
    for mine, other in zip(ours, np.array(ids), strict=True):
        end = np.argmax(mine) + 1
        np.testing.assert_array_equal(mine[:end], other[:end])


def test_siglips_tokens_are_those_of_transformers(vocabulary, tmp_path):
    theirs = transformers.SiglipTokenizer(vocabulary)
    config = dataclasses.replace(as_transformers(SIGLIP), tokenizer_file=vocabulary)
    ours = CLIPModel(config, {}).tokenize(TEXTS)
    length = config.text.context_length
    ids = theirs(TEXTS, padding="max_length", truncation=True, max_length=length)["input_ids"]
    np.testing.assert_array_equal(ours, ids)
    export(config, variables_of(config), tmp_path / "out", "huggingface", overwrite=False)
    written = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = written(TEXTS, padding="max_length", truncation=True, max_length=length)["input_ids"]
    np.testing.assert_array_equal(ours, ids)


class Module(torch.nn.Module):
    """A tree of modules with the names of a state dict, for TorchScript."""

    def __init__(self, tensors):
        super().__init__()
        children = {}
        for name, tensor in tensors.items():
            first, _, rest = name.partition(".")
            if rest:
                children.setdefault(first, {})[rest] = tensor
            else:
                self.register_buffer(first, torch.tensor(tensor))
        for name, child in children.items():
            self.add_module(name, Module(child))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize("config", [CLIP, RESNET], ids=["ViT", "ResNet"])
def test_torchscript_archives_as_openai_published_them(config, tmp_path):
    variables = variables_of(config)
    tensors = open_clip_table(config).to_theirs(variables)
    sizes = {
        "input_resolution": np.array(config.vision.image_size),
        "context_length": np.array(config.text.context_length),
        "vocab_size": np.array(config.text.vocab_size),
    }
    half = {name: x.astype(np.float16) for name, x in tensors.items()}
    torch.jit.script(Module(half | sizes)).save(tmp_path / "model.pt")
    model = flaxclip.load(tmp_path / "model.pt")
    assert model.config == config
    back = open_clip_table(config).to_theirs(model.variables)
    for name, tensor in half.items():
        np.testing.assert_array_equal(back[name], tensor.astype(np.float32))


def prepared(kind, config, picture):
    """A picture at 224 pixels, by us and by transformers."""
    vision = dataclasses.replace(config.vision, image_size=224)
    ours = CLIPModel(dataclasses.replace(config, vision=vision), {}).preprocess([picture])[0]
    theirs = kind(do_rescale=False, do_normalize=False)(picture, return_tensors="np")
    return ours, theirs["pixel_values"][0].transpose(1, 2, 0)


@pytest.fixture(scope="module")
def pictures():
    paths = photographs()
    if len(paths) < 30:
        pytest.skip(f"only {len(paths)} pictures: scikit-image and scikit-learn are not installed")
    return {path.name: PIL.Image.open(path).convert("RGB") for path in paths}


def test_photographs_for_siglip_are_prepared_as_transformers_does(pictures):
    for name, picture in pictures.items():
        ours, theirs = prepared(transformers.SiglipImageProcessorPil, SIGLIP, picture)
        np.testing.assert_array_equal(ours, theirs, err_msg=name)


def test_photographs_for_clip_are_prepared_as_transformers_does_but_for_its_rounding(pictures):
    """Half of an odd margin is rounded to even by OpenAI's transform, down by transformers'."""
    compared = 0
    for name, picture in pictures.items():
        resized = 224 * max(picture.size) // min(picture.size)
        if resized % 4 != 3:
            ours, theirs = prepared(transformers.CLIPImageProcessorPil, CLIP, picture)
            np.testing.assert_array_equal(ours, theirs, err_msg=name)
            compared += 1
    assert compared >= 20
