"""LiT against Google's own code (`parity/lit_reference.py`), and what is no LiT by name."""

import dataclasses
import re

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

import flaxclip
from flaxclip.api import encode_image, encode_text
from flaxclip.data.tokenizers.bert import BertTokenizer
from flaxclip.errors import InputError
from flaxclip.interop.__main__ import Convert, Info, convert, info
from flaxclip.interop.archives.stored_tensor import StoredTensor
from flaxclip.interop.export import export
from flaxclip.interop.lit import lit_table, lit_tensors, spec_from_tensors
from flaxclip.models.clip import abstract_variables
from flaxclip.models.cost import model_cost
from flaxclip.models.text_transformer import TextConfig, TextTransformer
from flaxclip.models.variants import VARIANTS
from tests.helpers.lit_tensors import LAYOUTS, REFERENCE, shapes_of, with_old_numbers
from tests.parity.lit_cases import CAPTIONS, CONTEXT_LENGTH, TEXT, VOCABULARY, random_tensors


def stored(shapes):
    def never():
        raise AssertionError("numbers were read")

    return {n: StoredTensor(n, s, np.dtype("f4"), never) for n, s in shapes.items()}


@pytest.fixture
def save(tmp_path):
    """A checkpoint, with its vocabulary beside it, whose tensors a test may change."""

    def write(layout, change=lambda tensors: tensors, root="params/"):
        tensors = change(random_tensors(shapes_of(layout)))
        np.savez(tmp_path / "LiT-tiny.npz", **{root + name: x for name, x in tensors.items()})
        (tmp_path / "LiT-tiny.txt").write_text("\n".join(VOCABULARY) + "\n")
        return tmp_path / "LiT-tiny.npz"

    return write


@pytest.mark.parametrize(("layout", "root"), [(LAYOUTS[0], ""), (LAYOUTS[1], "params/")])
def test_features_are_those_of_googles_own_code(layout, root, save, tmp_path):
    model = flaxclip.load(save(layout, root=root))
    assert model.config.vision.head == (layout == "vision_transformer")
    assert (model.config.init_logit_bias is None) == (layout == "vision_transformer")
    with jax.default_matmul_precision("highest"):
        zimg = encode_image(model.variables, jnp.asarray(REFERENCE["images"]), model.spec)
        ztxt = encode_text(model.variables, jnp.asarray(REFERENCE["tokens"]), model.spec)
    np.testing.assert_allclose(zimg, REFERENCE[f"{layout}/zimg"], rtol=0, atol=2e-6)
    np.testing.assert_allclose(ztxt, REFERENCE[f"{layout}/ztxt"], rtol=0, atol=2e-6)
    np.testing.assert_allclose(model.logit_scale, REFERENCE[f"{layout}/t"][0], rtol=1e-6)
    np.testing.assert_array_equal(model.tokenize(CAPTIONS), REFERENCE["ids"])


def test_a_context_of_another_length_changes_nothing_but_what_is_cut(save):
    model = flaxclip.load(save("big_vision"))
    longer = dataclasses.replace(model.config.text, context_length=TEXT["positions"])
    longer = model.spec._replace(model=dataclasses.replace(model.config, text=longer))
    tokens = np.pad(REFERENCE["tokens"], ((0, 0), (0, TEXT["positions"] - CONTEXT_LENGTH)))
    expected = encode_text(model.variables, jnp.asarray(REFERENCE["tokens"]), model.spec)
    ours = encode_text(model.variables, jnp.asarray(tokens), longer)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="captions of 25 tokens"):
        encode_text(model.variables, jnp.pad(jnp.asarray(tokens), ((0, 0), (0, 1))), longer)


def test_the_vocabulary_comes_along_from_elsewhere(save, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source, files = save("big_vision"), fsspec.filesystem("memory")
    for path in (source, source.with_suffix(".txt")):
        files.pipe_file(f"/lit/{path.name}", path.read_bytes())
    model = flaxclip.load("memory://lit/LiT-tiny.npz")
    np.testing.assert_array_equal(model.tokenize(CAPTIONS), REFERENCE["ids"])
    with pytest.raises(InputError, match="RN50 has a ResNet"):
        flaxclip.load("memory://lit/LiT-tiny.npz", model="RN50")


def without(*names):
    return lambda tensors: {n: x for n, x in tensors.items() if n not in names}


def test_layers_may_have_the_numbers_of_before(save):
    expected = flaxclip.load(save("vision_transformer"))
    model = flaxclip.load(save("vision_transformer", with_old_numbers))
    jax.tree.map(np.testing.assert_array_equal, model.variables, expected.variables)
    name = "img/Transformer/encoderblock_1/LayerNorm_1/bias"
    mixed = with_old_numbers(random_tensors(shapes_of("vision_transformer")))
    with pytest.raises(InputError, match=r"tensor img/.* is missing"):
        flaxclip.load(save("vision_transformer", lambda _: mixed | {name: np.zeros(60, "f4")}))


LAYER = "txt/BertEncoder_0/encoder_block/layer_sequence/layers_1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("img/cls"), "the image tower has no class token"),
        (without("img/pos_embedding"), "no position embedding of its image tower"),
        (without("txt/head/bias"), "1 tensor missing: txt/head/bias"),
        (without("txt/head/kernel"), "tensor txt/head/kernel is missing"),
        (without(f"{LAYER}/mlp_block/layer_norm/scale"), "1 tensor missing: txt/BertEncoder_0"),
        (lambda t: t | {"txt/pooler/kernel": np.zeros((3, 3), "f4")}, "1 tensor unknown: txt/pool"),
        (lambda t: t | {"t": np.zeros(2, "f4")}, r"tensor t has shape \[2\]"),
        (
            lambda t: t | {f"{LAYER}/attention_block/attention_layer/key/bias": np.zeros(3, "f4")},
            r"key/bias has shape \[3\]",
        ),
        (lambda t: {n: x for n, x in t.items() if "Bert" not in n}, "the text tower is no BERT"),
    ],
)
def test_a_file_that_is_not_whole_or_of_another_kind_is_refused(change, message, save):
    with pytest.raises(InputError, match=message):
        flaxclip.load(save("big_vision", change))


