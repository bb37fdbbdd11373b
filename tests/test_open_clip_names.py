"""open_clip's, timm's and big_vision's names and axes, against a list that was written by hand."""

import dataclasses
import json
import math
import struct
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from flaxclip.data.tokenizers.text_cleaning import cleaning_of
from flaxclip.errors import InputError
from flaxclip.interop.big_vision import big_vision_table
from flaxclip.interop.name_table import Binding, NameTable, Rule, unflatten
from flaxclip.interop.open_clip.names import has_open_clip, open_clip_table
from flaxclip.interop.open_clip.write_config import open_clip_json
from flaxclip.interop.openai import config_from_shapes
from flaxclip.interop.relayout import ALIGNMENT
from flaxclip.models.clip import CLIPConfig, abstract_variables
from flaxclip.models.modified_resnet import ResNetConfig
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.variants import VARIANTS
from flaxclip.weights import open_weights
from tests.helpers.open_clip_configs import CONFIGS
from tests.parity.foreign_params import from_open_clip, from_timm_siglip
from tests.parity.open_clip_cases import EMBED_DIM, RESNET, TEXT, random_tensors
from tests.parity.state_dict_reference import fingerprint

CASES = {
    "resnet": CLIPConfig(
        vision=ResNetConfig(**RESNET),
        text=TextConfig(**TEXT, activation="gelu"),
        embed_dim=EMBED_DIM,
    ),
    **CONFIGS,
}
BY_HAND = {"resnet": from_open_clip, "bigG": from_open_clip, "siglip": from_timm_siglip}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """Configuration, and tensors with the names and shapes of a model that open_clip made."""
    with np.load(Path(__file__).parent / "golden" / "open_clip_reference.npz") as arrays:
        shapes = json.loads(str(arrays[f"{request.param}/shapes"]))
    return request.param, CASES[request.param], random_tensors(shapes)


def test_variables_are_those_made_by_hand(case):
    name, config, tensors = case
    shapes = {tensor: x.shape for tensor, x in tensors.items()}
    variables = unflatten(dict(open_clip_table(config, shapes).to_ours(tensors)))
    ours, expected = flatten_dict(variables), flatten_dict(BY_HAND[name](tensors, config))
    assert ours.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(ours[path], array, err_msg="/".join(path))


def test_tensors_come_back_as_they_were(case):
    _, config, tensors = case
    table = open_clip_table(config)
    back = table.to_theirs(unflatten(dict(table.to_ours(tensors))))
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor, strict=True)


def test_counters_of_batch_norms_are_dropped_and_other_integers_are_not(case):
    _, config, tensors = case
    counter = {"visual.bn1.num_batches_tracked": np.array(7)}
    list(open_clip_table(config).to_ours(tensors | counter))
    with pytest.raises(InputError, match="1 tensor unknown: visual"):
        open_clip_table(config).to_ours(tensors | {"visual.bn1.running_count": np.array(7)})


@pytest.mark.parametrize("stacked", [False, True])
def test_big_visions_axes_are_ours_but_for_stacks_and_joint_projections(stacked):
    config = CONFIGS["siglip"]
    table = big_vision_table(config, stacked)
    tensors = random_tensors(table.their_shapes())
    variables = unflatten(dict(table.to_ours(tensors)))
    block = variables["params"]["vision"]["transformer"]["blocks"]
    prefix = "img/Transformer/encoderblock"
    name = "MultiHeadDotProductAttention_0/key/kernel"
    key = tensors[f"{prefix}/{name}"][2] if stacked else tensors[f"{prefix}_2/{name}"]
    np.testing.assert_array_equal(block["attention"]["qkv"]["kernel"][2, :, :, 1], key)
    patches = tensors["img/embedding/kernel"].reshape(-1, config.vision.width)
    np.testing.assert_array_equal(
        variables["params"]["vision"]["patch_embedding"]["kernel"], patches
    )
    assert variables["params"]["logit_bias"] == tensors["b"][0]
    back = table.to_theirs(variables)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor, strict=True)


