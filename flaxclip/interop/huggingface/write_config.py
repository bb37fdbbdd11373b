"""A model -> JSON files of a transformers directory; the way back is `read_config.py`."""

from typing import Any

from flaxclip.data.tokenizers.clip import CLIPTokenizer
from flaxclip.interop.huggingface.read_config import ACTIVATIONS
from flaxclip.interop.huggingface.read_processor import PIL_BICUBIC, PIL_BILINEAR
from flaxclip.interop.huggingface.tips import has_tips, tips_json
from flaxclip.models.spec import ModelSpec
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.vision_transformer import ViTConfig


def huggingface_json(spec: ModelSpec) -> dict[str, Any]:
    """The contents of `config.json` for a model like `spec`."""
    config = spec.model
    if has_tips(config):
        return tips_json(spec)
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
        # The last two ids of CLIP's vocabulary; captions are read out at the first end marker. A
        # table of embeddings may have rows after those that its tokenizer uses.
        end = min(text.vocab_size, CLIPTokenizer.vocab_size) - 1
        text_config |= {"bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}
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
        if text.end_id is not None:
            # mT5's vocabulary has padding first and no start, XLM-V's the start.
            ids = (None, 0) if text.end_id == 1 else (0, 1)
            text_config |= {"bos_token_id": ids[0], "pad_token_id": ids[1]}
            text_config |= {"eos_token_id": text.end_id}
            kind |= {"architectures": ["MetaClip2Model"], "model_type": "metaclip_2"}
            vision_config["model_type"] = "metaclip_2_vision_model"
            text_config["model_type"] = "metaclip_2_text_model"
    else:
        kind = {"architectures": ["SiglipModel"], "model_type": "siglip"}
        vision_config["model_type"] = "siglip_vision_model"
        text_config["model_type"] = "siglip_text_model"
        text_config["projection_size"] = config.embed_dim
        if spec.preprocess.resize == "native":
            kind = {"architectures": ["Siglip2Model"], "model_type": "siglip2"}
            del vision_config["image_size"]
            vision_config |= {"model_type": "siglip2_vision_model", "num_patches": vision.grid**2}
            text_config["model_type"] = "siglip2_text_model"
    return {
        **kind,
        "text_config": text_config,
        "vision_config": vision_config,
        "torch_dtype": "float32",
    }


def processor_json(spec: ModelSpec) -> dict[str, Any]:
    """The contents of `preprocessor_config.json`: how images are prepared for `spec`."""
    side, preprocess = spec.model.vision.image_size, spec.preprocess
    values = {
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": PIL_BICUBIC if preprocess.interpolation == "bicubic" else PIL_BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }
    if preprocess.resize == "native":
        return values | {
            "image_processor_type": "Siglip2ImageProcessor",
            "processor_class": "Siglip2Processor",
            "patch_size": spec.model.vision.patch_size,
            "max_num_patches": preprocess.max_patches or spec.model.vision.grid**2,
        }
    if has_tips(spec.model):
        normalises = (preprocess.mean, preprocess.std) != ((0.0,) * 3, (1.0,) * 3)
        return values | {
            "image_processor_type": "Tipsv2ImageProcessor",
            "processor_class": "Tipsv2Processor",
            "do_normalize": normalises,
            "size": {"height": side, "width": side},
        }
    crops = preprocess.resize == "shortest"
    siglip = spec.model.text.family == "siglip"
    return values | {
        "image_processor_type": "SiglipImageProcessor"
        if siglip and not crops
        else "CLIPImageProcessor",
        "processor_class": "SiglipProcessor" if siglip else "CLIPProcessor",
        "size": {"shortest_edge": side} if crops else {"height": side, "width": side},
        "do_center_crop": crops,
        "crop_size": {"height": side, "width": side},
    }
