"""A small model of every kind that files can hold, with random weights."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict

from flaxclip.interop.open_clip.names import open_clip_table
from flaxclip.models.clip import CLIPConfig, init_variables
from flaxclip.models.inputs import ImageTransform, TokenizerConfig
from flaxclip.models.modified_resnet import ResNetConfig
from flaxclip.models.spec import ModelSpec
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.variants import VARIANTS
from flaxclip.models.vision_transformer import ViTConfig


def with_tokenizer(spec, **fields):
    return spec._replace(tokenizer=dataclasses.replace(spec.tokenizer, **fields))


def as_transformers(spec):
    """The same model, with its images and texts prepared as transformers does."""
    preprocess = dataclasses.replace(spec.preprocess, transparency="white", crop_rounding="down")
    return with_tokenizer(
        spec._replace(preprocess=preprocess), cleaning=f"transformers_{spec.tokenizer.name}"
    )


# Heads are 64 channels wide in OpenAI's files, whose configurations are read from shapes.
VISION = ViTConfig(image_size=16, patch_size=8, width=64, layers=2, heads=1, mlp_ratio=1.5)
TEXT = TextConfig(context_length=9, vocab_size=49408, width=64, layers=3, heads=1, mlp_ratio=0.5)
CLIP = ModelSpec(CLIPConfig(vision=VISION, text=TEXT, embed_dim=24))
RESNET = ModelSpec(dataclasses.replace(CLIP.model, vision=ResNetConfig(64, 4, (1, 2, 1, 1))))
GELU = ModelSpec(
    dataclasses.replace(
        CLIP.model,
        vision=dataclasses.replace(VISION, activation="gelu", heads=4, norm_eps=1e-6),
        text=dataclasses.replace(TEXT, activation="gelu", heads=2),
    ),
    ImageTransform("squash", "bilinear", mean=(0.5, 0.4, 0.3)),
)
SIGLIP = ModelSpec(
    CLIPConfig(
        vision=dataclasses.replace(
            VISION, heads=2, activation="gelu_tanh", norm_eps=1e-6, family="siglip"
        ),
        text=TextConfig(12, 90, 32, 2, 2, 2.0, "gelu_tanh", 1e-6, "siglip"),
        embed_dim=64,
        init_logit_scale=float(np.log(10)),
        init_logit_bias=-10.0,
    ),
    ImageTransform("squash", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    TokenizerConfig("siglip"),
)
SIGLIP2 = with_tokenizer(SIGLIP, name="siglip2")


@functools.cache
def fresh_shapes(config):
    return jax.eval_shape(lambda: init_variables(jax.random.key(0), config))


def variables_of(spec):
    """Random, batch statistics too, of a size at which nothing vanishes."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.5 + 0.3 * rng.standard_normal(leaf.shape), jnp.float32),
        fresh_shapes(spec.model),
    )


def assert_same(model, spec, variables):
    assert with_tokenizer(model.spec, file=None) == spec
    ours, theirs = flatten_dict(model.variables), flatten_dict(variables)
    assert ours.keys() == theirs.keys()
    for path, array in theirs.items():
        np.testing.assert_array_equal(ours[path], array, err_msg="/".join(path), strict=True)


def write_bare(folder):
    """A state dict of ViT-tiny without a configuration."""
    spec, path = VARIANTS["ViT-tiny"], folder / "epoch_32.safetensors"
    tensors = open_clip_table(spec.model).to_theirs(variables_of(spec))
    safetensors.numpy.save_file(tensors, path)
    return path
