"""Write tests/golden/open_clip_reference.npz: what open_clip and timm compute from random weights.

    pip install open_clip_torch torchvision && python tests/parity/open_clip_reference.py

Needs nothing of flaxclip, so that the expected numbers cannot come from the code under test.
Everything is computed in float64: the reference has no rounding of its own.
"""

import functools
import json
import pathlib
import types

import numpy as np
import open_clip
import open_clip.model
import open_clip.transformer
import timm.models.vision_transformer
import torch
from clip_cases import pixel_values, random_inputs
from open_clip_cases import (
    ADAMW,
    BIGG,
    CASES,
    EMBED_DIM,
    RESNET,
    RESNET_INPUTS,
    SIGLIP,
    TEXT,
    random_tensors,
    sampled,
)

BATCH_SIZE = 6


def clip_model(vision):
    text = open_clip.model.CLIPTextCfg(**TEXT)
    return open_clip.model.CLIP(EMBED_DIM, open_clip.model.CLIPVisionCfg(**vision), text)


def resnet():
    return clip_model(RESNET | {"layers": list(RESNET["layers"]), "patch_size": None})


def big_g():
    sizes = {name: x for name, x in BIGG.items() if name != "heads"}
    return clip_model(sizes | {"head_width": BIGG["width"] // BIGG["heads"]})


class SigLIP(torch.nn.Module):
    """The modules, and the names, that open_clip's ViT-*-SigLIP models are made of."""

    def __init__(self):
        super().__init__()
        self.visual = torch.nn.Module()
        self.visual.trunk = timm.models.vision_transformer.VisionTransformer(
            img_size=SIGLIP["image_size"],
            patch_size=SIGLIP["patch_size"],
            embed_dim=SIGLIP["width"],
            depth=SIGLIP["layers"],
            num_heads=SIGLIP["heads"],
            mlp_ratio=SIGLIP["mlp_ratio"],
            class_token=False,
            global_pool="map",
            num_classes=0,
            act_layer="gelu_tanh",
        )
        self.text = open_clip.transformer.TextTransformer(
            **TEXT,
            output_dim=SIGLIP["width"],
            no_causal_mask=True,
            pool_type="last",
            proj_bias=True,
            act_layer=functools.partial(torch.nn.GELU, approximate="tanh"),
            norm_layer=functools.partial(open_clip.transformer.LayerNorm, eps=1e-6),
        )
        self.logit_scale = torch.nn.Parameter(torch.zeros(()))
        self.logit_bias = torch.nn.Parameter(torch.zeros(()))

    def encode_image(self, pixels):
        return self.visual.trunk(pixels)

    def encode_text(self, tokens):
        return self.text(tokens)


MODELS = {"resnet": resnet, "bigG": big_g, "siglip": SigLIP}


def embeddings(model, pixels, tokens):
    normalize = torch.nn.functional.normalize
    return normalize(model.encode_image(pixels), dim=-1), normalize(
        model.encode_text(tokens), dim=-1
    )


def one_adamw_step(model, pixels, tokens):
    """The softmax loss in training mode, and samples of what one update changes."""
    model.train()
    parameters = dict(model.named_parameters())
    groups = [
        {"params": [p], "weight_decay": ADAMW["weight_decay"] if p.ndim >= 2 else 0.0}
        for p in parameters.values()
    ]
    before = {name: p.detach().clone() for name, p in parameters.items()}
    optimizer = torch.optim.AdamW(groups, **ADAMW)
    for module in model.visual.modules():
        if isinstance(module, torch.nn.ReLU):
            module.register_forward_pre_hook(assert_far_from_zero)
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


def assert_far_from_zero(relu, inputs):
    assert inputs[0].abs().min() > 1e-5, "choose other RESNET_INPUTS"


def resampled():
    """Position embeddings of other sizes, as `open_clip.load_checkpoint` makes them."""
    random = np.random.RandomState(0)
    for old, new in ((3, 5), (7, 4), (4, 12)):
        grid = random.standard_normal((old**2 + 1, 6)).astype(np.float32)
        state = {"visual.positional_embedding": torch.tensor(grid)}
        model = types.SimpleNamespace(visual=types.SimpleNamespace(grid_size=(new, new)))
        open_clip.model.resize_pos_embed(state, model)
        yield f"grid/{old}/{new}/from", grid
        yield f"grid/{old}/{new}/to", state["visual.positional_embedding"].numpy()
    for old, new in ((7, 13), (13, 7), (16, 64)):
        context = random.standard_normal((old, 6)).astype(np.float32)
        state = {"positional_embedding": torch.tensor(context)}
        model = types.SimpleNamespace(positional_embedding=torch.zeros(new, 6))
        open_clip.model.resize_text_pos_embed(state, model)
        yield f"context/{old}/{new}/from", context
        yield f"context/{old}/{new}/to", state["positional_embedding"].numpy()


def main():
    arrays = dict(resampled())
    for name, case in CASES.items():
        model = MODELS[name]().double().eval()
        shapes = {tensor: tuple(x.shape) for tensor, x in model.state_dict().items()}
        weights = {tensor: torch.tensor(x) for tensor, x in random_tensors(shapes).items()}
        missing, unexpected = model.load_state_dict(weights, strict=False)
        assert not unexpected
        assert all("num_batches_tracked" in x for x in missing), missing
        seed = RESNET_INPUTS if name == "resnet" else 0
        images, tokens = random_inputs({"vision": case, "text": TEXT}, BATCH_SIZE, seed)
        pixels = torch.tensor(pixel_values(images)).double()
        tokens = torch.tensor(tokens).long()
        with torch.no_grad():
            zimg, ztxt = embeddings(model, pixels, tokens)
        arrays[f"{name}/shapes"] = np.array(json.dumps(shapes))
        arrays[f"{name}/zimg"], arrays[f"{name}/ztxt"] = zimg.numpy(), ztxt.numpy()
        if name == "resnet":
            for key, value in one_adamw_step(model, pixels, tokens):
                arrays[f"{name}/step/{key}"] = np.asarray(value)
    path = pathlib.Path(__file__).parents[1] / "golden" / "open_clip_reference.npz"
    np.savez_compressed(path, **arrays)
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
