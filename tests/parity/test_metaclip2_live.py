"""MetaCLIP 2: embeddings and logits equal to open_clip's and transformers', both ways.

pip install open_clip_torch torchvision transformers
python -m pytest tests/parity/test_metaclip2_live.py
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
from flaxclip.api import CLIPModel
from flaxclip.interop.export import export
from flaxclip.interop.huggingface.names import huggingface_table
from flaxclip.interop.name_table import unflatten
from flaxclip.models.clip import CLIPConfig
from flaxclip.models.inputs import TokenizerConfig
from flaxclip.models.spec import ModelSpec
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.vision_transformer import ViTConfig
from tests.helpers.multilingual import write_mt5
from tests.parity.clip_cases import MEAN, STD, TINY, pixel_values
from tests.parity.open_clip_cases import random_tensors

torch = pytest.importorskip("torch", reason="torch is a peer, not a requirement")
open_clip = pytest.importorskip("open_clip", reason="open_clip is a peer, not a requirement")
transformers = pytest.importorskip("transformers", reason="transformers is a peer")

from tests.parity.open_clip_model import assert_same_outputs, outputs, their_model  # noqa: E402

VOCABULARY = Path(__file__).parents[1] / "golden" / "xlm_v" / "tokenizer.json"
TEXT = TINY["text"] | {"vocab_size": 400}
CAPTIONS = ["a photo of a cat", "", "Две собаки </s> a cat", "a cat " * 20]


def images():
    return np.random.RandomState(0).randint(0, 256, (4, 24, 24, 3)).astype(np.uint8)


def test_what_open_clip_wrote(tmp_path):
    vision = TINY["vision"] | {"head_width": 15}
    del vision["heads"]
    text = TEXT | {"pool_type": "eos", "eos_id": 2, "hf_tokenizer_name": "facebook/xlm-v-base"}
    config = {"embed_dim": 28, "vision_cfg": vision, "text_cfg": text, "quick_gelu": True}
    theirs = their_model(config)
    tensors = {name: x.contiguous().numpy() for name, x in theirs.state_dict().items()}
    safetensors.numpy.save_file(tensors, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    shutil.copyfile(VOCABULARY, tmp_path / "tokenizer.json")
    model = flaxclip.load(tmp_path)
    tokens = model.tokenize(CAPTIONS)
    assert_same_outputs(model, images(), tokens, outputs(theirs, images(), tokens))


def spec_of(tokenizer, vocabulary):
    traits = {"activation": "quick_gelu", "norm_eps": 1e-5}
    text = TEXT | ({"vocab_size": 700, "end_id": 1} if tokenizer == "mt5" else {"end_id": 2})
    config = CLIPConfig(ViTConfig(**TINY["vision"], **traits), TextConfig(**text, **traits), 28)
    return ModelSpec(config, tokenizer=TokenizerConfig(tokenizer, str(vocabulary), "none"))


@pytest.mark.parametrize("tokenizer", ["xlm_v", "mt5"])
@pytest.mark.parametrize("written_by", ["us", "transformers"])
def test_transformers_model_is_the_same(written_by, tokenizer, tmp_path):
    file = VOCABULARY if tokenizer == "xlm_v" else write_mt5(tmp_path)
    spec, folder = spec_of(tokenizer, file), tmp_path / "out"
    table = huggingface_table(spec.model)
    tensors = random_tensors(table.their_shapes())
    ours = CLIPModel(spec, jax.tree.map(jnp.asarray, unflatten(dict(table.to_ours(tensors)))))
    export(spec, ours.variables, folder, "huggingface", overwrite=False)
    theirs = transformers.AutoModel.from_pretrained(folder)
    assert type(theirs).__name__ == "MetaClip2Model"
    if written_by == "transformers":
        theirs.save_pretrained(folder)
    again = flaxclip.load(folder)
    text = dataclasses.replace(again.config.text, positions=None)
    assert dataclasses.replace(again.config, text=text) == spec.model
    tokens = again.tokenize(CAPTIONS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    padded = tokenizer(CAPTIONS, padding="max_length", truncation=True, max_length=13)
    np.testing.assert_array_equal(tokens, padded["input_ids"])
    with torch.no_grad():
        out = theirs.double()(
            pixel_values=torch.tensor(pixel_values(images())).double(),
            input_ids=torch.tensor(np.asarray(tokens)).long(),
        )
    expected = (out.image_embeds, out.text_embeds, out.logits_per_image)
    assert_same_outputs(again, images(), tokens, tuple(x.numpy() for x in expected))
    np.testing.assert_allclose([spec.preprocess.mean, spec.preprocess.std], [MEAN, STD])
