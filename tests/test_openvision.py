"""OpenVision's configurations are those of its repository, and are written as they are read."""

import hashlib
import json

import pytest

from flaxclip.interop.open_clip.read_config import read_config
from flaxclip.interop.open_clip.write_config import open_clip_json
from flaxclip.models.variants import VARIANTS

NAMES = [name for name in VARIANTS if name.startswith("openvision")]
# UCSC-VLAA/OpenVision, `src/convert_upload/open_clip/model_configs/`: names and sizes.
SIZES = {
    # width, layers, channels of a head and mlp_ratio of the image tower; width, heads and layers
    # of the text tower
    "tiny": (192, 12, 64, None, 192, 3, 12),
    "small": (384, 12, 64, None, 384, 6, 12),
    "base": (768, 12, 64, None, 512, 8, 12),
    "large": (1024, 24, 64, None, 768, 12, 12),
    "so400m": (1152, 27, 72, 3.7362, 1152, 16, 27),
    "huge": (1280, 32, 80, None, 1024, 16, 24),
}


def published(name):
    """The configuration of a name, as the repository has it."""
    _, _, size, patch, side = name.split("-")
    width, layers, head_width, ratio, text_width, heads, text_layers = SIZES[size]
    more = {} if ratio is None else {"mlp_ratio": ratio}
    norm = {"norm_kwargs": {"eps": 1e-06}}
    vision = {
        "image_size": int(side), "layers": layers, "width": width, "head_width": head_width,
        "patch_size": int(patch.removeprefix("patch")), "no_ln_pre": True, "pool_type": "avg",
        "final_ln_after_pool": True,
    }  # fmt: skip
    text = {
        "context_length": 80, "vocab_size": 32000, "hf_tokenizer_name": "bert-base-uncased",
        "tokenizer_kwargs": {"strip_sep_token": True}, "width": text_width, "heads": heads,
        "layers": text_layers, "pool_type": "last", "no_causal_mask": True,
        "act_kwargs": {"approximate": "tanh"},
    }  # fmt: skip
    model = {
        "embed_dim": text_width,
        "vision_cfg": vision | norm | more,
        "text_cfg": text | norm | more,
    }
    preprocess = {
        "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "interpolation": "bilinear",
        "resize_mode": "squash",
    }  # fmt: skip
    return {"model_cfg": model, "preprocess_cfg": preprocess}


def test_the_table_above_is_the_repositorys():
    """By a digest of its 26 files."""
    content = json.dumps({name: published(name) for name in sorted(NAMES)}, sort_keys=True)
    assert len(NAMES) == 26
    assert hashlib.sha256(content.encode()).hexdigest()[:16] == "d6f560d7af51d066"


@pytest.mark.parametrize("name", NAMES)
def test_named_models_are_the_published_ones(name, tmp_path):
    path = tmp_path / "open_clip_config.json"
    for content in (published(name), open_clip_json(VARIANTS[name])):
        path.write_text(json.dumps(content))
        assert read_config(path) == VARIANTS[name]
