"""Files that open_clip writes, read by us, and ours, opened by open_clip.

pip install open_clip_torch torchvision
python -m pytest tests/parity/test_open_clip_live.py
"""

import copy
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import safetensors.numpy

import flaxclip
from flaxclip.api import CLIPModel
from flaxclip.interop.big_vision import big_vision_table
from flaxclip.interop.export import export
from flaxclip.interop.name_table import unflatten
from flaxclip.interop.open_clip.names import has_open_clip, open_clip_table
from flaxclip.interop.open_clip.write_config import open_clip_json
from flaxclip.interop.text_trunks.registry import HF_TRUNKS
from flaxclip.models.modified_resnet import ResNetConfig
from flaxclip.models.spec import ModelSpec
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.variants import VARIANTS
from tests.helpers.small_models import CLIP, GELU, with_tokenizer
from tests.parity.clip_cases import random_inputs
from tests.parity.images import photographs
from tests.parity.open_clip_cases import TEXT, random_tensors

torch = pytest.importorskip("torch", reason="torch is a peer, not a requirement")
open_clip = pytest.importorskip("open_clip", reason="open_clip is a peer, not a requirement")

from tests.parity.open_clip_model import (  # noqa: E402
    assert_same_outputs,
    outputs,
    their_model,
)

TEXT_CFG = dict(TEXT)
SIGLIP_TEXT = TEXT_CFG | {
    "no_causal_mask": True,
    "proj_bias": True,
    "pool_type": "last",
    "norm_kwargs": {"eps": 1e-6},
    "hf_tokenizer_name": "timm/ViT-B-32-SigLIP2-256",
    "tokenizer_kwargs": {"clean": "canonicalize"},
}
VIT = {
    "image_size": 24, "patch_size": 8, "width": 60, "layers": 3, "head_width": 15, "mlp_ratio": 2.5,
}  # fmt: skip
MODELS = {
    "vit": {"embed_dim": 28, "vision_cfg": VIT, "text_cfg": TEXT_CFG},
    "vit-quickgelu": {
        "embed_dim": 28, "vision_cfg": VIT, "text_cfg": TEXT_CFG, "quick_gelu": True,
    },
    "resnet": {
        "embed_dim": 28,
        "vision_cfg": {
            "image_size": 64, "width": 6, "layers": [2, 1, 3, 2], "patch_size": None,
        },
        "text_cfg": TEXT_CFG,
    },
    "bigG": {
        "embed_dim": 28,
        "vision_cfg": {
            "image_size": 28, "patch_size": 14, "width": 208, "layers": 2, "head_width": 104,
            "mlp_ratio": 4.9231,
        },
        "text_cfg": TEXT_CFG,
    },
    "siglip": {
        "embed_dim": 768,
        "vision_cfg": {
            "image_size": 256, "timm_model_name": "vit_base_patch32_siglip_256",
            "timm_model_pretrained": False, "timm_pool": "map", "timm_proj": "none",
        },
        "text_cfg": SIGLIP_TEXT,
        "custom_text": True,
        "init_logit_bias": -10,
    },
    "siglip2-text": {
        "embed_dim": 768,
        "vision_cfg": {
            "image_size": 256, "timm_model_name": "vit_base_patch32_siglip_256",
            "timm_model_pretrained": False, "timm_pool": "map", "timm_proj": "none",
        },
        "text_cfg": SIGLIP_TEXT | {"act_kwargs": {"approximate": "tanh"}},
        "custom_text": True,
        "init_logit_bias": -10,
    },
    "openvision": {
        "embed_dim": 28,
        "vision_cfg": {
            "image_size": 30, "patch_size": 14, "width": 208, "layers": 2, "head_width": 104,
            "mlp_ratio": 3.7362, "no_ln_pre": True, "pool_type": "avg",
            "final_ln_after_pool": True, "norm_kwargs": {"eps": 1e-6},
        },
        "text_cfg": TEXT_CFG | {
            "no_causal_mask": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6},
            "act_kwargs": {"approximate": "tanh"}, "hf_tokenizer_name": "bert-base-uncased",
            "tokenizer_kwargs": {"strip_sep_token": True},
        },
    },
    "siglip-i18n": {
        "embed_dim": 768,
        "vision_cfg": {
            "image_size": 256, "timm_model_name": "vit_base_patch32_siglip_256",
            "timm_model_pretrained": False, "timm_pool": "map", "timm_proj": "none",
        },
        "text_cfg": SIGLIP_TEXT | {
            "width": 768, "heads": 12, "proj_bias": False, "proj_type": "none",
        },
        "custom_text": True,
        "init_logit_bias": -10,
    },
}  # fmt: skip


