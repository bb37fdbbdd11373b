"""Adapters that peft writes, merged by us as by peft, and ours, read by peft.

pip install peft transformers open_clip_torch
python -m pytest tests/parity/test_peft_live.py
"""

import json
import warnings

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict

import flaxclip
from flaxclip.errors import InputError
from flaxclip.fine_tuning.lora import LoRA, adapted_kernels, with_pairs
from flaxclip.interop.archives.open_archive import open_archive
from flaxclip.interop.export import export
from flaxclip.interop.foreign import find_foreign
from flaxclip.interop.peft.adapter_config import read_adapter_config
from flaxclip.interop.peft.merge import merge_adapter
from flaxclip.interop.peft.write_adapter import write_adapter
from tests.helpers.small_models import CLIP, GELU, SIGLIP, variables_of, with_tokenizer

torch = pytest.importorskip("torch", reason="torch is a peer, not a requirement")
transformers = pytest.importorskip("transformers", reason="transformers is a peer")
peft = pytest.importorskip("peft", reason="peft is a peer, not a requirement")

pytestmark = pytest.mark.filterwarnings("ignore")


def open_clips_model(folder):
    open_clip = pytest.importorskip("open_clip", reason="open_clip is a peer, not a requirement")
    return open_clip.create_model(f"local-dir:{folder}")