GOLDEN = Path(__file__).parent / "golden" / "open_clip_state_dicts.json"
STATE_DICTS = json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("name", [n for n, spec in VARIANTS.items() if has_open_clip(spec.model)])
def test_every_variable_of_a_variant_has_its_tensors_and_these_are_open_clips(name):
    """Paths and shapes; without memory for the larger ones' numbers."""
    table = open_clip_table(VARIANTS[name].model, native=name.endswith("naflex"))
    ours = {path: binding.our_shape() for binding in table.bindings for path in binding.our_names()}
    same_shapes = VARIANTS[name.removesuffix("-quickgelu")].model  # traced once for both
    fresh = flatten_dict(abstract_variables(same_shapes), sep="/")
    assert ours == {path: leaf.shape for path, leaf in fresh.items()}
    numbers = sum(math.prod(shape) for shape in table.their_shapes().values())
    assert numbers == sum(leaf.size for leaf in jax.tree.leaves(fresh))
    # Of these, open_clip 3.3 has none; NaFlex's are compared in `test_naflex_open_clip_live.py`.
    if not name.startswith(("ViT-tiny", "LongCLIP", "openvision")) and not name.endswith("naflex"):
        assert fingerprint(table.their_shapes()) == STATE_DICTS[name]


def with_its_cleaning(spec):
    """The same model, saying how texts are cleaned even where that is its tokenizer's own way."""
    cleaning = cleaning_of(spec.tokenizer.name, spec.tokenizer.cleaning)
    return spec._replace(tokenizer=dataclasses.replace(spec.tokenizer, cleaning=cleaning))


@pytest.mark.parametrize("name", ["ViT-bigG-14", "RN50x64", "ViT-SO400M-14-SigLIP"])
def test_the_header_of_a_full_size_file_tells_all_before_a_number_is_read(name, tmp_path):
    """Gigabytes that are not on the disk either: after its header the file is one hole."""
    spec = VARIANTS[name]
    vision = spec.model.vision
    if vision.image_size == 224 and "SigLIP" in name:  # timm's name, GELU and all
        vision = dataclasses.replace(vision, activation="gelu")
        spec = spec._replace(model=dataclasses.replace(spec.model, vision=vision))
    shapes, end, header = open_clip_table(spec.model).their_shapes(), 0, {}
    for tensor, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[tensor] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    path = tmp_path / "open_clip_model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        file.truncate(8 + len(encoded) + end)
    text = json.dumps(open_clip_json(spec))
    (tmp_path / "open_clip_config.json").write_text(text)
    weights = open_weights(str(tmp_path))
    assert with_its_cleaning(weights.spec) == with_its_cleaning(spec)
    assert path.stat().st_size > 2e9 > 1e6 > 512 * path.stat().st_blocks

    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    with pytest.raises(InputError, match="not a whole safetensors file"):
        open_weights(str(tmp_path))


OPENAI = ["RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B-32", "ViT-B-16", "ViT-L-14-336"]


@pytest.mark.parametrize("name", OPENAI)
def test_openais_architectures_are_recognised_from_shapes(name):
    config = VARIANTS[f"{name}-quickgelu"].model
    assert config_from_shapes(open_clip_table(config).their_shapes()) == config


@pytest.mark.parametrize(
    "axes",
    [
        "(qkv head k) w -> layer w head qkv k",
        "w (head k) -> layer head k w",
        "w 1 row column -> layer row column 1 w",
        "w rgb row column -> layer (row column rgb) w",
        "1 w -> layer w",
        "w head -> layer w head",
        "-> layer",
    ],
)
def test_axes_are_put_in_another_order_as_einops_does(axes):
    lengths = {
        "layer": range(2), "qkv": ("q", "k", "v"), "head": 2, "k": 9, "w": 20, "row": 3,
        "column": 3, "rgb": 3,
    }  # fmt: skip
    binding = Binding(Rule("ours", "theirs.{layer}", axes), lengths)
    rng = np.random.default_rng(0)
    tensors = [rng.standard_normal(binding.their_shape(), np.float32) for _ in range(2)]
    table = NameTable("a test", [binding])
    ((_, ours),) = table.to_ours(dict(zip(binding.their_names(), tensors, strict=True)))
    np.testing.assert_array_equal(binding.to_theirs([ours]), tensors)
    assert ours.ctypes.data % ALIGNMENT == 0
    assert jax.device_put(ours).unsafe_buffer_pointer() == ours.ctypes.data
