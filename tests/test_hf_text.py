"""transformers' text towers: configuration, gradients, and what padding changes."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from flaxclip.data.tokenizers.load import load_tokenizer
from flaxclip.errors import InputError
from flaxclip.fine_tuning.parameter_rules import rate_multipliers
from flaxclip.interop.open_clip.names import open_clip_table
from flaxclip.interop.open_clip.read_config import read_config
from flaxclip.interop.open_clip.write_config import open_clip_json
from flaxclip.interop.text_trunks.registry import HF_TRUNKS
from flaxclip.interop.tokenizer_files import write_tokenizer
from flaxclip.models.clip import CLIP, CLIPConfig, init_params
from flaxclip.models.cost import model_cost
from flaxclip.models.inputs import TokenizerConfig
from flaxclip.models.spec import ModelSpec
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.variants import VARIANTS
from flaxclip.models.vision_transformer import ViTConfig
from tests.helpers import multilingual
from tests.helpers.small_models import with_tokenizer
from tests.helpers.tiny_run import train_on

NAMES = [name for name, spec in VARIANTS.items() if spec.model.text.family in HF_TRUNKS]
# Ids of the start, if there is one, of padding and of the end.
IDS = {"xlm_roberta": ([0], 1, 2), "nllb": ([40], 1, 2), "mt5": ([], 0, 1)}
WRITE = {
    "xlm_roberta": multilingual.write_xlm_r,
    "nllb": multilingual.write_nllb,
    "mt5": multilingual.write_mt5,
}
XLM_R = "xlm-roberta-base-ViT-B-32"


def tiny(family, **text):
    sizes = {"context_length": 8, "vocab_size": 50, "width": 32, "layers": 2, "heads": 2}
    if family == "xlm_roberta":
        sizes["positions"] = 12
    activation = {"mt5": "gelu_tanh", "nllb": "relu"}.get(family, "gelu")
    return CLIPConfig(
        ViTConfig(image_size=16, patch_size=8, width=32, layers=1, heads=2),
        TextConfig(**sizes | text, activation=activation, family=family),
        embed_dim=16,
    )


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_is_read_again(name, tmp_path):
    file, spec = tmp_path / "open_clip_config.json", VARIANTS[name]
    file.write_text(json.dumps(open_clip_json(spec)))
    assert read_config(file) == spec


# Tokens a caption, millions of parameters and GFLOPs of a pair: open_clip,
# `docs/model_profile.csv`, whose captions of some towers fill all positions.
PUBLISHED = {
    "roberta-ViT-B-32": (512, 212.72, 105.87),
    "xlm-roberta-base-ViT-B-32": (512, 366.12, 105.87),
    "xlm-roberta-large-ViT-H-14": (512, 1193.01, 671.01),
    "mt5-base-ViT-B-32": (77, 365.71, 22.12),
    "mt5-xl-ViT-H-14": (77, 2306.75, 514.04),
    "nllb-clip-base": (1024, 501.89, 369.6),
    "nllb-clip-large": (1024, 1399.22, 1468.46),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_flops_are_the_published_ones(name):
    model, (length, millions, gflops) = VARIANTS[name].model, PUBLISHED[name]
    text = dataclasses.replace(model.text, context_length=length)
    cost = model_cost(dataclasses.replace(model, text=text))
    assert cost.parameters / 1e6 == pytest.approx(millions, rel=1e-4)
    assert cost.forward_flops / 1e9 == pytest.approx(gflops, rel=5e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hf_model_name": "google/mt5-small"}, "hf_model_name is 'google/mt5-small'"),
        ({"hf_pooler_type": "cls_pooler"}, "expected 'mean_pooler' and 'mlp'"),
        ({"hf_proj_type": "linear"}, "expected 'mean_pooler' and 'mlp'"),
        ({"hf_tokenizer_name": "gpt2"}, "hf_tokenizer_name is 'gpt2'"),
        ({"context_length": 513}, "more than its 514 positions"),
        ({"width": 512}, "width"),
    ],
)
def test_other_towers_of_transformers_are_refused(change, message, tmp_path):
    config = open_clip_json(VARIANTS[XLM_R])
    config["model_cfg"]["text_cfg"] |= change
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message):
        read_config(tmp_path / "open_clip_config.json")


def test_a_tower_that_transformers_has_no_name_for_is_not_written():
    spec = VARIANTS[XLM_R]
    text = dataclasses.replace(spec.model.text, layers=6)
    with pytest.raises(InputError, match="takes such towers from transformers by name"):
        open_clip_json(spec._replace(model=dataclasses.replace(spec.model, text=text)))


def test_other_poolings_of_other_towers_are_refused(tmp_path):
    config = open_clip_json(VARIANTS["nllb-clip-base"])
    config["model_cfg"]["text_cfg"]["hf_pooler_type"] = "mean_pooler"
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="expected 'cls_pooler' and 'linear'"):
        read_config(tmp_path / "open_clip_config.json")
    # open_clip takes the mean if none is named, and the architecture's own if that is null.
    del config["model_cfg"]["text_cfg"]["hf_pooler_type"]
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(
        InputError, match=r"hf_pooler_type 'mean_pooler' .*\n.*'cls_pooler' and 'lin"
    ):
        read_config(tmp_path / "open_clip_config.json")
    config["model_cfg"]["text_cfg"]["hf_pooler_type"] = None
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    assert read_config(tmp_path / "open_clip_config.json").model == VARIANTS["nllb-clip-base"].model


def test_captions_begin_with_the_language_that_the_directory_names(tmp_path):
    file = multilingual.write_nllb(tmp_path)
    config = open_clip_json(VARIANTS["nllb-clip-base"])
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))

    def read(**settings):
        multilingual.write_settings(tmp_path, "NllbTokenizer", **settings)
        return read_config(tmp_path / "open_clip_config.json")

    def first_token(spec):
        tokenizer = dataclasses.replace(spec.tokenizer, file=str(file))
        return load_tokenizer(tokenizer, 9)(["un chat"])[0, 0]

    vocabulary = json.loads(file.read_text())["added_tokens"]
    ids = {token["content"]: token["id"] for token in vocabulary}
    assert first_token(read()) == first_token(read(src_lang="eng_Latn")) == ids["eng_Latn"]
    french = read(src_lang="fra_Latn")
    assert first_token(french) == ids["fra_Latn"]
    # Written, and read again.
    written = tmp_path / "written"
    written.mkdir()
    tokenizer = dataclasses.replace(french.tokenizer, file=str(file))
    write_tokenizer(french._replace(tokenizer=tokenizer), written, "open_clip")
    (written / "open_clip_config.json").write_text(json.dumps(config))
    assert read_config(written / "open_clip_config.json").tokenizer == french.tokenizer
    for unknown in ("deu_Latn", "<s>"):
        with pytest.raises(InputError, match=f"language is '{unknown}'"):
            first_token(read(src_lang=unknown))
    with pytest.raises(InputError, match="legacy_behaviour is True"):
        read(legacy_behaviour=True)
    with pytest.raises(InputError, match="of nllb alone do captions begin with their language"):
        load_tokenizer(TokenizerConfig("clip", language="fra_Latn"), 77)


def test_old_files_count_their_positions():
    config = tiny("xlm_roberta")
    table = open_clip_table(config)
    rng = np.random.default_rng(0)
    tensors = {n: rng.standard_normal(s, np.float32) for n, s in table.their_shapes().items()}
    counted = {"text.transformer.embeddings.position_ids": np.arange(12)[None]}
    assert len(dict(table.to_ours(tensors | counted))) == len(jax.tree.leaves(shapes_of(config)))


def shapes_of(config):
    return jax.eval_shape(lambda: init_params(jax.random.key(0), config))


@pytest.mark.parametrize("family", IDS)
def test_training_learns_and_padding_changes_nothing(family):
    config, (start, pad, end) = tiny(family), IDS[family]
    params, model = init_params(jax.random.key(0), config), CLIP(config)
    rows = [[*start, 9, 8, 7, end], [*start, 5, end]]
    tokens = jnp.asarray([row + [pad] * (8 - len(row)) for row in rows])

    def loss(params, tokens=tokens):
        z = model.apply({"params": params}, tokens, method="encode_text")
        return jnp.square(z - jnp.eye(2, 16)).sum()

    tx = optax.adamw(1e-2)
    state, step = tx.init(params), jax.jit(jax.value_and_grad(loss))
    losses = []
    for _ in range(5):
        value, gradients = step(params)
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        losses.append(float(value))
    assert losses[-1] < 0.7 * losses[0]
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradients["text"]))
    np.testing.assert_allclose(loss(params, tokens[:, :5]), loss(params), rtol=1e-5)


@pytest.mark.parametrize("family", IDS)
def test_a_run_starts_from_weights_and_what_it_saves_is_loaded(family, tmp_path):
    positions = {"positions": 22} if family == "xlm_roberta" else {}
    config = tiny(family, context_length=20, vocab_size=700, **positions)
    tokenizer = TokenizerConfig(HF_TRUNKS[family].tokenizer, str(WRITE[family](tmp_path)))
    spec = ModelSpec(config, tokenizer=tokenizer)
    flags = "--optim.freeze", "^text/.*embedding$", "--optim.layer-decay", "^text/", "0.9"
    model, changed = train_on(tmp_path, spec, *flags)
    assert with_tokenizer(model.spec, file=None) == with_tokenizer(spec, file=None)
    names = flatten_dict(model.variables, sep="/")
    frozen = {n for n in names if n.startswith("params/text/") and n.endswith("embedding")}
    assert frozen
    assert changed == names.keys() - frozen
    np.testing.assert_array_equal(model.tokenize(["a cat"])[0][-3:], IDS[family][1])
    ztxt = model.encode_text(["a cat"])
    np.testing.assert_allclose(np.linalg.norm(ztxt, axis=-1), 1, rtol=1e-5)


def test_rates_of_layers_fall_towards_the_embeddings():
    params = shapes_of(tiny("mt5"))
    rates = rate_multipliers((), [("^text/", 0.5)], params)["text"]
    assert rates["position_embedding"] == rates["token_embedding"] == 0.125
    layers = rates["transformer"]["blocks"]["mlp"]["gate"]["kernel"]
    np.testing.assert_array_equal(np.ravel(layers), [0.25, 0.5])
    assert rates["ln_final"]["scale"] == rates["projection"]["kernel"] == 1


def test_a_missing_vocabulary_is_asked_for_by_the_name_of_its_model(tmp_path):
    with pytest.raises(InputError, match="of FacebookAI/xlm-roberta-base for XLM-R"):
        load_tokenizer(TokenizerConfig("xlm_v"), 77)
    with pytest.raises(InputError, match="of FacebookAI/xlm-roberta-base for XLM-R"):
        write_tokenizer(VARIANTS[XLM_R], tmp_path, "open_clip")