def inputs_of(config):
    side = config["vision_cfg"]["image_size"]
    return random_inputs({"vision": {"image_size": side}, "text": TEXT}, 6)


@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
@pytest.mark.parametrize("name", MODELS)
def test_what_open_clip_wrote(name, file, tmp_path):
    config = MODELS[name]
    theirs = their_model(config)
    if file.endswith(".bin"):
        torch.save(theirs.state_dict(), tmp_path / file)
    else:
        tensors = {name: x.contiguous().numpy() for name, x in theirs.state_dict().items()}
        safetensors.numpy.save_file(tensors, tmp_path / file)
    preprocess = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    text = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
    (tmp_path / "open_clip_config.json").write_text(text)
    inputs = inputs_of(config)
    assert_same_outputs(flaxclip.load(tmp_path), *inputs, outputs(theirs, *inputs))


def test_a_training_checkpoint_of_open_clip(tmp_path):
    """As its training writes them: `module.` before every name, and the optimizer beside them."""
    model_config = open_clip.get_model_config("ViT-S-32")
    theirs = their_model(model_config)
    optimizer = torch.optim.AdamW(theirs.parameters())
    theirs.logit_scale.sum().backward()
    optimizer.step()
    state = {f"module.{name}": x for name, x in theirs.state_dict().items()}
    checkpoint = {"epoch": 1, "name": "run", "state_dict": state}
    torch.save(checkpoint | {"optimizer": optimizer.state_dict()}, tmp_path / "epoch_1.pt")
    model = flaxclip.load(tmp_path / "epoch_1.pt", model="ViT-S-32")
    inputs = random_inputs(
        {"vision": {"image_size": 224}, "text": TEXT | {"context_length": 77, "vocab_size": 49408}},
        2,
    )
    assert model.spec == VARIANTS["ViT-S-32"]
    assert_same_outputs(model, *inputs, outputs(theirs, *inputs))


RESNET = ModelSpec(
    dataclasses.replace(GELU.model, vision=ResNetConfig(64, 8, (1, 2, 1, 1))),
    dataclasses.replace(GELU.preprocess, resize="shortest", interpolation="bicubic"),
)
# An image tower that timm has, with a text tower that takes no memory.
SIGLIP2 = VARIANTS["ViT-B-32-SigLIP2-256"]
SIGLIP = SIGLIP2._replace(
    model=dataclasses.replace(
        SIGLIP2.model, text=TextConfig(12, 90, 32, 2, 2, 2.0, "gelu_tanh", 1e-6, "siglip")
    )
)


@pytest.mark.parametrize(
    "spec", [CLIP, GELU, RESNET], ids=["quick_gelu", "gelu-squash-heads", "resnet"]
)
def test_what_we_write_gives_the_same_in_open_clip(spec, tmp_path):
    # open_clip has one epsilon and one head width of its own for texts.
    text = dataclasses.replace(spec.model.text, heads=1)
    spec = spec._replace(model=dataclasses.replace(spec.model, text=text))
    ours = CLIPModel(spec, variables_of_trained(spec.model))
    export(spec, ours.variables, tmp_path / "out", "open_clip", overwrite=False)
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'out'}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'out'}")
    rng = np.random.default_rng(0)
    photographs = [
        PIL.Image.fromarray(rng.integers(0, 256, (90, 121, 3), np.uint8)) for _ in range(3)
    ]
    captions = ["a red circle", "a photo of a cat", "Two dogs, at the beach!"]
    images, tokens = ours.preprocess(photographs), ours.tokenize(captions)
    np.testing.assert_array_equal(tokens, tokenizer(captions).numpy())
    mean, std = np.array(spec.preprocess.mean), np.array(spec.preprocess.std)
    pixels = np.stack([preprocess(image).numpy() for image in photographs])
    expected = ((images / 255 - mean) / std).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(pixels, expected, rtol=0, atol=1e-6)
    assert_same_outputs(ours, images, tokens, outputs(theirs, images, tokens, mean, std))