@pytest.mark.parametrize("shape", [(), (0, 0), (1, 1, 1)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_shapes_that_cannot_be_are_refused_whichever_tensor_has_them(layout, shape):
    shapes = shapes_of(layout)
    for name in shapes:

        def recognise(name=name):
            tensors = lit_tensors(stored(shapes | {name: shape}))
            lit_table(spec_from_tensors(tensors).model, tensors).check(tensors)

        with pytest.raises(InputError):
            recognise()


@pytest.mark.parametrize("name", ["LiT-B16B", "LiT-B16B_2", "LiT-L16L"])
def test_a_published_size_is_recognised_from_its_shapes(name):
    """And every variable has its tensor."""
    config = VARIANTS[name].model
    layout = stored({"img/Transformer/posembed_input/pos_embedding": ()})
    table = lit_table(config, layout)
    tensors = stored(table.their_shapes())
    assert spec_from_tensors(lit_tensors(tensors)) == VARIANTS[name]
    ours = {path: b.our_shape() for b in table.bindings for path in b.our_names()}
    fresh = flatten_dict(abstract_variables(config), sep="/")
    assert ours == {path: leaf.shape for path, leaf in fresh.items()}
    # model_cards/lit.md, in whole millions.
    published = 638e6 if name == "LiT-L16L" else 196e6
    assert model_cost(config).parameters == pytest.approx(published, rel=5e-3)


def test_conversion_keeps_all_and_other_formats_refuse(save, tmp_path, capsys):
    source = save("vision_transformer")
    info(Info(str(source)))
    assert re.search("16 tokens of .*family bert", capsys.readouterr().out)
    convert(Convert(str(source), tmp_path / "out", "flaxclip"))
    before, after = flaxclip.load(source), flaxclip.load(tmp_path / "out")
    copy = str(tmp_path / "out" / "LiT-tiny.txt")
    assert after.spec == before.spec._replace(
        tokenizer=dataclasses.replace(before.spec.tokenizer, file=copy)
    )
    np.testing.assert_array_equal(after.tokenize(CAPTIONS), before.tokenize(CAPTIONS))
    jax.tree.map(np.testing.assert_array_equal, after.variables, before.variables)
    for to, reason in (("open_clip", "no model with LiT's towers"), ("huggingface", "for LiT")):
        with pytest.raises(InputError, match=reason):
            export(before.spec, before.variables, tmp_path / to, to, overwrite=False)
        assert not (tmp_path / to).exists()


def test_parameters_are_initialized_as_in_bert():
    text = TextConfig(16, 500, 192, 2, 3, family="bert", positions=64)
    tower = TextTransformer(text, 128)
    key, tokens = jax.random.key(0, impl="rbg"), jnp.zeros((1, 16), jnp.int32)
    params = jax.jit(tower.init)(key, tokens)["params"]
    for name, x in flatten_dict(nn.unbox(params), sep="/").items():
        x = np.asarray(x)
        if name.endswith("bias"):
            np.testing.assert_array_equal(x, 0)
        elif name.endswith("scale"):
            np.testing.assert_array_equal(x, 1)
        elif name != "projection/kernel":
            assert 0.038 < abs(x).max() <= 0.04, name


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("[CLS]", "[PAD]", "[UNK]"), r"has \[PAD\] in line 2"),
        (("[PAD]", "[UNK]", "a"), r"has no token \[CLS\]"),
        (("[PAD]", "[UNK]", "[CLS]", "a", "a"), "has a token twice"),
    ],
)
def test_what_is_no_vocabulary_of_bert_is_refused(lines, message, tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(lines))
    with pytest.raises(InputError, match=message):
        BertTokenizer(16, str(tmp_path / "vocab.txt"))


def test_a_caption_that_is_cut_is_told(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY))
    tokens, cut = BertTokenizer(4, str(tmp_path / "vocab.txt")).encode(["a b c", "a b c d"])
    assert cut.tolist() == [False, True]
    np.testing.assert_array_equal(tokens[0], tokens[1])
    assert tokens[0, 0] == VOCABULARY.index("[CLS]")
    with pytest.raises(InputError, match="needs a file with its vocabulary"):
        BertTokenizer(16, None)
