"""The table of architectures against published sizes; nothing is allocated."""

import jax
import jax.numpy as jnp
import pytest

from flaxclip.models.clip import CLIP, CLIPConfig, abstract_variables, example_inputs
from flaxclip.models.cost import model_cost, published_flops
from flaxclip.models.modified_resnet import ResNetConfig
from flaxclip.models.variants import VARIANTS, ModelSpec
from flaxclip.run.command_line import variant

# Millions of parameters and forward GFLOPs a pair: open_clip, `docs/model_profile.csv`.
PUBLISHED = {
    "RN50": (102.01, 18.18),
    "RN101": (119.69, 25.5),
    "RN50x4": (178.3, 51.82),
    "RN50x16": (290.98, 162.69),
    "RN50x64": (623.26, 552.65),
    "ViT-B-32": (151.28, 14.78),
    "ViT-B-16": (149.62, 41.09),
    "ViT-L-14": (427.62, 175.33),
    "ViT-L-14-336": (427.94, 395.22),
    "ViT-H-14": (986.11, 381.68),
    "ViT-g-14": (1366.68, 581.15),
    "ViT-bigG-14": (2539.57, 1065.36),
    "ViT-B-16-SigLIP": (203.16, 46.44),
    "ViT-L-16-SigLIP-256": (652.15, 201.62),
    "ViT-SO400M-14-SigLIP": (877.36, 233.54),
}
# As OpenAI's models are counted, `sum(p.numel() for p in model.parameters())`.
EXACT = {
    "ViT-B-32": 151_277_313,
    "ViT-B-16": 149_620_737,
    "ViT-L-14": 427_616_513,
    "ViT-L-14-336": 427_944_193,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_flops_are_the_published_ones(name):
    config = VARIANTS[name].model
    cost = model_cost(config)
    million_parameters, gflops = PUBLISHED[name]
    assert cost.parameters / 1e6 == pytest.approx(million_parameters, rel=1e-4)
    assert published_flops(config) / 1e9 == pytest.approx(gflops, rel=5e-4)
    assert cost.parameters == EXACT.get(name, cost.parameters)


@pytest.mark.parametrize("name", [name for name in VARIANTS if name.endswith("-quickgelu")])
def test_quickgelu_changes_the_activation_and_nothing_else(name):
    (quick, *others), (plain, *same) = VARIANTS[name], VARIANTS[name.removesuffix("-quickgelu")]
    assert others == same
    assert (quick.text.activation, plain.text.activation) == ("quick_gelu", "gelu")
    if not isinstance(quick.vision, ResNetConfig):
        assert (quick.vision.activation, plain.vision.activation) == ("quick_gelu", "gelu")
    assert model_cost(quick) == model_cost(plain)


@pytest.mark.parametrize("name", [name for name in VARIANTS if "SigLIP" in name])
def test_siglip_brings_its_preprocessing_tokenizer_and_bias(name):
    config, preprocess, tokenizer = VARIANTS[name]
    assert (preprocess.resize, preprocess.mean, preprocess.std) == (
        "squash", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5),
    )  # fmt: skip
    assert (tokenizer.name, config.text.vocab_size) == (
        ("siglip2", 256_000) if "SigLIP2" in name else ("siglip", 32_000)
    )
    assert "logit_bias" in abstract_variables(config)["params"]
    assert config.vision.mlp_width in (3072, 4096, 4304, 6144)


def test_openais_spelling_is_understood():
    assert variant("ViT-L/14-336") is VARIANTS["ViT-L-14-336"]


def test_models_of_openai_are_those_that_a_config_describes_by_default():
    assert VARIANTS["ViT-B-32-quickgelu"] == ModelSpec(CLIPConfig())
    assert CLIPConfig().init_logit_bias is None
    assert VARIANTS["RN50"].model.vision == ResNetConfig()


@pytest.mark.parametrize("name", ["ViT-tiny", "ViT-bigG-14", "RN50x64", "ViT-gopt-16-SigLIP2-384"])
def test_a_variant_maps_its_inputs_to_embeddings_in_float32(name):
    config = VARIANTS[name].model
    zimg, ztxt, logit_scale = jax.eval_shape(
        CLIP(config).apply, abstract_variables(config), *example_inputs(config, batch_size=3)
    )
    assert zimg.shape == ztxt.shape == (3, config.embed_dim)
    assert logit_scale.shape == ()
    assert {zimg.dtype, ztxt.dtype, logit_scale.dtype} == {jnp.dtype("float32")}
