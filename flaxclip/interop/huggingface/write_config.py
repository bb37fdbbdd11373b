"""A model -> JSON files of a transformers directory; the way back is `read_config.py`."""

from typing import Any

from flaxclip.interop.huggingface.read_config import ACTIVATIONS, PIL_BICUBIC, PIL_BILINEAR
from flaxclip.models.clip import CLIPConfig
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.variants import ModelSpec
from flaxclip.models.vision_transformer import ViTConfig


def huggingface_json(config: CLIPConfig) -> dict[str, Any]:
    """The contents of `config.json` for a `CLIPModel` or `SiglipModel` like `config`."""
    names = {ours: theirs for theirs, ours in ACTIVATIONS.items()}

    def tower(sizes: ViTConfig | TextConfig) -> dict[str, Any]:
        return {
            "hidden_size": sizes.width,
            "intermediate_size": sizes.mlp_width,
            "num_hidden_layers": sizes.layers,
            "num_attention_heads": sizes.heads,
            "hidden_act": names[sizes.activation],
            "layer_norm_eps": sizes.norm_eps,
        }

    vision, text = config.vision, config.text
    assert isinstance(vision, ViTConfig), "`huggingface_table` has refused a ResNet"
    vision_config = tower(vision) | {
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
    }
    text_config = tower(text) | {
        "max_position_embeddings": text.context_length,
        "vocab_size": text.vocab_size,
    }
    if text.family == "clip":
        # The last two ids of CLIP's vocabulary; captions are read out at the first end marker.
        text_config |= {
            "bos_token_id": text.vocab_size - 2,
            "eos_token_id": text.vocab_size - 1,
            "pad_token_id": text.vocab_size - 1,
        }
        kind = {
            "architectures": ["CLIPModel"],
            "model_type": "clip",
            "projection_dim": config.embed_dim,
            "logit_scale_init_value": config.init_logit_scale,
        }
        vision_config["model_type"] = "clip_vision_model"
        text_config["model_type"] = "clip_text_model"
        for part in (vision_config, text_config):
            part["projection_dim"] = config.embed_dim
    else:
        kind = {"architectures": ["SiglipModel"], "model_type": "siglip"}
        vision_config["model_type"] = "siglip_vision_model"
        text_config["model_type"] = "siglip_text_model"
        text_config["projection_size"] = config.embed_dim
    return {
        **kind,
        "text_config": text_config,
        "vision_config": vision_config,
        "torch_dtype": "float32",
    }


def processor_json(spec: ModelSpec) -> dict[str, Any]:
    """The contents of `preprocessor_config.json`: how images are prepared for `spec`."""
    side, preprocess = spec.model.vision.image_size, spec.preprocess
    crops = preprocess.resize == "shortest"
    siglip = spec.model.text.family == "siglip"
    return {
        "image_processor_type": "SiglipImageProcessor"
        if siglip and not crops
        else "CLIPImageProcessor",
        "processor_class": "SiglipProcessor" if siglip else "CLIPProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": side} if crops else {"height": side, "width": side},
        "resample": PIL_BICUBIC if preprocess.interpolation == "bicubic" else PIL_BILINEAR,
        "do_center_crop": crops,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }
