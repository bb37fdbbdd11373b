"""One step of AdamW equal to torch's: text towers of transformers, and TIPSv2, of random weights.

pip install transformers torch
python -m pytest tests/parity/test_adamw_live.py

The peers compute in float64. Image trunks have stored steps of theirs, see `trunk_reference.py`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict

from flaxclip.interop.export import export
from flaxclip.interop.huggingface.tips import tips_table
from flaxclip.interop.name_table import unflatten
from flaxclip.interop.open_clip.names import open_clip_table
from flaxclip.interop.text_trunks.registry import HF_TRUNKS
from flaxclip.losses.softmax import softmax_contrastive_loss
from flaxclip.models.clip import CLIP
from flaxclip.models.inputs import TokenizerConfig
from flaxclip.models.spec import ModelSpec
from flaxclip.models.variants import VARIANTS
from flaxclip.optim import OptimConfig, decay_mask, make_optimizer
from tests.helpers import multilingual
from tests.parity.hf_text_configs import their_config
from tests.parity.open_clip_cases import ADAMW, random_tensors

torch = pytest.importorskip("torch", reason="torch is a peer, not a requirement")
transformers = pytest.importorskip("transformers", reason="transformers is a peer")

BATCH_SIZE, LENGTH, VOCABULARY = 6, 12, 99
SMALL = {
    "xlm_roberta": ["xlm-roberta-base-ViT-B-32", "roberta-ViT-B-32"],
    "mt5": ["mt5-base-ViT-B-32"],
    "nllb": ["nllb-clip-base"],
}
TOWERS = [(family, name) for family, names in SMALL.items() for name in names]


def one_step_of_ours(spec, variables, images, tokens):
    """The loss, and what a step adds to each parameter, by its path."""
    b1, b2 = ADAMW["betas"]
    optim = OptimConfig(
        peak_lr=ADAMW["lr"], warmup_steps=0, b1=b1, b2=b2, eps=ADAMW["eps"],
        weight_decay=ADAMW["weight_decay"],
    )  # fmt: skip
    tx, _ = make_optimizer(optim, steps=10)
    model, params = CLIP(spec.model, preprocess=spec.preprocess), variables["params"]

    def loss_of(params):
        return softmax_contrastive_loss(*model.apply({"params": params}, images, tokens))

    @jax.jit
    def step(params):
        loss, grads = jax.value_and_grad(lambda p: loss_of(p).loss)(params)
        return loss, tx.update(grads, tx.init(params), params)[0]

    loss, updates = step(params)
    return float(loss), {n: np.asarray(x) for n, x in flatten_dict(updates, sep="/").items()}


def step_of_torch(named_parameters, decays, loss):
    """Take a step down `loss`, with weight decay where `decays` says so by name."""
    groups = [
        {"params": [p], "weight_decay": ADAMW["weight_decay"] if decays[name] else 0.0}
        for name, p in named_parameters
    ]
    optimizer = torch.optim.AdamW(groups, **ADAMW)
    loss.backward()
    optimizer.step()


def softmax_loss(logits):
    labels, cross_entropy = torch.arange(len(logits)), torch.nn.functional.cross_entropy
    return (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2


def mask_as_numbers(variables):
    """1 in every parameter with weight decay and 0 in the others, in the parameters' shapes."""
    params = variables["params"]
    mask = jax.tree.map(
        lambda x, decays: np.full(x.shape, decays, np.float32), params, decay_mask(params)
    )
    return {"params": mask}


def assert_same_changes(ours, theirs, compared):
    paths = [path for path in ours if compared(path)]
    assert paths
    for path in paths:
        expected = theirs[f"params/{path}"]
        np.testing.assert_allclose(ours[path], expected, rtol=0, atol=1e-6, err_msg=path)
        assert abs(expected).max() > 1e-5, path


