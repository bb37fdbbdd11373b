"""Peers' state dicts -> our variables, spelled out: what the models are compared with.

Independent of `flaxclip.interop`, so that a mistake there cannot hide one in the models.
"""

import numpy as np
from einops import rearrange
from flax.traverse_util import unflatten_dict

# Ours: theirs and how its axes are turned; {i} is the layer.
OPEN_CLIP_BLOCK = {
    "ln_1/scale": ("ln_1.weight", "l w -> l w"),
    "ln_1/bias": ("ln_1.bias", "l w -> l w"),
    "attention/qkv/kernel": ("attn.in_proj_weight", "l (qkv h k) w -> l w h qkv k"),
    "attention/qkv/bias": ("attn.in_proj_bias", "l (qkv h k) -> l h qkv k"),
    "attention/out/kernel": ("attn.out_proj.weight", "l w (h k) -> l h k w"),
    "attention/out/bias": ("attn.out_proj.bias", "l w -> l w"),
    "ln_2/scale": ("ln_2.weight", "l w -> l w"),
    "ln_2/bias": ("ln_2.bias", "l w -> l w"),
    "mlp/fc1/kernel": ("mlp.c_fc.weight", "l o w -> l w o"),
    "mlp/fc1/bias": ("mlp.c_fc.bias", "l o -> l o"),
    "mlp/fc2/kernel": ("mlp.c_proj.weight", "l o w -> l w o"),
    "mlp/fc2/bias": ("mlp.c_proj.bias", "l o -> l o"),
}
TIMM_NAMES = {
    "ln_1": "norm1", "ln_2": "norm2", "attn.in_proj_": "attn.qkv.", "attn.out_proj": "attn.proj",
    "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
}  # fmt: skip
TRANSFORMERS_NAMES = {
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj",
    "attn.in_proj_": "self_attn.in_proj.", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
}  # fmt: skip


def _blocks(tensors, prefix, tower, names=None):
    """Stacked blocks, whose tensors begin with `prefix`, such as visual.transformer.resblocks."""
    blocks = {}
    for ours, (theirs, axes) in OPEN_CLIP_BLOCK.items():
        for old, new in (names or {}).items():
            theirs = theirs.replace(old, new)
        stack = [tensors[f"{prefix}.{i}.{theirs}"] for i in range(tower.layers)]
        sizes = {"h": tower.heads, "qkv": 3} if "qkv" in axes else {"h": tower.heads}
        blocks[ours] = rearrange(stack, axes, **{k: v for k, v in sizes.items() if k in axes})
    return {f"transformer/blocks/{name}": x for name, x in blocks.items()}


def _norm(ours, theirs, tensors):
    return {f"{ours}/scale": tensors[f"{theirs}.weight"], f"{ours}/bias": tensors[f"{theirs}.bias"]}


def _dense(ours, theirs, tensors, heads_in=None, heads_out=None):
    """A linear layer; with heads, of which there is an axis on one side."""
    kernel, bias = tensors[f"{theirs}.weight"].T, tensors[f"{theirs}.bias"]
    if heads_out:
        kernel = rearrange(kernel, "i (h k) -> i h k", h=heads_out)
        bias = rearrange(bias, "(h k) -> h k", h=heads_out)
    if heads_in:
        kernel = rearrange(kernel, "(h k) o -> h k o", h=heads_in)
    return {f"{ours}/kernel": kernel, f"{ours}/bias": bias}


def _under(prefix, flat):
    return {f"{prefix}/{name}": x for name, x in flat.items()}


def _open_clip_text(tensors, config, prefix=""):
    def at(name):
        return tensors[prefix + name]

    flat = {
        "token_embedding": at("token_embedding.weight"),
        "position_embedding": at("positional_embedding"),
        **_blocks(tensors, f"{prefix}transformer.resblocks", config.text),
        **_norm("ln_final", f"{prefix}ln_final", tensors),
    }
    if config.text.family == "siglip":
        return flat | _dense("projection", f"{prefix}text_projection", tensors)
    return flat | {"projection/kernel": at("text_projection")}


def _open_clip_vit(tensors, config):
    return {
        "class_embedding": tensors["visual.class_embedding"],
        "patch_embedding/kernel": rearrange(tensors["visual.conv1.weight"], "w c p q -> (p q c) w"),
        "position_embedding": tensors["visual.positional_embedding"],
        **_norm("ln_pre", "visual.ln_pre", tensors),
        **_blocks(tensors, "visual.transformer.resblocks", config.vision),
        **_norm("ln_post", "visual.ln_post", tensors),
        "projection/kernel": tensors["visual.proj"],
    }


def _open_clip_resnet(tensors, config):
    """Parameters and running statistics, flat."""
    params, stats = {}, {}

    def conv_norm(ours, conv, norm, blocks=None):
        def get(name):
            if blocks is None:
                return tensors[f"visual.{name}"]
            return np.stack([tensors[f"visual.{name}".format(i)] for i in blocks])

        axes = "o i h w -> h w i o" if blocks is None else "l o i h w -> l h w i o"
        params[f"{ours}/conv/kernel"] = rearrange(get(f"{conv}.weight"), axes)
        params[f"{ours}/bn/scale"] = get(f"{norm}.weight")
        params[f"{ours}/bn/bias"] = get(f"{norm}.bias")
        stats[f"{ours}/bn/mean"] = get(f"{norm}.running_mean")
        stats[f"{ours}/bn/var"] = get(f"{norm}.running_var")

    for n in (1, 2, 3):
        conv_norm(f"stem/conv{n}", f"conv{n}", f"bn{n}")
        for stage, layers in enumerate(config.vision.layers, 1):
            conv_norm(
                f"stage{stage}/first/conv{n}", f"layer{stage}.0.conv{n}", f"layer{stage}.0.bn{n}"
            )
            if layers > 1:
                rest = f"layer{stage}.{{}}."
                conv_norm(
                    f"stage{stage}/rest/conv{n}", f"{rest}conv{n}", f"{rest}bn{n}", range(1, layers)
                )
    for stage in (1, 2, 3, 4):
        downsample = f"layer{stage}.0.downsample"
        conv_norm(f"stage{stage}/first/shortcut", f"{downsample}.0", f"{downsample}.1")
    params["position_embedding"] = tensors["visual.attnpool.positional_embedding"]
    heads = config.vision.heads
    for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v")):
        params |= _dense(f"pool/{ours}", f"visual.attnpool.{theirs}_proj", tensors, heads_out=heads)
    params |= _dense("pool/out", "visual.attnpool.c_proj", tensors, heads_in=heads)
    return params, stats


def from_open_clip(tensors, config):
    """Variables of open_clip's `CLIP` with `VisionTransformer` or `ModifiedResNet`."""
    stats = {}
    if hasattr(config.vision, "frozen_statistics"):
        vision, stats = _open_clip_resnet(tensors, config)
    else:
        vision = _open_clip_vit(tensors, config)
    flat = _under("params/vision", vision)
    flat |= _under("params/text", _open_clip_text(tensors, config))
    flat |= _under("batch_stats/vision", stats)
    flat["params/logit_scale"] = tensors["logit_scale"]
    return unflatten_dict(flat, sep="/")


def _map_head(tensors, config, theirs, qkv, names):
    """A MAP head; `qkv` gives weight and bias of the three projections, joint."""
    heads = config.vision.heads
    weights, biases = (np.split(x, 3) for x in qkv)
    split = {}
    for name, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
        split[f"{name}.weight"], split[f"{name}.bias"] = weight, bias
    flat = {"probe": tensors[f"{theirs}.{names['probe']}"][0]}
    for name in ("query", "key", "value"):
        flat |= _dense(f"attention/{name}", name, split, heads_out=heads)
    flat |= _dense("attention/out", f"{theirs}.{names['out']}", tensors, heads_in=heads)
    flat |= _norm("ln", f"{theirs}.{names['ln']}", tensors)
    for fc in ("fc1", "fc2"):
        flat |= _dense(f"mlp/{fc}", f"{theirs}.mlp.{fc}", tensors)
    return _under("pool", flat)


