"""The table of architectures against published sizes; nothing is allocated."""

import jax
import jax.numpy as jnp
import pytest

from flaxclip.models.clip import CLIP, CLIPConfig, abstract_variables, example_inputs
from flaxclip.models.cost import model_cost, published_flops
from flaxclip.models.inputs import ImageTransform
from flaxclip.models.modified_resnet import ResNetConfig
from flaxclip.models.spec import ModelSpec
from flaxclip.models.variants import VARIANTS
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
    "ViT-B-16-SigLIP-i18n-256": (370.63, 57.84),
    "ViT-L-16-SigLIP-256": (652.15, 201.62),
    "ViT-SO400M-14-SigLIP": (877.36, 233.54),
    "ViT-L-14-CLIPA": (414.21, 167.5),
    "ViT-L-14-CLIPA-336": (414.54, 387.39),
    "ViT-H-14-CLIPA": (968.24, 354.02),
    "ViT-H-14-CLIPA-336": (968.64, 800.88),
    "ViT-bigG-14-CLIPA": (2517.22, 1007.93),
    "ViT-bigG-14-CLIPA-336": (2517.76, 2271.58),
    "convnext_tiny": (92.3, 14.87),
    "convnext_base": (151.52, 36.67),
    "convnext_base_w": (179.39, 49.38),
    "convnext_base_w_320": (179.39, 71.94),
    "convnext_large_d": (351.77, 107.5),
    "convnext_xlarge": (653.89, 198.38),
    "convnext_xxlarge": (1200.58, 443.03),
    "EVA01-g-14": (1136.44, 547.36),
    "EVA01-g-14-plus": (1366.62, 581.15),
    "EVA02-B-16": (149.69, 41.09),
    "EVA02-L-14": (427.76, 175.3),
    "EVA02-L-14-336": (428.08, 395.16),
    "EVA02-E-14": (4704.59, 2311.42),
    "EVA02-E-14-plus": (5044.89, 2362.19),
}
# Counted of open_clip 3.3's classes with timm 1.0.31: parameters, and GFLOPs by torch 2.14's
# `FlopCounterMode` on its `meta` device. ViTamin-XL-384 at 384 pixels.
COUNTED = {
    "MobileCLIP-S1": (84.97, 15.295),
    "MobileCLIP-S2": (99.24, 21.653),
    "MobileCLIP-B": (149.78, 41.376),
    "MobileCLIP2-S0": (74.84, 10.745),
    "MobileCLIP2-S2": (99.24, 21.653),
    "MobileCLIP2-S3": (248.89, 42.942),
    "MobileCLIP2-S4": (445.44, 68.839),
    "MobileCLIP2-B": (149.78, 41.376),
    "MobileCLIP2-L-14": (427.62, 175.326),
    "ViTamin-S": (62.47, 15.155),
    "ViTamin-S-LTT": (145.82, 25.075),
    "ViTamin-B": (150.95, 51.206),
    "ViTamin-B-LTT": (211.37, 58.546),
    "ViTamin-L": (456.97, 163.148),
    "ViTamin-L-256": (457.03, 210.97),
    "ViTamin-L-336": (457.22, 364.175),
    "ViTamin-L-384": (457.36, 481.459),
    "ViTamin-L2": (687.61, 196.94),
    "ViTamin-L2-256": (687.67, 244.761),
    "ViTamin-L2-336": (687.86, 397.967),
    "ViTamin-L2-384": (688.0, 515.251),
    "ViTamin-XL-256": (924.78, 326.841),
    "ViTamin-XL-336": (924.78, 526.676),
    "ViTamin-XL-384": (924.78, 678.871),
}
# As OpenAI's models are counted, `sum(p.numel() for p in model.parameters())`.
EXACT = {
    "ViT-B-32": 151_277_313,
    "ViT-B-16": 149_620_737,
    "ViT-L-14": 427_616_513,
    "ViT-L-14-336": 427_944_193,
}


@pytest.mark.parametrize("name", [*PUBLISHED, *COUNTED])
def test_parameters_and_flops_are_the_published_ones(name):
    config = VARIANTS[name].model
    cost = model_cost(config)
    million_parameters, gflops = (PUBLISHED | COUNTED)[name]
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
        "native" if "naflex" in name else "squash", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5),
    )  # fmt: skip
    assert preprocess.max_patches == (576 if "naflex" in name else None)
    expected = ("siglip2", 256_000) if "SigLIP2" in name else ("siglip", 32_000)
    if "i18n" in name:
        expected = ("siglip", 250_000)
    assert (tokenizer.name, config.text.vocab_size) == expected
    assert "logit_bias" in abstract_variables(config)["params"]
    assert config.vision.mlp_width in (3072, 4096, 4304, 6144)


def test_models_of_378_pixels_see_all_of_an_image():
    squashed = {
        name for name, spec in VARIANTS.items() if spec.preprocess == ImageTransform("squash")
    }
    assert squashed == {
        "ViT-H-14-378", "ViT-H-14-378-quickgelu", "ViT-H-14-worldwide-378",
        "ViT-bigG-14-worldwide-378",
    }  # fmt: skip


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
