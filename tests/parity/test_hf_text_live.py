"""open_clip's text towers of transformers, read by us, with random weights.

pip install open_clip_torch transformers
python -m pytest tests/parity/test_hf_text_live.py
"""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import flaxclip
from flaxclip.api import CLIPModel, encode_text
from flaxclip.interop.export import export
from flaxclip.interop.name_table import unflatten
from flaxclip.interop.open_clip.names import open_clip_table
from flaxclip.interop.open_clip.write_config import open_clip_json
from flaxclip.interop.text_trunks.registry import HF_TRUNKS
from flaxclip.models.inputs import TokenizerConfig
from flaxclip.models.variants import VARIANTS
from tests.helpers import multilingual
from tests.parity.hf_text_configs import their_config
from tests.parity.open_clip_cases import random_tensors

torch = pytest.importorskip("torch", reason="torch is a peer, not a requirement")
transformers = pytest.importorskip("transformers", reason="transformers is a peer")
open_clip = pytest.importorskip("open_clip", reason="open_clip is a peer, not a requirement")

from open_clip.hf_model import HFTextEncoder  # noqa: E402

from tests.parity.open_clip_model import assert_same_outputs, outputs, their_model  # noqa: E402

NAMES = [name for name, spec in VARIANTS.items() if spec.model.text.family in HF_TRUNKS]
SMALL = {
    "xlm_roberta": "xlm-roberta-base-ViT-B-32",
    "mt5": "mt5-base-ViT-B-32",
    "nllb": "nllb-clip-base",
}
WRITE_VOCABULARY = {
    "xlm_roberta": multilingual.write_xlm_r,
    "mt5": multilingual.write_mt5,
    "nllb": multilingual.write_nllb,
}
CAPTIONS = ["a photo of a cat", "", "Две собаки </s> a cat", "a cat " * 20]


def peer(text, embed_dim):
    config, trunk = their_config(text), HF_TRUNKS[text.family]
    tower = HFTextEncoder("", embed_dim, config, trunk.pooler, trunk.proj)
    if text.family == "xlm_roberta":
        tower.transformer = transformers.XLMRobertaModel(config, add_pooling_layer=False)
    else:
        tower.transformer = tower.transformer.encoder
    return tower.eval()


def text_tensors(tensors):
    return {n.removeprefix("text."): v for n, v in tensors.items() if n.startswith("text.")}


def small_spec(family, vocab_size):
    spec = VARIANTS[SMALL[family]]
    text = dataclasses.replace(
        spec.model.text, context_length=12, vocab_size=vocab_size, width=64, layers=2, heads=4,
        positions=16 if family == "xlm_roberta" else None,
    )  # fmt: skip
    vision = dataclasses.replace(
        spec.model.vision, image_size=32, patch_size=8, width=32, layers=1, heads=2
    )
    return spec._replace(model=dataclasses.replace(spec.model, vision=vision, text=text))


# Of 12 tokens, and so many that mT5's distances share ranges.
@pytest.mark.parametrize(
    ("family", "length"), [("xlm_roberta", 12), ("mt5", 12), ("mt5", 150), ("nllb", 12)]
)
def test_embeddings_are_those_of_open_clip(family, length):
    spec = small_spec(family, 99)
    text = spec.model.text
    table = open_clip_table(spec.model)
    tensors = random_tensors(table.their_shapes())
    theirs = peer(text, spec.model.embed_dim)
    theirs.load_state_dict({n: torch.from_numpy(v) for n, v in text_tensors(tensors).items()})
    tokens = np.random.default_rng(0).integers(3, 99, (4, length))
    # Rows of several lengths, one whole; padding that a text spells out is none of its tokens.
    pad = text.traits.padding
    tokens[0, 5:], tokens[1, 9:], tokens[2, 3] = pad, pad, pad
    with torch.no_grad():
        expected = torch.nn.functional.normalize(theirs(torch.from_numpy(tokens)), dim=-1).numpy()
    variables = jax.tree.map(jnp.asarray, unflatten(dict(table.to_ours(tensors))))
    ours = np.asarray(encode_text(variables, jnp.asarray(tokens, jnp.int32), spec))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-6)
    back = table.to_theirs(variables)
    assert back.keys() == tensors.keys()
    assert all(np.array_equal(back[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("name", NAMES)
def test_names_and_shapes_of_all_sizes(name):
    model = VARIANTS[name].model
    with torch.device("meta"):
        theirs = peer(model.text, model.embed_dim)
    found = {n: tuple(tensor.shape) for n, tensor in theirs.state_dict().items()}
    assert text_tensors(open_clip_table(model).their_shapes()) == found


@pytest.fixture(params=SMALL)
def small(request, tmp_path, monkeypatch):
    """A model whose text tower transformers finds by name, in the current directory."""
    family = request.param
    file, trunk = WRITE_VOCABULARY[family](tmp_path), HF_TRUNKS[family]
    spec = small_spec(family, 700)
    spec = spec._replace(tokenizer=TokenizerConfig(trunk.tokenizer, str(file)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setitem(trunk.towers, "small", spec.model.text)
    their_config(spec.model.text).save_pretrained("small")
    return spec


def images():
    return np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)


def test_what_open_clip_wrote(small, tmp_path):
    config = open_clip_json(small)["model_cfg"]
    theirs = their_model(config)
    folder = tmp_path / "theirs"
    folder.mkdir()
    tensors = {name: x.contiguous().numpy() for name, x in theirs.state_dict().items()}
    safetensors.numpy.save_file(tensors, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    file = Path(small.tokenizer.file)
    shutil.copyfile(file, folder / file.name)
    model = flaxclip.load(folder)
    assert model.config == small.model
    tokens = model.tokenize(CAPTIONS)
    assert_same_outputs(model, images(), tokens, outputs(theirs, images(), tokens))


def test_what_we_write_gives_the_same_in_open_clip(small, tmp_path):
    table, folder = open_clip_table(small.model), tmp_path / "ours"
    flat = dict(table.to_ours(random_tensors(table.their_shapes())))
    ours = CLIPModel(small, jax.tree.map(jnp.asarray, unflatten(flat)))
    export(small, ours.variables, folder, "open_clip", overwrite=False)
    theirs, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    assert isinstance(theirs, open_clip.model.CustomTextCLIP)
    tokens = ours.tokenize(CAPTIONS)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    np.testing.assert_array_equal(tokens, tokenizer(CAPTIONS).numpy())
    assert_same_outputs(ours, images(), tokens, outputs(theirs, images(), tokens))
    assert flaxclip.load(folder).config == small.model
