"""Embeddings and logits equal to `transformers`' SiglipModel and Siglip2Model.

pip install torch transformers
python -m pytest tests/parity/test_siglip_live.py
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxclip.api import CLIPModel
from flaxclip.interop.export import export
from flaxclip.interop.huggingface.names import has_huggingface, huggingface_table
from flaxclip.interop.huggingface.write_config import huggingface_json
from flaxclip.interop.name_table import unflatten
from flaxclip.interop.open_clip.names import open_clip_table
from flaxclip.models.clip import CLIP, CLIPConfig, abstract_variables
from flaxclip.models.cost import model_cost
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.variants import VARIANTS
from flaxclip.models.vision_transformer import ViTConfig
from tests.helpers import multilingual
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


def test_a_text_tower_without_a_projection_is_the_same_in_transformers(tmp_path):
    """SO400M of a hundred languages, small."""
    spec = VARIANTS["ViT-SO400M-16-SigLIP-i18n-256"]
    vision = {"width": 48, "layers": 2, "heads": 4, "image_size": 32}
    text = {"width": 48, "layers": 2, "heads": 4, "vocab_size": 700, "context_length": 16}
    file = multilingual.write_mt5(tmp_path)
    spec = spec._replace(
        model=dataclasses.replace(
            spec.model,
            vision=dataclasses.replace(spec.model.vision, **vision),
            text=dataclasses.replace(spec.model.text, **text),
            embed_dim=48,
        ),
        tokenizer=dataclasses.replace(spec.tokenizer, file=str(file)),
    )
    table = open_clip_table(spec.model)
    flat = dict(table.to_ours(random_tensors(table.their_shapes())))
    ours = CLIPModel(spec, jax.tree.map(jnp.asarray, unflatten(flat)))
    export(spec, ours.variables, tmp_path / "out", "huggingface", overwrite=False)
    theirs, problems = transformers.AutoModel.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert type(theirs).__name__ == "SiglipModel"
    assert not problems["missing_keys"]
    assert not problems["unexpected_keys"]
    case = {"vision": {"image_size": 32}, "text": text}
    images, tokens = random_inputs(case, BATCH_SIZE)
    expected = call_theirs(theirs.double().eval(), 1, case, images, tokens)
    zimg, ztxt, _ = jax.jit(CLIP(spec.model).apply)(
        ours.variables, jnp.asarray(images), jnp.asarray(tokens)
    )
    np.testing.assert_allclose(zimg, expected.image_embeds.numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(ztxt, expected.text_embeds.numpy(), rtol=0, atol=1e-5)


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
