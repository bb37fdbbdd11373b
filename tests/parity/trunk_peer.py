"""Small image towers of timm beside open_clip's small text tower, for `trunk_cases`."""

import functools

import numpy as np
import open_clip.model
import open_clip.transformer
import timm.layers
import timm.models.convnext
import timm.models.eva
import timm.models.fastvit
import timm.models.vision_transformer
import timm.models.vision_transformer_hybrid
import timm.models.vitamin
import torch

from tests.parity.open_clip_cases import random_tensors, sampled
from tests.parity.trunk_cases import (
    ADAMW,
    CONVNEXT_CASES,
    EMBED_DIM,
    EVA_CASES,
    FASTVIT_CASES,
    MOBILE_VIT_CASES,
    OWN_CASES,
    TEXT,
    TIMM_VIT_CASES,
    VITAMIN_CASES,
)


class Peer(torch.nn.Module):
    """The modules, and the names, of open_clip's `CustomTextCLIP` with a `TimmModel`."""

    def __init__(self, trunk, head, **text):
        super().__init__()
        self.visual = torch.nn.Module()
        self.visual.trunk = trunk
        self.visual.head = head
        self.text = open_clip.transformer.TextTransformer(**TEXT, **text, output_dim=EMBED_DIM)
        self.logit_scale = torch.nn.Parameter(torch.zeros(()))

    def encode_image(self, pixels):
        return self.visual.head(self.visual.trunk(pixels))

    def encode_text(self, tokens):
        return self.text(tokens)


def _eva(case):
    norm = functools.partial(timm.layers.LayerNorm, eps=case.pop("norm_eps"))
    trunk = timm.models.eva.Eva(**case, num_classes=EMBED_DIM, norm_layer=norm)
    return trunk, torch.nn.Sequential()


def _timm_vit(case):
    norm = functools.partial(timm.layers.LayerNorm, eps=case.pop("norm_eps"))
    trunk = timm.models.vision_transformer.VisionTransformer(
        **case, num_classes=EMBED_DIM, norm_layer=norm
    )
    return trunk, torch.nn.Sequential()


def _convnext(case):
    kind = case.pop("proj")
    del case["image_size"]
    trunk = timm.models.convnext.ConvNeXt(**case, num_classes=0)
    width, head = case["dims"][-1], torch.nn.Sequential()
    if kind == "linear":
        head.proj = torch.nn.Linear(width, EMBED_DIM, bias=False)
    else:
        head.mlp = timm.layers.Mlp(width, 2 * EMBED_DIM, EMBED_DIM, bias=(True, False))
    return trunk, head


def _fastvit(case, large):
    stages = len(case["layers"])
    position = functools.partial(timm.models.fastvit.RepConditionalPosEnc, spatial_shape=(7, 7))
    settings = {"se_downsamples": (False, False, True, True)}
    if large:
        norm = functools.partial(timm.layers.LayerNorm2d, eps=1e-5)
        settings = {
            "se_downsamples": (False,) * stages, "downsamples": (False,) + (True,) * (stages - 1),
            "norm_layer": norm, "stem_use_scale_branch": False,
        }  # fmt: skip
    trunk = timm.models.fastvit.FastVit(
        layers=case["layers"],
        embed_dims=tuple(case["width"] * 2**stage for stage in range(stages)),
        mlp_ratios=(case["mlp_ratio"],) * stages,
        pos_embs=(None, None, None) + (position,) * (stages - 3),
        token_mixers=("repmixer",) * 3 + ("attention",) * (stages - 3),
        lkc_use_act=True,
        num_classes=EMBED_DIM,
        **settings,
    )
    return trunk, torch.nn.Sequential()


def _hybrid(case, backbone, **settings):
    return timm.models.vision_transformer.VisionTransformer(
        img_size=case["image_size"],
        patch_size=1,
        embed_dim=case["width"],
        depth=case["layers"],
        num_heads=case["heads"],
        embed_layer=functools.partial(timm.layers.HybridEmbed, backbone=backbone, proj=False),
        **settings,
    )