class TextTower(torch.nn.Module):
    """A tower of transformers with the pooling and projection that open_clip 3.3 puts on it
    (`hf_model.py`), under its names, beside the logit scale.
    """

    def __init__(self, text, embed_dim):
        super().__init__()
        config, trunk = their_config(text), HF_TRUNKS[text.family]
        self.transformer = {
            "xlm_roberta": lambda: transformers.XLMRobertaModel(config, add_pooling_layer=False),
            "mt5": lambda: transformers.MT5EncoderModel(config).encoder,
            "nllb": lambda: transformers.M2M100Model(config).encoder,
        }[text.family]()
        self.pooler, self.padding = trunk.pooler, text.traits.padding
        linear, hidden = torch.nn.Linear, (text.width + embed_dim) // 2
        self.proj = (
            linear(text.width, embed_dim, bias=False)
            if trunk.proj == "linear"
            else torch.nn.Sequential(
                linear(text.width, hidden, bias=False),
                torch.nn.GELU(),
                linear(hidden, embed_dim, bias=False),
            )
        )
        self.logit_scale = torch.nn.Parameter(torch.zeros(()))

    def forward(self, tokens):
        mask = (tokens != self.padding).long()
        out = self.transformer(input_ids=tokens, attention_mask=mask).last_hidden_state
        if self.pooler == "mean_pooler":
            pooled = (out * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        else:
            assert self.pooler == "cls_pooler"
            pooled = out[:, 0]
        return torch.nn.functional.normalize(self.proj(pooled), dim=-1)


@pytest.mark.parametrize(("family", "name"), TOWERS)
def test_text_towers_of_transformers(family, name):
    """Contrasted with the embeddings of a small image tower, which stay as they are."""
    model = VARIANTS[name].model
    text = dataclasses.replace(
        model.text, context_length=LENGTH, vocab_size=VOCABULARY, width=64, layers=2, heads=4,
        positions=16 if family == "xlm_roberta" else None,
    )  # fmt: skip
    assert text.family == family
    vision = dataclasses.replace(
        model.vision, image_size=16, patch_size=8, width=32, layers=1, heads=2
    )
    config = dataclasses.replace(model, vision=vision, text=text, embed_dim=40)
    table = open_clip_table(config)
    tensors = random_tensors(table.their_shapes())
    variables = jax.tree.map(jnp.asarray, unflatten(dict(table.to_ours(tensors))))
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.integers(0, 256, (BATCH_SIZE, 16, 16, 3), np.uint8))
    tokens = rng.integers(3, VOCABULARY, (BATCH_SIZE, LENGTH), np.int32)
    pad = text.traits.padding
    tokens[0, 5:], tokens[1, 9:], tokens[2, 3] = pad, pad, pad

    def as_theirs(values):
        """Under the names of `TextTower`."""
        renamed = {n.removeprefix("text."): x for n, x in table.to_theirs(values).items()}
        return {n: x for n, x in renamed.items() if not n.startswith("visual.")}

    theirs = TextTower(text, config.embed_dim).double().eval()
    theirs.load_state_dict({n: torch.from_numpy(x) for n, x in as_theirs(variables).items()})
    decays = {n: bool(x.all()) for n, x in as_theirs(mask_as_numbers(variables)).items()}
    assert len(set(decays.values())) == 2
    zimg, _, _ = jax.jit(CLIP(config).apply)(variables, images, jnp.asarray(tokens))
    zimg, before = torch.tensor(np.asarray(zimg)).double(), theirs.state_dict()
    before = {n: x.clone() for n, x in before.items()}
    logits = theirs.logit_scale.exp() * zimg @ theirs(torch.from_numpy(tokens).long()).T
    their_loss = softmax_loss(logits)
    step_of_torch(theirs.named_parameters(), decays, their_loss)

    loss, changes = one_step_of_ours(ModelSpec(config), variables, images, jnp.asarray(tokens))
    np.testing.assert_allclose(loss, their_loss.item(), rtol=1e-5)
    after = {n: (x - before[n]).numpy() for n, x in theirs.state_dict().items()}
    expected = {
        n: after[n.removeprefix("text.")] if n.removeprefix("text.") in after else np.zeros_like(x)
        for n, x in tensors.items()
    }
    expected = dict(table.to_ours(expected))
    assert_same_changes(changes, expected, lambda path: not path.startswith("vision/"))


@pytest.mark.skipif(not hasattr(transformers, "Tipsv2Model"), reason="transformers has no TIPSv2")
@pytest.mark.parametrize("family", ["tips", "tips_gated"])
def test_tips(family, tmp_path):
    """Both towers. Their temperature is the inverse of our scale: a step of it is another."""
    pytest.importorskip("sentencepiece", reason="the export writes its vocabulary")
    spec = VARIANTS["TIPSv2-B-14"]
    sizes = {"width": 32, "layers": 2, "heads": 4}
    vision = dataclasses.replace(
        spec.model.vision, **sizes, image_size=42, family=family, mlp_ratio=2.75
    )
    text = dataclasses.replace(spec.model.text, **sizes, vocab_size=700, context_length=16)
    config = dataclasses.replace(spec.model, vision=vision, text=text, embed_dim=32)
    file = multilingual.write_tips(tmp_path)
    spec = spec._replace(model=config, tokenizer=TokenizerConfig("tips", str(file)))
    table = tips_table(config)
    flat = dict(table.to_ours(random_tensors(table.their_shapes())))
    variables = jax.tree.map(jnp.asarray, unflatten(flat))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH_SIZE, 42, 42, 3), np.uint8)
    tokens = rng.integers(3, 700, (BATCH_SIZE, 16), np.int32)
    tokens[0, 5:], tokens[1, 9:] = 0, 0

    def as_theirs(values, folder):
        export(spec, values, tmp_path / folder, "huggingface", overwrite=False)
        model = transformers.AutoModel.from_pretrained(tmp_path / folder, dtype=torch.float32)
        return model.double().eval()

    def as_saved(model):
        """Under the names of files: transformers renames what it reads, and what it writes back."""
        model.save_pretrained(tmp_path / "saved")
        saved = safetensors.numpy.load_file(tmp_path / "saved" / "model.safetensors")
        return {name: x for name, x in saved.items() if "mask_token" not in name}

    theirs = as_theirs(variables, "ours")
    decays = {
        name: bool(p.min() > 0.5)
        for name, p in as_theirs(mask_as_numbers(variables), "mask").named_parameters()
    }
    decays["temperature"] = False  # exp(-0), as the mask's is written
    assert len(set(decays.values())) == 2
    before = as_saved(theirs)
    out = theirs(
        pixel_values=torch.tensor(images / 255).permute(0, 3, 1, 2).double(),
        input_ids=torch.tensor(tokens).long(),
        attention_mask=torch.tensor(tokens != 0).long(),
    )
    their_loss = softmax_loss(out.logits_per_image)
    step_of_torch(theirs.named_parameters(), decays, their_loss)
    after = as_saved(theirs)

    loss, changes = one_step_of_ours(spec, variables, jnp.asarray(images), jnp.asarray(tokens))
    np.testing.assert_allclose(loss, their_loss.item(), rtol=1e-5)
    moved = {name: after[name] - before[name] for name in after if name != "temperature"}
    named = {name: moved.get(name, np.zeros(())) for name in table.their_shapes()}
    expected = dict(table.to_ours(named))
    assert_same_changes(changes, expected, lambda path: path != "logit_scale")
