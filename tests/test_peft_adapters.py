"""Adapters of peft are merged into their base; what would be merged otherwise is refused.

tests/parity/test_peft_live.py compares with peft itself.
"""

import json
import os
import shutil
import subprocess
import sys

import fsspec
import numpy as np
import pytest
import safetensors.numpy

import flaxclip
from flaxclip.errors import InputError
from flaxclip.interop.export import export
from flaxclip.interop.foreign import find_foreign
from tests.helpers.hub_stand_in import hub
from tests.helpers.small_models import CLIP, GELU, as_transformers, assert_same, variables_of
from tests.helpers.torch_files import saved

Q = "text_model.encoder.layers.1.self_attn.q_proj"
FC = "vision_model.encoder.layers.0.mlp.fc1"
CONFIG = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "peft_version": "0.21.2"}


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def pair(rank, inputs, outputs):
    return {"lora_A.weight": numbers(rank, inputs), "lora_B.weight": numbers(outputs, rank, seed=1)}


def write_adapter(folder, modules, base, root="base_model.model.", **config):
    folder.mkdir(exist_ok=True)
    tensors = {
        f"{root}{module}.{part}": array
        for module, parts in modules.items()
        for part, array in parts.items()
    }
    (folder / "adapter_model.safetensors").write_bytes(safetensors.numpy.save(tensors))
    values = CONFIG | {"base_model_name_or_path": base and str(base)} | config
    (folder / "adapter_config.json").write_text(json.dumps(values))
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peft") / "base"
    export(CLIP, variables_of(CLIP), folder, "huggingface", overwrite=False)
    return folder


def changes(folder, base):
    """What an adapter has changed, by the base's names."""
    before = safetensors.numpy.load_file(base / "model.safetensors")
    after = {name: np.asarray(x) for name, x in find_foreign(str(folder)).tensors.items()}
    assert after.keys() == before.keys()
    assert all(x.dtype == np.float32 for x in after.values())
    return {
        name: after[name] - before[name]
        for name in before
        if not np.array_equal(after[name], before[name])
    }


def product(parts):
    return parts["lora_B.weight"] @ parts["lora_A.weight"]


@pytest.mark.parametrize(
    ("config", "q", "fc"),
    [
        ({}, 6 / 3, 6 / 3),
        ({"use_rslora": True}, 6 / 3**0.5, 6 / 3**0.5),
        ({"alpha_pattern": {"q_proj": 1}}, 1 / 3, 6 / 3),
        ({"alpha_pattern": {"proj": 1, r"vision_model.*fc\d": 9}}, 6 / 3, 9 / 3),
    ],
)
def test_the_product_is_scaled_as_the_adapter_says(config, q, fc, base, tmp_path):
    modules = {Q: pair(3, 64, 64), FC: pair(3, 64, 96)}
    found = changes(write_adapter(tmp_path / "lora", modules, base, **config), base)
    assert found.keys() == {f"{Q}.weight", f"{FC}.weight"}
    np.testing.assert_allclose(found[f"{Q}.weight"], q * product(modules[Q]), atol=1e-5)
    np.testing.assert_allclose(found[f"{FC}.weight"], fc * product(modules[FC]), atol=1e-5)


def test_ranks_by_pattern_come_with_their_scale(base, tmp_path):
    modules = {Q: pair(5, 64, 64), FC: pair(3, 64, 96)}
    config = {"rank_pattern": {f"^{Q}": 5}, "use_rslora": True}
    found = changes(write_adapter(tmp_path / "lora", modules, base, **config), base)
    np.testing.assert_allclose(found[f"{Q}.weight"], 6 / 5**0.5 * product(modules[Q]), atol=1e-5)


def test_dora_gives_rows_the_lengths_that_it_has_learned(base, tmp_path):
    modules = {Q: pair(3, 64, 64) | {"lora_magnitude_vector": np.arange(1, 65, dtype=np.float32)}}
    folder = write_adapter(tmp_path / "dora", modules, base, use_dora=True)
    merged = np.asarray(find_foreign(str(folder)).tensors[f"{Q}.weight"])
    np.testing.assert_allclose(np.linalg.norm(merged, axis=1), np.arange(1, 65), rtol=1e-5)


def test_whole_modules_and_biases_take_the_place_of_the_bases(base, tmp_path):
    modules = {
        Q: pair(3, 64, 64) | {"base_layer.bias": numbers(64), "lora_B.bias": numbers(64, seed=2)},
        "visual_projection": {"weight": numbers(24, 64)},
    }
    folder = write_adapter(tmp_path / "lora", modules, base, bias="all", lora_bias=True)
    tensors = find_foreign(str(folder)).tensors
    np.testing.assert_array_equal(tensors["visual_projection.weight"], numbers(24, 64))
    np.testing.assert_allclose(tensors[f"{Q}.bias"], numbers(64) + 2 * numbers(64, seed=2))
    assert "LoRA of 1 matrices and 2 whole tensors" in find_foreign(str(folder)).kind


