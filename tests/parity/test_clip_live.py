"""Embeddings, gradients and an optimizer step equal to `transformers`' CLIPModel and torch's.

pip install torch transformers
python -m pytest tests/parity/test_clip_live.py
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from flaxclip.losses.softmax import softmax_contrastive_loss
from flaxclip.models.clip import CLIP, CLIPConfig, init_params
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.vision_transformer import ViTConfig
from flaxclip.optim import OptimConfig, decay_mask, make_optimizer
from tests.helpers.peer_params import (
    huggingface_shapes,
    params_from_huggingface,
    params_to_huggingface,
)
from tests.parity.clip_cases import (
    REAL_WIDTH,
    TINY,
    huggingface_config,
    pixel_values,
    random_inputs,
    random_tensors,
)

torch = pytest.importorskip("torch", reason="torch is a peer, not a requirement")
transformers = pytest.importorskip("transformers", reason="transformers is a peer")

BATCH_SIZE = 8


class Pair:
    """The same model in both libraries, and a batch.

    Theirs computes in float64, so that a difference is our rounding, or a mistake, and not theirs.
    """

    def __init__(self, case, activation):
        self.config = CLIPConfig(
            vision=ViTConfig(**case["vision"], activation=activation),
            text=TextConfig(**case["text"], activation=activation),
            embed_dim=case["embed_dim"],
        )
        hf_config = transformers.CLIPConfig(**huggingface_config(case, activation))
        self.theirs = transformers.CLIPModel(hf_config).double().eval()
        self.load(random_tensors(huggingface_shapes(self.config)))
        self.images, self.tokens = random_inputs(case, BATCH_SIZE)

    def load(self, tensors):
        self.theirs.load_state_dict({n: torch.tensor(x) for n, x in tensors.items()}, strict=True)

    def tensors(self):
        return {name: x.detach().numpy().copy() for name, x in self.theirs.named_parameters()}

    def params(self):
        return jax.tree.map(jnp.asarray, params_from_huggingface(self.tensors(), self.config))

    def call_theirs(self):
        return self.theirs(
            input_ids=torch.tensor(self.tokens).long(),
            pixel_values=torch.tensor(pixel_values(self.images)).double(),
            return_loss=True,
        )

    def call_ours(self, params):
        inputs = jnp.asarray(self.images), jnp.asarray(self.tokens)
        return jax.jit(CLIP(self.config).apply)({"params": params}, *inputs)

    def our_loss_and_gradients(self, params):
        return jax.jit(
            jax.value_and_grad(lambda p: softmax_contrastive_loss(*self.call_ours(p)).loss)
        )(params)


@pytest.fixture(
    scope="module",
    params=[(TINY, "quick_gelu"), (TINY, "gelu"), (REAL_WIDTH, "quick_gelu")],
    ids=["tiny-quick_gelu", "tiny-gelu", "ViT-B-32-width"],
)
def pair(request):
    return Pair(*request.param)


def assert_same_outputs(pair, params):
    with torch.no_grad():
        theirs = pair.call_theirs()
    zimg, ztxt, logit_scale = pair.call_ours(params)
    close = functools.partial(np.testing.assert_allclose, rtol=0)
    close(zimg, theirs.image_embeds.numpy(), atol=1e-5)
    close(ztxt, theirs.text_embeds.numpy(), atol=1e-5)
    expected = theirs.logits_per_image.numpy()
    logits = np.exp(logit_scale) * np.asarray(zimg) @ np.asarray(ztxt).T
    close(logits, expected, atol=1e-5 * abs(expected).max())


def test_names_and_shapes_are_those_of_the_state_dict(pair):
    shapes = {name: tuple(x.shape) for name, x in pair.theirs.state_dict().items()}
    assert huggingface_shapes(pair.config) == shapes


def test_import_gives_the_same_embeddings_and_logits(pair):
    assert_same_outputs(pair, pair.params())


def test_export_gives_the_same_embeddings_and_logits():
    pair = Pair(TINY, "quick_gelu")
    params = jax.jit(init_params, static_argnums=1)(jax.random.key(0), pair.config)
    pair.load(params_to_huggingface(params, pair.config))
    assert_same_outputs(pair, params)


def test_loss_and_all_gradients_are_the_same(pair):
    pair.theirs.zero_grad()
    their_loss = pair.call_theirs().loss
    their_loss.backward()
    gradients = {name: p.grad.numpy() for name, p in pair.theirs.named_parameters()}
    expected = flatten_dict(params_from_huggingface(gradients, pair.config), sep="/")

    loss, gradients = pair.our_loss_and_gradients(pair.params())
    np.testing.assert_allclose(loss, their_loss.item(), rtol=1e-5)
    for name, gradient in flatten_dict(gradients, sep="/").items():
        error = np.linalg.norm(gradient - expected[name]) / np.linalg.norm(expected[name])
        assert error < 1e-4, name


def test_one_adamw_step_changes_the_parameters_by_the_same():
    pair = Pair(TINY, "quick_gelu")
    params, tensors = pair.params(), pair.tensors()
    optim = OptimConfig(peak_lr=1e-3, warmup_steps=0)

    # The mask as numbers in the parameters' shapes, so that its names are translated too.
    mask = jax.tree.map(lambda x, decays: np.full(x.shape, decays), params, decay_mask(params))
    decays = {name: bool(x.all()) for name, x in params_to_huggingface(mask, pair.config).items()}
    groups = [
        {"params": [p], "weight_decay": optim.weight_decay if decays[name] else 0.0}
        for name, p in pair.theirs.named_parameters()
    ]
    betas = (optim.b1, optim.b2)
    optimizer = torch.optim.AdamW(groups, lr=optim.peak_lr, betas=betas, eps=optim.eps)
    pair.call_theirs().loss.backward()
    optimizer.step()
    changes = {name: np.asarray(x - tensors[name]) for name, x in pair.tensors().items()}
    expected = flatten_dict(params_from_huggingface(changes, pair.config), sep="/")

    tx, _ = make_optimizer(optim, steps=10)
    _, gradients = pair.our_loss_and_gradients(params)
    updates, _ = jax.jit(tx.update)(gradients, jax.jit(tx.init)(params), params)
    for name, update in flatten_dict(updates, sep="/").items():
        update, change = np.asarray(update), expected[name]
        if name.endswith("qkv/bias"):
            # A key's bias adds the same to all logits of a query: its gradient is 0, and what
            # AdamW makes of rounding errors is not compared.
            update, change = update[:, :, [0, 2]], change[:, :, [0, 2]]
        # Where a gradient is about as small as eps, its rounding shows in the step; hence not 1e-6.
        error = np.linalg.norm(update - change) / np.linalg.norm(change)
        assert error < 1e-3, name