def from_timm_siglip(tensors, config):
    """Variables of open_clip's `CustomTextCLIP` with timm's image tower."""
    trunk = "visual.trunk"
    pool = f"{trunk}.attn_pool"
    qkv = [
        np.concatenate([tensors[f"{pool}.q.{kind}"], tensors[f"{pool}.kv.{kind}"]])
        for kind in ("weight", "bias")
    ]
    vision = {
        "patch_embedding/kernel": rearrange(
            tensors[f"{trunk}.patch_embed.proj.weight"], "w c p q -> (p q c) w"
        ),
        "patch_embedding/bias": tensors[f"{trunk}.patch_embed.proj.bias"],
        "position_embedding": tensors[f"{trunk}.pos_embed"][0],
        **_blocks(tensors, f"{trunk}.blocks", config.vision, TIMM_NAMES),
        **_norm("ln_post", f"{trunk}.norm", tensors),
        **_map_head(tensors, config, pool, qkv, {"probe": "latent", "out": "proj", "ln": "norm"}),
    }
    flat = _under("params/vision", vision)
    flat |= _under("params/text", _open_clip_text(tensors, config, "text."))
    for name in ("logit_scale", "logit_bias"):
        flat[f"params/{name}"] = tensors[name]
    return unflatten_dict(flat, sep="/")


def from_transformers_siglip(tensors, config):
    """Variables of `SiglipModel` or of `Siglip2Model`, whose patches come flattened."""
    tensors = dict(tensors)
    for name in list(tensors):
        for kind in ("weight", "bias"):
            if name.endswith(f"self_attn.q_proj.{kind}"):
                stem = name.removesuffix(f"q_proj.{kind}")
                tensors[f"{stem}in_proj.{kind}"] = np.concatenate(
                    [tensors[f"{stem}{x}_proj.{kind}"] for x in "qkv"]
                )
    patches = tensors["vision_model.embeddings.patch_embedding.weight"]
    patches = rearrange(patches, "w c p q -> (p q c) w") if patches.ndim == 4 else patches.T
    head = "vision_model.head"
    qkv = [tensors[f"{head}.attention.in_proj_{kind}"] for kind in ("weight", "bias")]
    vision = {
        "patch_embedding/kernel": patches,
        "patch_embedding/bias": tensors["vision_model.embeddings.patch_embedding.bias"],
        "position_embedding": tensors["vision_model.embeddings.position_embedding.weight"],
        **_blocks(tensors, "vision_model.encoder.layers", config.vision, TRANSFORMERS_NAMES),
        **_norm("ln_post", "vision_model.post_layernorm", tensors),
        **_map_head(
            tensors,
            config,
            head,
            qkv,
            {"probe": "probe", "out": "attention.out_proj", "ln": "layernorm"},
        ),
    }
    vision["pool/probe"] = vision["pool/probe"].reshape(1, -1)
    text = {
        "token_embedding": tensors["text_model.embeddings.token_embedding.weight"],
        "position_embedding": tensors["text_model.embeddings.position_embedding.weight"],
        **_blocks(tensors, "text_model.encoder.layers", config.text, TRANSFORMERS_NAMES),
        **_norm("ln_final", "text_model.final_layer_norm", tensors),
        **_dense("projection", "text_model.head", tensors),
    }
    flat = _under("params/vision", vision) | _under("params/text", text)
    for name in ("logit_scale", "logit_bias"):
        flat[f"params/{name}"] = tensors[name].reshape(())
    return unflatten_dict(flat, sep="/")
