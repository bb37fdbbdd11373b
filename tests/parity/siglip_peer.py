"""SigLIP of transformers, in the two sizes that it is compared in; imports torch."""

import pytest
from einops import rearrange

from tests.parity.clip_cases import pixel_values
from tests.parity.open_clip_cases import SIGLIP, TEXT

torch = pytest.importorskip("torch", reason="torch is a peer, not a requirement")
transformers = pytest.importorskip("transformers", reason="transformers is a peer")

# Widths, heads and context of ViT-SO400M-14-SigLIP; the odd one of the family.
SO400M = {
    "vision": {
        "image_size": 56,
        "patch_size": 14,
        "width": 1152,
        "layers": 1,
        "heads": 16,
        "mlp_ratio": 4304 / 1152,
    },
    "text": {
        "context_length": 16,
        "vocab_size": 500,
        "width": 1152,
        "layers": 1,
        "heads": 16,
        "mlp_ratio": 4304 / 1152,
    },
}
TINY = {"vision": SIGLIP | {"image_size": 28}, "text": TEXT}


def their_config(case, version):
    def tower(sizes):
        return {
            "hidden_size": sizes["width"],
            "intermediate_size": round(sizes["width"] * sizes["mlp_ratio"]),
            "num_hidden_layers": sizes["layers"],
            "num_attention_heads": sizes["heads"],
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
        }

    vision, text = case["vision"], case["text"]
    grid = vision["image_size"] // vision["patch_size"]
    image = {"num_patches": grid**2} if version == 2 else {"image_size": vision["image_size"]}
    kind = transformers.SiglipConfig if version == 1 else transformers.Siglip2Config
    return kind(
        vision_config=tower(vision) | image | {"patch_size": vision["patch_size"]},
        text_config=tower(text)
        | {
            "max_position_embeddings": text["context_length"],
            "vocab_size": text["vocab_size"],
            "projection_size": vision["width"],
        },
    )


def call_theirs(model, version, case, images, tokens):
    pixels = torch.tensor(pixel_values(images)).double()
    inputs = {"input_ids": torch.tensor(tokens).long(), "pixel_values": pixels}
    if version == 2:
        # A fixed resolution: every image has all patches.
        p = case["vision"]["patch_size"]
        grid = case["vision"]["image_size"] // p
        patches = rearrange(pixels, "b c (h p) (w q) -> b (h w) (p q c)", p=p, q=p)
        inputs |= {
            "pixel_values": patches,
            "spatial_shapes": torch.tensor([[grid, grid]] * len(images)),
            "pixel_attention_mask": torch.ones(patches.shape[:2], dtype=torch.int64),
        }
    with torch.no_grad():
        return model(**inputs)