def variables_of_trained(config):
    """Of a trained model's size: with those of `variables_of`, a ResNet's activations overflow."""
    table = open_clip_table(config)
    flat = table.to_ours(random_tensors(table.their_shapes()))
    return jax.tree.map(jnp.asarray, unflatten(dict(flat)))


def test_a_siglip_that_we_write_gives_the_same_in_open_clip(tmp_path):
    ours = CLIPModel(SIGLIP, variables_of_trained(SIGLIP.model))
    vocabulary = tmp_path / "tokenizer.json"
    vocabulary.write_text("{}")
    spec = with_tokenizer(SIGLIP, file=str(vocabulary))
    export(spec, ours.variables, tmp_path / "out", "open_clip", overwrite=False)
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'out'}")
    images, tokens = random_inputs(
        {"vision": {"image_size": 256}, "text": {"context_length": 12, "vocab_size": 90}}, 3
    )
    mean = std = np.full(3, 0.5)
    assert_same_outputs(ours, images, tokens, outputs(theirs, images, tokens, mean, std))
    for path in photographs()[:10]:
        image = PIL.Image.open(path).convert("RGB")
        expected = (ours.preprocess([image])[0] / 255 - mean) / std
        pixels = preprocess(image).numpy().transpose(1, 2, 0)
        np.testing.assert_allclose(pixels, expected, rtol=0, atol=1e-6)


def test_siglips_of_big_vision_are_converted_alike(tmp_path):
    table = big_vision_table(SIGLIP.model, stacked=False)
    tensors = random_tensors(table.their_shapes())
    np.savez(tmp_path / "siglip.npz", **{f"params/{name}": x for name, x in tensors.items()})
    ours = flaxclip.load(tmp_path / "siglip.npz")
    model_config = copy.deepcopy(MODELS["siglip2-text"])
    model_config["text_cfg"] |= {
        "context_length": 12, "vocab_size": 90, "width": 32, "layers": 2, "heads": 2,
        "mlp_ratio": 2,
    }  # fmt: skip
    theirs = their_model(model_config)
    open_clip.convert.load_big_vision_weights(theirs, str(tmp_path / "siglip.npz"))
    images, tokens = random_inputs(
        {"vision": {"image_size": 256}, "text": {"context_length": 12, "vocab_size": 90}}, 3
    )
    mean = std = np.full(3, 0.5)
    assert_same_outputs(ours, images, tokens, outputs(theirs, images, tokens, mean, std))


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, spec in VARIANTS.items()
        # Neither ours nor Long-CLIP's have a name there, NaFlex has one in open_clip 4; those of
        # transformers it gets from a hub.
        if has_open_clip(spec.model)
        and spec.preprocess.resize != "native"
        and not name.startswith(("ViT-tiny", "LongCLIP"))
        and spec.model.text.family not in HF_TRUNKS
    ],
)
def test_names_and_shapes_of_every_variant_are_open_clips(name):
    """Full-size models, without memory for their numbers."""
    config = open_clip.get_model_config(name)
    if name.startswith("openvision"):  # of a fork, whose configurations `test_openvision.py` has
        config = open_clip_json(VARIANTS[name])["model_cfg"]
    is_custom = config.pop("custom_text", False) or "SigLIP" in name
    kind = open_clip.model.CustomTextCLIP if is_custom else open_clip.model.CLIP
    with torch.device("meta"):
        theirs = kind(**config)
    shapes = {
        tensor: tuple(x.shape)
        for tensor, x in theirs.state_dict().items()
        if not tensor.endswith("num_batches_tracked")
    }
    assert open_clip_table(VARIANTS[name].model).their_shapes() == shapes
