"""Write tests/golden/lit_reference.npz: what Google's own code makes of random LiTs and of texts.

    pip install jax flax ml_collections pandas tqdm aqtp tensorflow-text
    for repository in google/flaxformer google-research/vision_transformer \
            google-research/big_vision; do git clone https://github.com/$repository; done
    PYTHONPATH=flaxformer:vision_transformer:big_vision python tests/parity/lit_reference.py

Needs nothing of flaxclip, so that the expected numbers cannot come from the code under test.
"""

import dataclasses
import pathlib
import tempfile

import jax
import ml_collections
import numpy as np
from big_vision.models.proj.image_text import two_towers
from flax.traverse_util import flatten_dict, unflatten_dict
from flaxformer.architectures.bert import configs
from lit_cases import (
    CAPTIONS,
    CONTEXT_LENGTH,
    EMBED_DIM,
    TEXT,
    VISION,
    VOCABULARY,
    random_inputs,
    random_tensors,
)
from vit_jax import models_lit, preprocess


def small_bert():
    """Both repositories know BERT's two published sizes alone, and look them up here."""
    published = configs.BertBaseConfig()
    small = dataclasses.replace(
        published,
        hidden_size=TEXT["width"],
        intermediate_dim=TEXT["mlp"],
        num_hidden_layers=TEXT["layers"],
        num_attention_heads=TEXT["heads"],
        vocab_size=len(VOCABULARY),
        max_length=TEXT["positions"],
    )
    configs.BertBaseConfig = lambda: small


def vision_transformers_lit():
    """LiT-B16B with its head, in the layout of google-research/vision_transformer."""
    image = {
        "patches": {"size": (VISION["patch_size"],) * 2},
        "hidden_size": VISION["width"],
        "transformer": {
            "mlp_dim": VISION["mlp"],
            "num_heads": VISION["heads"],
            "num_layers": VISION["layers"],
        },
    }
    return models_lit.LitModel(
        image=ml_collections.FrozenConfigDict(image),
        text_model="bert",
        text=ml_collections.FrozenConfigDict({"config": "base"}),
        pp=ml_collections.FrozenConfigDict({}),
        out_dim=(EMBED_DIM, EMBED_DIM),
        model_name="LiT-B16B",
    )


def big_visions_lit():
    """Without a head, and with a logit bias: what big_vision's siglip_lit_coco.py trains."""
    return two_towers.Model(
        image={
            "patch_size": (VISION["patch_size"],) * 2,
            "width": VISION["width"],
            "depth": VISION["layers"],
            "mlp_dim": VISION["mlp"],
            "num_heads": VISION["heads"],
            "pool_type": "tok",
        },
        text={"config": "base"},
        text_model="proj.flaxformer.bert",
        out_dim=(None, VISION["width"]),
        temperature_init=10.0,
        bias_init=-2.71,
    )


def main():
    jax.config.update("jax_default_matmul_precision", "highest")
    small_bert()
    images, tokens = random_inputs()
    pixels = np.asarray(images / 255 * 2 - 1, np.float32)
    arrays = {"images": images, "tokens": tokens}
    models = {"vision_transformer": vision_transformers_lit(), "big_vision": big_visions_lit()}
    for name, model in models.items():
        inputs = {"images": pixels, "tokens": tokens}
        if name == "big_vision":
            inputs = {"image": pixels, "text": tokens}
        fresh = jax.eval_shape(lambda m=model, i=inputs: m.init(jax.random.key(0), **i))["params"]
        shapes = {path: leaf.shape for path, leaf in flatten_dict(fresh, sep="/").items()}
        params = unflatten_dict(random_tensors(shapes), sep="/")
        zimg, ztxt, out = jax.jit(model.apply)({"params": params}, **inputs)
        arrays[f"{name}/tensors"] = np.array([f"{path} {list(s)}" for path, s in shapes.items()])
        arrays[f"{name}/zimg"], arrays[f"{name}/ztxt"] = zimg, ztxt
        arrays[f"{name}/t"] = out["t"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(VOCABULARY) + "\n")
        file.flush()
        tokenizer = preprocess.BertTokenizer(vocab_path=file.name, max_len=CONTEXT_LENGTH)
        arrays["ids"] = tokenizer(list(CAPTIONS))
    path = pathlib.Path(__file__).parents[1] / "golden" / "lit_reference.npz"
    np.savez_compressed(path, **arrays)
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