def _mobile_vit(case):
    width = case["width"]
    stem = timm.models.vision_transformer_hybrid.ConvStem(
        channels=(width // 4, width // 4, width),
        stride=(4, 2, 2),
        kernel_size=(4, 2, 2),
        padding=0,
        act_layer=torch.nn.GELU,
    )
    trunk = _hybrid(case, stem, no_embed_class=True, global_pool="token", num_classes=EMBED_DIM)
    return trunk, torch.nn.Sequential()


def _vitamin(case):
    stem_width = case["stem_width"]
    sizes = timm.models.vitamin.VitCfg(
        embed_dim=(stem_width, 2 * stem_width, case["width"]),
        depths=(2, 4, 1),
        stem_width=stem_width,
    )
    trunk = _hybrid(
        case,
        timm.models.vitamin.MbConvStages(sizes),
        class_token=False,
        global_pool="avg",
        num_classes=0,
        mlp_layer=timm.models.vitamin.GeGluMlp,
        mlp_ratio=2.0,
        pos_embed="learn" if case["positions"] else "none",
    )
    head = torch.nn.Sequential()
    head.proj = torch.nn.Linear(case["width"], EMBED_DIM, bias=False)
    return trunk, head


def _trunk(name):
    for make, cases in (
        (_eva, EVA_CASES),
        (_convnext, CONVNEXT_CASES),
        (functools.partial(_fastvit, large=name.endswith("large")), FASTVIT_CASES),
        (_mobile_vit, MOBILE_VIT_CASES),
        (_vitamin, VITAMIN_CASES),
    ):
        if name in cases:
            return make(dict(cases[name]))
    raise KeyError(name)


def make_peer(name):
    """The peer of a case, in float64, with the weights of `random_tensors`."""
    if name in TIMM_VIT_CASES or name in FASTVIT_CASES:
        trunk = _timm_vit(dict(TIMM_VIT_CASES[name])) if name in TIMM_VIT_CASES else _trunk(name)
        model = Peer(*trunk, no_causal_mask=True)
    elif name in OWN_CASES:
        case = OWN_CASES[name]
        model = open_clip.model.CLIP(EMBED_DIM, case["vision"], TEXT | case["text"])
    else:
        model = Peer(*_trunk(name))
    model = model.double().eval()
    shapes = {tensor: tuple(x.shape) for tensor, x in model.state_dict().items()}
    weights = {tensor: torch.tensor(x) for tensor, x in random_tensors(shapes).items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all("num_batches_tracked" in tensor for tensor in missing), missing
    return model


def embeddings(model, pixels, tokens):
    """Unit embeddings of both."""
    normalize = torch.nn.functional.normalize
    pixels, tokens = torch.tensor(pixels).double(), torch.tensor(tokens).long()
    return normalize(model.encode_image(pixels), dim=-1), normalize(
        model.encode_text(tokens), dim=-1
    )


def one_adamw_step(model, pixels, tokens):
    """The softmax loss in training mode, and samples of what one update changes."""
    model.train()
    parameters = dict(model.named_parameters())
    # What flaxclip decays: matrices and embeddings.
    groups = [
        {"params": [p], "weight_decay": ADAMW["weight_decay"] if decays(name, p) else 0.0}
        for name, p in parameters.items()
    ]
    before = {name: p.detach().clone() for name, p in parameters.items()}
    optimizer = torch.optim.AdamW(groups, **ADAMW)
    zimg, ztxt = embeddings(model, pixels, tokens)
    logits = model.logit_scale.exp() * zimg @ ztxt.T
    labels = torch.arange(len(logits))
    cross_entropy = torch.nn.functional.cross_entropy
    loss = (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2
    loss.backward()
    optimizer.step()
    yield "loss", loss.item()
    for name, p in parameters.items():
        change = (p.detach() - before[name]).numpy().ravel()
        yield f"change/{name}", change[sampled(change.size)].astype(np.float32)
    for name, statistic in model.named_buffers():
        if "running" in name:
            yield f"statistic/{name}", statistic.numpy().astype(np.float32)


def decays(name, parameter):
    """True for matrices, kernels and position embeddings."""
    return parameter.ndim >= 2 and not name.endswith(("cls_token", "latent", "gamma"))
