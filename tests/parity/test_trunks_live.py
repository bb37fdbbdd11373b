"""open_clip's models with image towers of timm, read by us, and ours, opened by open_clip.

pip install open_clip_torch torchvision
python -m pytest tests/parity/test_trunks_live.py
"""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import safetensors.numpy

import flaxclip
from flaxclip.api import CLIPModel, encode_image
from flaxclip.interop.export import export
from flaxclip.interop.name_table import unflatten
from flaxclip.interop.open_clip.names import open_clip_table
from flaxclip.interop.trunks.registry import tower_as_stored
from flaxclip.models.spec import ModelSpec
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.variants import VARIANTS
from flaxclip.run.initial_weights import resample_position_embedding
from tests.helpers.trunk_configs import CONFIGS
from tests.parity.clip_cases import pixel_values, random_inputs
from tests.parity.images import photographs
from tests.parity.open_clip_cases import random_tensors
from tests.parity.trunk_cases import BATCH_SIZE, TEXT

torch = pytest.importorskip("torch", reason="torch is a peer, not a requirement")
open_clip = pytest.importorskip("open_clip", reason="open_clip is a peer, not a requirement")

import timm.utils  # noqa: E402

from tests.parity.open_clip_model import assert_same_outputs, outputs, their_model  # noqa: E402
from tests.parity.trunk_peer import embeddings, make_peer  # noqa: E402

GOLDEN = Path(__file__).parents[1] / "golden"
# The smallest of each family that open_clip takes from timm by name.
NAMES = [
    "PE-Core-T-16-384", "EVA02-B-16", "convnext_tiny", "MobileCLIP2-S0", "MobileCLIP-B",
    "ViTamin-S",
]  # fmt: skip
# At 0.1, torch's own float32 is 2.5e-5 of the largest logit off its float64 in MobileCLIP2-S0.
LAYER_SCALE = 0.03


@pytest.mark.parametrize("name", CONFIGS)
def test_small_towers_of_every_family(name):
    peer, config = make_peer(name), CONFIGS[name]
    tensors = random_tensors({tensor: tuple(x.shape) for tensor, x in peer.state_dict().items()})
    side = {"image_size": config.vision.image_size}
    images, tokens = random_inputs({"vision": side, "text": TEXT}, BATCH_SIZE, seed=1)
    with torch.no_grad():
        zimg, ztxt = (z.numpy() for z in embeddings(peer, pixel_values(images), tokens))
    shapes = {tensor: x.shape for tensor, x in tensors.items()}
    table = open_clip_table(config, shapes)
    variables = jax.tree.map(jnp.asarray, unflatten(dict(table.to_ours(tensors))))
    ours = CLIPModel(ModelSpec(config), variables)
    logits = np.exp(float(tensors["logit_scale"])) * zimg @ ztxt.T
    assert_same_outputs(ours, images, tokens, (zimg, ztxt, logits))


@pytest.mark.parametrize("name", ["fastvit", "fastvit_large"])
def test_branches_that_timm_has_merged(name):
    peer, config = make_peer(name), CONFIGS[name]
    images, tokens = random_inputs(
        {"vision": {"image_size": config.vision.image_size}, "text": TEXT}, 2
    )
    timm.utils.reparameterize_model(peer.visual, inplace=True)
    peer = peer.double()
    with torch.no_grad():
        zimg, _ = embeddings(peer, pixel_values(images), tokens)
    tensors = {tensor: x.float().numpy() for tensor, x in peer.state_dict().items()}
    shapes = {tensor: x.shape for tensor, x in tensors.items()}
    vision = tower_as_stored(config.vision, shapes)
    assert vision.merged
    config = dataclasses.replace(config, vision=vision)
    flat = dict(open_clip_table(config, shapes).to_ours(tensors))
    ours = encode_image(jax.tree.map(jnp.asarray, unflatten(flat)), images, ModelSpec(config))
    np.testing.assert_allclose(ours, zimg.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["pe", "pe_patches", "eva02"])
