"""What both sides of a comparison with `CLIPModel` start from: sizes, weights and inputs.

NumPy alone, so that it can be imported where torch is and flaxclip is not, and the other way.
"""

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

# Every axis has a length of its own, so that two that are swapped cannot go unseen. Heads are not
# 64 channels wide and are not as many as their channels.
TINY = {
    "vision": {
        "image_size": 24,
        "patch_size": 8,
        "width": 60,
        "layers": 3,
        "heads": 4,
        "mlp_ratio": 2.5,
    },
    "text": {
        "context_length": 13,
        "vocab_size": 97,
        "width": 40,
        "layers": 2,
        "heads": 5,
        "mlp_ratio": 3.0,
    },
    "embed_dim": 28,
}
# Widths, heads, patches and context of ViT-B/32.
REAL_WIDTH = {
    "vision": {
        "image_size": 224,
        "patch_size": 32,
        "width": 768,
        "layers": 2,
        "heads": 12,
        "mlp_ratio": 4.0,
    },
    "text": {
        "context_length": 77,
        "vocab_size": 1000,
        "width": 512,
        "layers": 2,
        "heads": 8,
        "mlp_ratio": 4.0,
    },
    "embed_dim": 512,
}

# openai/CLIP, `clip/clip.py`.
MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])


def huggingface_config(case: Mapping[str, Any], activation: str) -> dict[str, Any]:
    """Arguments of `transformers.CLIPConfig`."""
    vision, text = case["vision"], case["text"]

    def tower(sizes: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "hidden_size": sizes["width"],
            "intermediate_size": int(sizes["width"] * sizes["mlp_ratio"]),
            "num_hidden_layers": sizes["layers"],
            "num_attention_heads": sizes["heads"],
            "hidden_act": activation,
        }

    return {
        "projection_dim": case["embed_dim"],
        "vision_config": tower(vision)
        | {"image_size": vision["image_size"], "patch_size": vision["patch_size"]},
        "text_config": tower(text)
        | {
            "max_position_embeddings": text["context_length"],
            "vocab_size": text["vocab_size"],
            "bos_token_id": text["vocab_size"] - 2,
            "eos_token_id": text["vocab_size"] - 1,
            "pad_token_id": 0,
        },
    }


def random_tensors(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """A value for every tensor of a `CLIPModel`, a function of its name and shape alone.

    Of a trained model's size: attention is far from uniform, norms and biases are not trivial.
    """
    tensors = {}
    for name, shape in shapes.items():
        # RandomState, not default_rng: NumPy promises that this one's numbers never change.
        normal = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
        if name == "logit_scale":
            value = np.log(20) + 0.1 * normal
        elif "norm" in name and name.endswith("weight"):
            value = 1 + 0.2 * normal
        elif len(shape) == 1:
            value = 0.2 * normal
        elif "token_embedding" in name or "position_embedding" in name:
            value = 0.5 * normal
        else:
            value = 1.5 * np.prod(shape[1:]) ** -0.5 * normal
        tensors[name] = np.asarray(value, np.float32)
    return tensors


def random_inputs(
    case: Mapping[str, Any], batch_size: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Images [b, h, w, 3], uint8, and tokens [b, l]: start, words, end, padding.

    Captions are between empty and as long as the context; the last but one is padded with the end
    token instead of 0, as Hugging Face's tokenizer does it.
    """
    random = np.random.RandomState(seed)
    side = case["vision"]["image_size"]
    length, vocab = case["text"]["context_length"], case["text"]["vocab_size"]
    images = random.randint(0, 256, (batch_size, side, side, 3)).astype(np.uint8)
    tokens = np.zeros((batch_size, length), np.int32)
    for row, words in zip(tokens, np.linspace(0, length - 2, batch_size).astype(int), strict=True):
        row[: words + 2] = [vocab - 2, *random.randint(1, vocab - 2, words), vocab - 1]
    tokens[-2, np.argmax(tokens[-2]) :] = vocab - 1
    return images, tokens


def pixel_values(images: np.ndarray) -> np.ndarray:
    """What `CLIPModel` reads: normalised floats [b, 3, h, w]."""
    return ((images / 255 - MEAN) / STD).transpose(0, 3, 1, 2).astype(np.float32)