def adapted(base, folder, path, **settings):
    """`base` as peft trains it, with random numbers in all that it trains, saved in `folder`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(base, peft.LoraConfig(**settings))
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(path)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return model


def assert_merged_alike(model, folder):
    merged = model.merge_and_unload().state_dict()
    ours = find_foreign(str(folder)).tensors
    assert ours.keys() <= merged.keys()
    for name, tensor in ours.items():
        theirs = merged[name].float().numpy()
        np.testing.assert_allclose(np.asarray(tensor), theirs, rtol=1e-5, atol=1e-6, err_msg=name)
    assert flaxclip.load(folder).params.keys() >= {"vision", "text"}


ATTENTION = ["q_proj", "v_proj"]
TRANSFORMERS = {
    "plain": {"target_modules": ATTENTION},
    "rslora": {"target_modules": "all-linear", "use_rslora": True, "r": 3, "lora_alpha": 5},
    "patterns": {
        "target_modules": [*ATTENTION, "fc1"],
        "rank_pattern": {"text_model.encoder.layers.0.self_attn.q_proj": 2, "fc1": 5},
        "alpha_pattern": {"vision_model.*v_proj": 9, "fc1": 3},
        "use_rslora": True,
    },
    "biases": {"target_modules": ATTENTION, "bias": "all"},
    "their biases": {"target_modules": ["fc1"], "bias": "lora_only"},
    "whole modules": {
        "target_modules": ATTENTION,
        "modules_to_save": ["visual_projection", "post_layernorm"],
    },
    "biases of B": {"target_modules": ["fc2"], "lora_bias": True},
    "dora": {"target_modules": ["fc1", "out_proj"], "use_dora": True},
    "embeddings": {
        "target_modules": ["token_embedding", "patch_embedding", "position_embedding"],
    },
    "one tower": {"target_modules": "text_model.*q_proj"},
}


@pytest.mark.parametrize("settings", TRANSFORMERS.values(), ids=TRANSFORMERS)
@pytest.mark.parametrize("spec", [CLIP, SIGLIP], ids=["clip", "siglip"])
def test_adapters_of_transformers_models(spec, settings, vocabulary, tmp_path):
    if spec is SIGLIP:
        spec = with_tokenizer(spec, file=vocabulary)
        if "modules_to_save" in settings:
            settings = settings | {"modules_to_save": ["post_layernorm"]}
    export(spec, variables_of(spec), tmp_path / "base", "huggingface", overwrite=False)
    base = transformers.AutoModel.from_pretrained(tmp_path / "base")
    model = adapted(base, tmp_path / "lora", tmp_path / "base", **settings)
    assert_merged_alike(model, tmp_path / "lora")


OPEN_CLIP = {
    "attention": {"target_modules": ["attn"]},
    "patterns": {
        "target_modules": ["attn", "c_fc"],
        "rank_pattern": {"visual.*attn": 3},
        "alpha_pattern": {"attn": 4},
        "use_rslora": True,
    },
    "biases": {"target_modules": ["attn", "c_proj"], "bias": "all"},
    "convolution": {
        "target_modules": ["conv1", "token_embedding"], "modules_to_save": ["ln_final"],
    },
}  # fmt: skip


@pytest.mark.parametrize("settings", OPEN_CLIP.values(), ids=OPEN_CLIP)
def test_adapters_of_open_clips_models(settings, tmp_path):
    export(GELU, variables_of(GELU), tmp_path / "base", "open_clip", overwrite=False)
    base = open_clips_model(tmp_path / "base")
    model = adapted(base, tmp_path / "lora", tmp_path / "base", **settings)
    assert_merged_alike(model, tmp_path / "lora")


def test_peft_adds_the_pair_of_an_attentions_projection_twice(tmp_path):
    """In the forward pass as in merging; so do we. One of torch's modules is enough to see it."""

    class Base(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = torch.nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.attn(x, x, x, need_weights=False)[0]

    torch.manual_seed(0)
    base = Base()
    before = {name: tensor.numpy().copy() for name, tensor in base.state_dict().items()}
    folder = tmp_path / "lora"
    model = adapted(base, folder, "base", target_modules=["attn"], r=2, lora_alpha=4)
    parts = safetensors.numpy.load_file(folder / "adapter_model.safetensors")
    pair = "base_model.model.attn.base_layer.out_proj.lora_{}.weight"
    product = 2 * parts[pair.format("B")] @ parts[pair.format("A")]  # alpha over rank
    x = torch.randn(1, 3, 8)
    with torch.no_grad():
        forward = model(x)
        merged = model.merge_and_unload()
        np.testing.assert_allclose(merged(x), forward, rtol=0, atol=1e-6)
    theirs = {name: tensor.numpy() for name, tensor in merged.state_dict().items()}
    added = theirs["attn.out_proj.weight"] - before["attn.out_proj.weight"]
    np.testing.assert_allclose(added, 2 * product, rtol=0, atol=1e-6)

    safetensors.numpy.save_file(before, tmp_path / "base.safetensors")
    ours = merge_adapter(
        open_archive(tmp_path / "base.safetensors", None),
        folder / "adapter_model.safetensors",
        read_adapter_config(folder),
    ).tensors
    for name, tensor in theirs.items():
        np.testing.assert_allclose(np.asarray(ours[name]), tensor, rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("to", ["huggingface", "open_clip"])
def test_adapters_that_we_write_are_read_by_peft(to, tmp_path):
    """peft merges what `flaxclip.load` does."""
    export(GELU, variables_of(GELU), tmp_path / "base", to, overwrite=False)
    lora = LoRA(("/blocks/",), 3, 6.0)
    params = with_pairs(lora, variables_of(GELU)["params"], jax.random.key(0))
    flat = flatten_dict(params, sep="/")
    rng = np.random.default_rng(0)
    pairs = {}
    for name in adapted_kernels(lora, params):
        a, b = (np.asarray(flat[f"{name[:-6]}lora_{side}"]) for side in "ab")
        b = rng.standard_normal(b.shape).astype(np.float32) / 8
        pairs[f"params/{name}"] = a, b
    kind = find_foreign(str(tmp_path / "base")).kind
    folder = tmp_path / "lora"
    write_adapter(pairs, lora, GELU.model, str(tmp_path / "base"), kind, folder, overwrite=False)
    base = (
        transformers.AutoModel.from_pretrained(tmp_path / "base")
        if to == "huggingface"
        else open_clips_model(tmp_path / "base")
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        model = peft.PeftModel.from_pretrained(base, folder)
    assert_merged_alike(model, folder)


def test_what_changes_the_base_or_is_no_lora_is_refused(tmp_path):
    export(CLIP, variables_of(CLIP), tmp_path / "base", "huggingface", overwrite=False)
    for number, (settings, message) in enumerate(
        (
            ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which changes"),
            (
                {"trainable_token_indices": {"token_embedding": [1, 2]}},
                "trainable_token_indices is",
            ),
            ({"target_parameters": ["token_embedding.weight"]}, "target_parameters is"),
        )
    ):
        base = transformers.AutoModel.from_pretrained(tmp_path / "base")
        folder = tmp_path / str(number)
        settings = {"target_modules": ATTENTION} | settings
        adapted(base, folder, tmp_path / "base", **settings)
        with pytest.raises(InputError, match=message):
            flaxclip.load(folder)
    base = transformers.AutoModel.from_pretrained(tmp_path / "base")
    peft.get_peft_model(base, peft.LoHaConfig(target_modules=ATTENTION)).save_pretrained(
        tmp_path / "loha"
    )
    with pytest.raises(InputError, match="peft_type is 'LOHA'"):
        flaxclip.load(tmp_path / "loha")
