"""Embeddings and logits equal to `transformers`' SiglipModel and Siglip2Model.

pip install torch transformers
python -m pytest tests/parity/test_siglip_live.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from flaxclip.models.clip import CLIP, CLIPConfig, abstract_variables
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.vision_transformer import ViTConfig
from tests.parity.clip_cases import pixel_values, random_inputs
from tests.parity.foreign_params import from_transformers_siglip
from tests.parity.open_clip_cases import SIGLIP, TEXT, random_tensors

torch = pytest.importorskip("torch", reason="torch is a peer, not a requirement")
transformers = pytest.importorskip("transformers", reason="transformers is a peer")

BATCH_SIZE = 6
# Widths, heads and context of ViT-SO400M-14-SigLIP; the odd one of the family.
SO400M = {
    "vision": {
        "image_size": 56,
        "patch_size": 14,
        "width": 1152,
        "layers": 1,
        "heads": 16,
        "mlp_ratio": 4304 / 1152,
    },
    "text": {
        "context_length": 16,
        "vocab_size": 500,
        "width": 1152,
        "layers": 1,
        "heads": 16,
        "mlp_ratio": 4304 / 1152,
    },
}
TINY = {"vision": SIGLIP | {"image_size": 28}, "text": TEXT}


def their_config(case, version):
    def tower(sizes):
        return {
            "hidden_size": sizes["width"],
            "intermediate_size": round(sizes["width"] * sizes["mlp_ratio"]),
            "num_hidden_layers": sizes["layers"],
            "num_attention_heads": sizes["heads"],
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
        }

    vision, text = case["vision"], case["text"]
    grid = vision["image_size"] // vision["patch_size"]
    image = {"num_patches": grid**2} if version == 2 else {"image_size": vision["image_size"]}
    kind = transformers.SiglipConfig if version == 1 else transformers.Siglip2Config
    return kind(
        vision_config=tower(vision) | image | {"patch_size": vision["patch_size"]},
        text_config=tower(text)
        | {
            "max_position_embeddings": text["context_length"],
            "vocab_size": text["vocab_size"],
            "projection_size": vision["width"],
        },
    )


def call_theirs(model, version, case, images, tokens):
    pixels = torch.tensor(pixel_values(images)).double()
    inputs = {"input_ids": torch.tensor(tokens).long(), "pixel_values": pixels}
    if version == 2:
        # A fixed resolution: every image has all patches.
        p = case["vision"]["patch_size"]
        grid = case["vision"]["image_size"] // p
        patches = rearrange(pixels, "b c (h p) (w q) -> b (h w) (p q c)", p=p, q=p)
        inputs |= {
            "pixel_values": patches,
            "spatial_shapes": torch.tensor([[grid, grid]] * len(images)),
            "pixel_attention_mask": torch.ones(patches.shape[:2], dtype=torch.int64),
        }
    with torch.no_grad():
        return model(**inputs)


@pytest.mark.parametrize("case", [TINY, SO400M], ids=["tiny", "SO400M-width"])
@pytest.mark.parametrize("version", [1, 2])
def test_embeddings_and_logits_are_the_same(version, case):
    # Theirs computes in float64: a difference is our rounding, or a mistake, and not theirs.
    kind = transformers.SiglipModel if version == 1 else transformers.Siglip2Model
    theirs = kind(their_config(case, version)).double().eval()
    shapes = {name: tuple(x.shape) for name, x in theirs.state_dict().items()}
    tensors = random_tensors(shapes)
    theirs.load_state_dict({name: torch.tensor(x) for name, x in tensors.items()}, strict=True)

    traits = {"activation": "gelu_tanh", "norm_eps": 1e-6}
    config = CLIPConfig(
        vision=ViTConfig(**case["vision"], **traits, family="siglip"),
        text=TextConfig(**case["text"], **traits, family="siglip"),
        embed_dim=case["vision"]["width"],
        init_logit_bias=-10.0,
    )
    variables = jax.tree.map(jnp.asarray, from_transformers_siglip(tensors, config))
    fresh = abstract_variables(config)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, fresh)

    images, tokens = random_inputs(case, BATCH_SIZE)
    expected = call_theirs(theirs, version, case, images, tokens)
    zimg, ztxt, logit_scale = jax.jit(CLIP(config).apply)(
        variables, jnp.asarray(images), jnp.asarray(tokens)
    )
    np.testing.assert_allclose(zimg, expected.image_embeds.numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(ztxt, expected.text_embeds.numpy(), rtol=0, atol=1e-5)
    logits = np.exp(logit_scale) * np.asarray(zimg) @ np.asarray(ztxt).T
    logits = logits + variables["params"]["logit_bias"]
    reference = expected.logits_per_image.numpy()
    np.testing.assert_allclose(logits, reference, rtol=0, atol=1e-5 * abs(reference).max())
