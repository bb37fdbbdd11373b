"""LiT's towers equal to `transformers`' BERT and timm's vision transformer; ids to tf.text's.

pip install torch transformers timm  # and tensorflow-text for the ids
python -m pytest tests/parity/test_lit_live.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxclip
from flaxclip.api import encode_image, encode_text
from flaxclip.data.tokenizers.bert import BertTokenizer
from tests.helpers.lit_tensors import LAYOUTS, shapes_of, with_old_numbers
from tests.parity.lit_cases import (
    CAPTIONS,
    EMBED_DIM,
    TEXT,
    VISION,
    VOCABULARY,
    random_inputs,
    random_tensors,
)

BERT = "txt/BertEncoder_0/"


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def their_texts(tensors, tokens):
    """`BertModel` without its pooler, in float64; then big_vision's head."""
    torch = pytest.importorskip("torch", reason="torch is a peer, not a requirement")
    transformers = pytest.importorskip("transformers", reason="transformers is a peer")
    config = transformers.BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=TEXT["width"],
        num_hidden_layers=TEXT["layers"],
        num_attention_heads=TEXT["heads"],
        intermediate_size=TEXT["mlp"],
        max_position_embeddings=TEXT["positions"],
        hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=1e-12,
    )
    model = transformers.BertModel(config, add_pooling_layer=False).double().eval()
    state = {}

    def put(theirs, ours):
        for kind, names in {"weight": ("kernel", "scale"), "bias": ("bias",)}.items():
            (x,) = (tensors[f"{BERT}{ours}/{n}"] for n in names if f"{BERT}{ours}/{n}" in tensors)
            state[f"{theirs}.{kind}"] = x.T

    for theirs, ours in (("word", "token"), ("position", "position"), ("token_type", "segment")):
        name = f"embedder/embedders_{ours}_ids/embedding"
        state[f"embeddings.{theirs}_embeddings.weight"] = tensors[BERT + name]
    put("embeddings.LayerNorm", "layer_norm")
    for layer in range(TEXT["layers"]):
        theirs, ours = f"encoder.layer.{layer}", f"encoder_block/layer_sequence/layers_{layer}"
        for part in ("query", "key", "value"):
            put(f"{theirs}.attention.self.{part}", f"{ours}/attention_block/attention_layer/{part}")
        put(f"{theirs}.attention.output.dense", f"{ours}/attention_block/dense_layer")
        put(f"{theirs}.attention.output.LayerNorm", f"{ours}/attention_block/layer_norm")
        put(f"{theirs}.intermediate.dense", f"{ours}/mlp_block/mlp/dense_layer")
        put(f"{theirs}.output.dense", f"{ours}/mlp_block/dense_layer")
        put(f"{theirs}.output.LayerNorm", f"{ours}/mlp_block/layer_norm")
    model.load_state_dict({n: torch.tensor(x).double() for n, x in state.items()}, strict=True)
    ids = torch.tensor(tokens).long()
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state[:, 0]
    return unit(out.numpy() @ tensors["txt/head/kernel"] + tensors["txt/head/bias"])


def their_images(path, tensors, images, prefix):
    """timm's vision transformer, which reads Google's checkpoints itself."""
    torch = pytest.importorskip("torch", reason="torch is a peer, not a requirement")
    timm = pytest.importorskip("timm", reason="timm is a peer, not a requirement")
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=VISION["image_size"],
        patch_size=VISION["patch_size"],
        embed_dim=VISION["width"],
        depth=VISION["layers"],
        num_heads=VISION["heads"],
        mlp_ratio=VISION["mlp"] / VISION["width"],
        num_classes=EMBED_DIM if "img/head/kernel" in tensors else 0,
        act_layer=timm.layers.GELUTanh,
        no_embed_class=prefix.startswith("params/"),
    )
    model.load_pretrained(str(path), prefix=prefix)
    pixels = (images / 255 * 2 - 1).transpose(0, 3, 1, 2)
    with torch.no_grad():
        return unit(model.double().eval()(torch.tensor(pixels)).numpy())


@pytest.fixture(params=LAYOUTS)
def lit(request, tmp_path):
    """The tensors, the file that they are in, and what they are named under there."""
    tensors = random_tensors(shapes_of(request.param))
    root = "params/" if request.param == "big_vision" else ""
    np.savez(tmp_path / "LiT.npz", **{root + name: x for name, x in tensors.items()})
    return tensors, tmp_path / "LiT.npz", root


def test_embeddings_of_texts_are_the_same(lit):
    tensors, path, _ = lit
    _, tokens = random_inputs()
    expected = their_texts(tensors, tokens)
    model = flaxclip.load(path)
    with jax.default_matmul_precision("highest"):
        ztxt = encode_text(model.variables, jnp.asarray(tokens), model.spec)
    np.testing.assert_allclose(ztxt, expected, rtol=0, atol=1e-5)


def test_embeddings_of_images_are_the_same(lit):
    tensors, path, root = lit
    images, _ = random_inputs()
    if not root:  # timm knows this layout by the numbers that the oldest files have
        np.savez(path, **with_old_numbers(tensors))
    expected = their_images(path, tensors, images, f"{root}img/")
    model = flaxclip.load(path)
    with jax.default_matmul_precision("highest"):
        zimg = encode_image(model.variables, jnp.asarray(images), model.spec)
    np.testing.assert_allclose(zimg, expected, rtol=0, atol=1e-5)


def test_ids_are_those_of_transformers_bert_for_plain_captions(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is a peer")
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    theirs = transformers.BertTokenizer(str(tmp_path / "vocab.txt"), do_lower_case=True)
    ours = BertTokenizer(16, str(tmp_path / "vocab.txt"))
    for caption in ("", "A photo of the DOGS", "dogs, cats & a dog's café!", "don't-stop 猫"):
        ids = [i for i in theirs(caption)["input_ids"] if i != VOCABULARY.index("[SEP]")]
        assert ours([caption])[0].tolist() == (ids + [0] * 16)[:16], caption


def test_ids_are_those_of_tensorflow_text_for_every_letter(tmp_path):
    tf = pytest.importorskip("tensorflow", reason="TensorFlow is a peer, not a requirement")
    tf_text = pytest.importorskip("tensorflow_text", reason="tf.text is a peer")
    import unicodedata

    letters = [chr(i) for i in range(1, 0x30000) if unicodedata.category(chr(i)) not in _UNASSIGNED]
    texts = [*CAPTIONS, *(f"a{letter}Y" for letter in letters)]
    folded = {x for text in texts for x in unicodedata.normalize("NFKD", text.casefold())}
    folded |= {x for text in folded for x in unicodedata.normalize("NFKD", text.casefold())}
    pieces = sorted(folded - {"\n", "\r"})
    tokens = dict.fromkeys([*VOCABULARY, *pieces, *(f"##{piece}" for piece in pieces)])
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n")
    tokenizer = tf_text.BertTokenizer(
        str(tmp_path / "vocab.txt"), token_out_type=tf.int32, lower_case=True
    )
    padded, _ = tf_text.pad_model_inputs(tokenizer.tokenize(tf.constant(texts)), 15)
    ours = BertTokenizer(16, str(tmp_path / "vocab.txt"))(texts)[:, 1:]
    wrong = np.flatnonzero((ours != padded.numpy()).any(axis=1))
    # One mark that Unicode has classified anew since tf.text's ICU.
    assert {texts[i] for i in wrong} <= {"a\U0001171eY"}


_UNASSIGNED = ("Cn", "Co", "Cs")
