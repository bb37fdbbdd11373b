"""Embeddings and logits equal to `transformers`' SiglipModel and Siglip2Model.

pip install torch transformers
python -m pytest tests/parity/test_siglip_live.py
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxclip.interop.huggingface.names import has_huggingface, huggingface_table
from flaxclip.interop.huggingface.write_config import huggingface_json
from flaxclip.models.clip import CLIP, CLIPConfig, abstract_variables
from flaxclip.models.cost import model_cost
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.variants import VARIANTS
from flaxclip.models.vision_transformer import ViTConfig
from tests.parity.clip_cases import random_inputs
from tests.parity.foreign_params import from_transformers_siglip
from tests.parity.open_clip_cases import random_tensors
from tests.parity.siglip_peer import SO400M, TINY, call_theirs, their_config

torch = pytest.importorskip("torch", reason="torch is a peer, not a requirement")
transformers = pytest.importorskip("transformers", reason="transformers is a peer")

BATCH_SIZE = 6


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


def their_whole_model(spec):
    """transformers' class for `spec` without memory for its numbers."""
    config = huggingface_json(spec)
    kind = {"siglip": transformers.SiglipModel, "siglip2": transformers.Siglip2Model}
    config_class = {"siglip": transformers.SiglipConfig, "siglip2": transformers.Siglip2Config}
    name = config["model_type"]
    their = config_class[name](
        text_config=config["text_config"], vision_config=config["vision_config"]
    )
    with torch.device("meta"):
        return kind[name](their)


@pytest.mark.parametrize("native", [False, True], ids=["square", "naflex"])
@pytest.mark.parametrize(
    "name",
    [
        name
        for name, spec in VARIANTS.items()
        if "SigLIP" in name and has_huggingface(spec.model) and not name.endswith("naflex")
    ],
)
def test_names_and_shapes_of_every_size_and_resolution(name, native):
    spec = VARIANTS[name]
    if native:
        if "SigLIP2" not in name:
            pytest.skip("only SigLIP 2 has images at their own aspect ratio")
        spec = spec._replace(preprocess=dataclasses.replace(spec.preprocess, resize="native"))
    theirs = their_whole_model(spec)
    shapes = {name: tuple(x.shape) for name, x in theirs.state_dict().items()}
    assert huggingface_table(spec.model, native).their_shapes() == shapes
    assert sum(x.numel() for x in theirs.parameters()) == model_cost(spec.model).parameters
