"""A model of open_clip's, and what is compared with it; where torch and open_clip are."""

import copy

import jax.numpy as jnp
import numpy as np
import pytest

from flaxclip.api import encode_image, encode_text
from tests.parity.clip_cases import pixel_values
from tests.parity.open_clip_cases import random_tensors

torch = pytest.importorskip("torch", reason="torch is a peer, not a requirement")
open_clip = pytest.importorskip("open_clip", reason="open_clip is a peer, not a requirement")


def their_model(config, **sizes):
    """open_clip's model with weights as large as a trained model's."""
    config = copy.deepcopy(config)
    custom = config.pop("custom_text", False)
    kind = open_clip.model.CustomTextCLIP if custom else open_clip.model.CLIP
    model = kind(**config)
    shapes = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    tensors = {name: torch.tensor(x) for name, x in random_tensors(shapes, **sizes).items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return model.eval()


def outputs(model, images, tokens, mean=None, std=None):
    pixels = pixel_values(images) if mean is None else (images / 255 - mean) / std
    pixels = pixels if mean is None else pixels.transpose(0, 3, 1, 2)
    model = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        zimg = model.encode_image(torch.tensor(pixels).double(), normalize=True)
        ztxt = model.encode_text(torch.tensor(tokens).long(), normalize=True)
        logits = model.logit_scale.exp() * zimg @ ztxt.T
        if model.logit_bias is not None:
            logits = logits + model.logit_bias
    return zimg.numpy(), ztxt.numpy(), logits.numpy()


def assert_same_outputs(model, images, tokens, theirs):
    """Embeddings and logits equal to 1e-5, relative to unit length and to the largest logit."""
    zimg = np.asarray(encode_image(model.variables, jnp.asarray(images), model.spec))
    ztxt = np.asarray(encode_text(model.variables, jnp.asarray(tokens), model.spec))
    np.testing.assert_allclose(zimg, theirs[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(ztxt, theirs[1], rtol=0, atol=1e-5)
    bias = float(model.params.get("logit_bias", 0.0))
    logits = np.exp(float(model.params["logit_scale"])) * zimg @ ztxt.T + bias
    np.testing.assert_allclose(logits, theirs[2], rtol=0, atol=1e-5 * abs(theirs[2]).max())