def test_another_resolution_is_that_of_timm(name):
    """Learned positions are resampled; rotary ones are spread over the grid of training."""
    peer, old = make_peer(name), CONFIGS[name]
    tensors = random_tensors({tensor: tuple(x.shape) for tensor, x in peer.state_dict().items()})
    size = old.vision.image_size + 2 * old.vision.patch_size
    peer.visual.trunk.set_input_size((size, size))
    new = dataclasses.replace(old, vision=dataclasses.replace(old.vision, image_size=size))
    images, tokens = random_inputs({"vision": {"image_size": size}, "text": TEXT}, 2)
    with torch.no_grad():
        zimg, _ = embeddings(peer, pixel_values(images), tokens)
    table = open_clip_table(old, {tensor: x.shape for tensor, x in tensors.items()})
    flat = {
        path: resample_position_embedding(path.removeprefix("params/"), value, old, new)
        for path, value in table.to_ours(tensors)
    }
    ours = encode_image(jax.tree.map(jnp.asarray, unflatten(flat)), images, ModelSpec(new))
    np.testing.assert_allclose(ours, zimg.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_what_open_clip_wrote(name, tmp_path):
    config = open_clip.get_model_config(name)
    mask = {"no_causal_mask": config["text_cfg"].get("no_causal_mask", False)}
    config["text_cfg"] = TEXT | mask
    theirs = their_model(config, layer_scale=LAYER_SCALE)
    tensors = {tensor: x.contiguous().numpy() for tensor, x in theirs.state_dict().items()}
    safetensors.numpy.save_file(tensors, tmp_path / "open_clip_model.safetensors")
    preprocess = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    text = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
    (tmp_path / "open_clip_config.json").write_text(text)
    side = config["vision_cfg"]["image_size"]
    inputs = random_inputs({"vision": {"image_size": side}, "text": TEXT}, 2)
    model = flaxclip.load(tmp_path)
    assert model.config.vision == VARIANTS[name].model.vision
    assert_same_outputs(model, *inputs, outputs(theirs, *inputs))


def variables_of_trained(config):
    table = open_clip_table(config)
    flat = dict(table.to_ours(random_tensors(table.their_shapes(), LAYER_SCALE)))
    return jax.tree.map(jnp.asarray, unflatten(flat))


def assert_the_same_in_open_clip(spec, folder, captions):
    """What we write of `spec`: embeddings, ids and, of 30 photographs, pixels."""
    ours = CLIPModel(spec, variables_of_trained(spec.model))
    export(spec, ours.variables, folder, "open_clip", overwrite=False)
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    tokens = ours.tokenize(captions)
    np.testing.assert_array_equal(tokens, tokenizer(captions).numpy())
    mean, std = np.array(spec.preprocess.mean), np.array(spec.preprocess.std)
    images = []
    for path in photographs()[:30]:
        image = PIL.Image.open(path).convert("RGB")
        images.append(ours.preprocess([image])[0])
        pixels = preprocess(image).numpy().transpose(1, 2, 0)
        np.testing.assert_allclose(pixels, (images[-1] / 255 - mean) / std, rtol=0, atol=1e-6)
    images = np.stack(images[:2])
    assert_same_outputs(ours, images, tokens, outputs(theirs, images, tokens, mean, std))
    again = flaxclip.load(folder)
    assert again.config == spec.model
    assert again.spec.preprocess == spec.preprocess
    np.testing.assert_array_equal(again.tokenize(captions), tokens)


CAPTIONS = ["a red circle", "Two dogs, at the beach!"]


@pytest.mark.parametrize("name", NAMES)
def test_what_we_write_gives_the_same_in_open_clip(name, tmp_path):
    spec = VARIANTS[name]
    text = TextConfig(12, 49408, 64, 1, 1, 2.0, "gelu", family=spec.model.text.family)
    spec = spec._replace(model=dataclasses.replace(spec.model, text=text))
    assert_the_same_in_open_clip(spec, tmp_path / "out", CAPTIONS)


def test_a_clipa_that_we_write_gives_the_same_in_open_clip(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = CONFIGS["clipa"]
    text = dataclasses.replace(model.text, vocab_size=400)
    tokenizer = dataclasses.replace(
        VARIANTS["ViT-L-14-CLIPA"].tokenizer, file=str(GOLDEN / "bert_uncased" / "vocab.txt")
    )
    spec = VARIANTS["ViT-L-14-CLIPA"]._replace(
        model=dataclasses.replace(model, text=text), tokenizer=tokenizer
    )
    captions = [*CAPTIONS, "a very long caption of a cat " * 3, "Café [SEP] &amp; 猫"]
    assert_the_same_in_open_clip(spec, tmp_path / "out", captions)