@pytest.mark.parametrize("number", [np.float16, np.float32])
def test_of_open_clips_attention_the_projection_is_added_twice_as_peft_does(number, tmp_path):
    export(GELU, variables_of(GELU), tmp_path / "base", "open_clip", overwrite=False)
    attention = "visual.transformer.resblocks.1.attn"
    modules = {attention: pair(3, 64, 192), f"{attention}.base_layer.out_proj": pair(3, 64, 64)}
    modules = {m: {k: x.astype(number) for k, x in parts.items()} for m, parts in modules.items()}
    folder = write_adapter(tmp_path / "lora", modules, tmp_path / "base")
    before = safetensors.numpy.load_file(tmp_path / "base" / "open_clip_model.safetensors")
    after = find_foreign(str(folder)).tensors
    for name, scale, parts in (
        (f"{attention}.in_proj_weight", 2, modules[attention]),
        (f"{attention}.out_proj.weight", 4, modules[f"{attention}.base_layer.out_proj"]),
    ):
        exact = product({k: x.astype(np.float32) for k, x in parts.items()})
        np.testing.assert_allclose(after[name] - before[name], scale * exact, atol=1e-5)


def test_wrappers_before_the_names_are_taken_off(base, tmp_path):
    modules = {f"clip._orig_mod.{Q}": pair(3, 64, 64)}
    for root in ("base_model.model.", ""):
        folder = write_adapter(tmp_path / "lora", modules, base, root)
        assert changes(folder, base).keys() == {f"{Q}.weight"}


def test_the_base_is_found_where_it_is_named_or_beside(base, tmp_path, monkeypatch):
    modules = {Q: pair(3, 64, 64)}
    expected = flaxclip.load(write_adapter(tmp_path / "named", modules, base)).variables
    shutil.copytree(base, tmp_path / "beside")
    for named in (None, ".", "/home/someone/else", "openai/clip-vit-base-patch32"):
        folder = write_adapter(tmp_path / "beside", modules, named)
        assert_same(flaxclip.load(folder), as_transformers(CLIP), expected)
    # A directory beside the adapter's, by a name from there; and torch's format.
    folder = write_adapter(tmp_path / "relative", modules, "../beside/model.safetensors")
    tensors = safetensors.numpy.load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(saved(tensors))
    assert_same(flaxclip.load(folder), as_transformers(CLIP), expected)
    # At a URL, with the base beside it, or at a URL of its own.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    remote = fsspec.filesystem("memory")
    for name, at in (("beside", None), ("elsewhere", "memory://adapted/beside/model.safetensors")):
        if at:
            write_adapter(tmp_path / name, modules, at)
        remote.put(str(tmp_path / name), f"/adapted/{name}", recursive=True)
        assert_same(flaxclip.load(f"memory://adapted/{name}"), as_transformers(CLIP), expected)


def test_a_base_of_the_hub_is_read_from_there(base, tmp_path):
    folder = write_adapter(tmp_path / "lora", {Q: pair(3, 64, 64)}, "someone/clip")
    with hub("someone/clip", base) as address:
        environment = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hub")}
        environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache")}
        command = [sys.executable, "-m", "flaxclip.interop", "info", str(folder)]
        result = subprocess.run(
            command, env=os.environ | environment, capture_output=True, text=True, check=False
        )
    assert result.returncode == 0, result.stderr
    assert f"transformers, clip, with LoRA of 1 matrices of {folder}" in result.stdout


def wrong_rank():
    return {Q: pair(2, 64, 64)}


@pytest.mark.parametrize(
    ("modules", "config", "message"),
    [
        ({}, {"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({}, {"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4', which changes the base"),
        ({}, {"layer_replication": [[0, 1]]}, r"layer_replication is \[\[0, 1\]\]"),
        ({}, {"what_comes_next": True}, "what_comes_next is True"),
        ({}, {"rank_pattern": {"(": 2}}, "rank_pattern has '\\(', no regular expression"),
        ({}, {"r": 0}, "a rank is not positive"),
        (wrong_rank(), {}, r"q_proj has matrices .*\n.*expected the rank 3|expected the rank 3"),
        ({"text_model.nothing": pair(3, 64, 64)}, {}, "text_model.nothing is in the adapter, and"),
        ({FC: pair(3, 64, 64)}, {}, r"of shape \[64, 64\]\n.*fc1.weight has \[96, 64\]"),
        ({Q: {"lora_A.weight": numbers(3, 64)}}, {}, "has no lora_B"),
        ({Q: pair(3, 64, 64)}, {"use_dora": True}, "has no magnitude vector, and use_dora"),
        ({"text_projection": {"weight": numbers(3, 3)}}, {}, r"text_projection.weight is for .*"),
    ],
)  # fmt: skip
def test_what_would_be_merged_otherwise_is_refused(modules, config, message, base, tmp_path):
    folder = write_adapter(tmp_path / "lora", modules or {Q: pair(3, 64, 64)}, base, **config)
    with pytest.raises(InputError, match=message):
        flaxclip.load(folder)


def test_a_base_that_is_not_there_is_asked_for(base, tmp_path):
    folder = write_adapter(tmp_path / "lora", {Q: pair(3, 64, 64)}, None)
    with pytest.raises(InputError, match="base_model_name_or_path None\nno model is there: put"):
        flaxclip.load(folder)
    write_adapter(folder, {Q: pair(3, 64, 64)}, "/nowhere/clip")
    with pytest.raises(InputError, match="base_model_name_or_path '/nowhere/clip'\nno model is"):
        flaxclip.load(folder)
    (tmp_path / "empty").mkdir()
    write_adapter(folder, {Q: pair(3, 64, 64)}, tmp_path / "empty")
    with pytest.raises(InputError, match="which holds no weights of another library"):
        flaxclip.load(folder)
