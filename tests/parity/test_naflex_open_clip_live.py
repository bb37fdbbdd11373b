"""Images at their own aspect ratio: pixels and embeddings equal to timm's NaFlex towers, which
open_clip 4 takes by name.

pip install open_clip_torch timm
python -m pytest tests/parity/test_naflex_open_clip_live.py

open_clip 3.3 has no field for the most patches; its text towers, and its adapter of timm's, are
those of 4.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import safetensors.numpy

import flaxclip
from flaxclip.api import CLIPModel, encode_text
from flaxclip.data.images.eval_transform import NativeTransform, preprocess
from flaxclip.data.images.native_size import cut_into_patches, native_grid
from flaxclip.interop.name_table import unflatten
from flaxclip.interop.open_clip.names import open_clip_table
from flaxclip.interop.trunks.registry import TIMM_TRUNKS
from flaxclip.models.clip import CLIPConfig
from flaxclip.models.inputs import CENTRED_MEAN, CENTRED_STD, ImageTransform
from flaxclip.models.spec import ModelSpec
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.vision_transformer import ViTConfig
from tests.parity.images import photographs_and_pieces
from tests.parity.open_clip_cases import SIGLIP, TEXT, random_tensors

torch = pytest.importorskip("torch", reason="torch is a peer, not a requirement")
open_clip = pytest.importorskip("open_clip", reason="open_clip is a peer, not a requirement")
timm = pytest.importorskip("timm", reason="timm is a peer, not a requirement")
naflex = pytest.importorskip("timm.data.naflex_dataset", reason="of timm 1.0.16 and later")

GRID = 4
NATIVE = ImageTransform("native", mean=CENTRED_MEAN, std=CENTRED_STD)
# Height and width in patches, at 128 patches and at 256: squares, 1:5, 5:1 and 1 x n.
SHAPES = [(11, 11), (16, 16), (5, 25), (25, 5), (1, 128), (128, 1), (1, 3), (9, 13)]
TOWERS = {name: tower for t in TIMM_TRUNKS if t.native for name, tower in t.towers.items()}


class Peer(torch.nn.Module):
    """The modules, and the names, of open_clip's ViT-B-16-SigLIP2-naflex."""

    def __init__(self, trunk):
        super().__init__()
        self.visual = torch.nn.Module()
        self.visual.trunk = trunk
        self.text = open_clip.transformer.TextTransformer(
            **TEXT,
            output_dim=trunk.embed_dim,
            no_causal_mask=True,
            pool_type="last",
            proj_bias=True,
            act_layer=functools.partial(torch.nn.GELU, approximate="tanh"),
            norm_layer=functools.partial(open_clip.transformer.LayerNorm, eps=1e-6),
        )
        self.logit_scale = torch.nn.Parameter(torch.zeros(()))
        self.logit_bias = torch.nn.Parameter(torch.zeros(()))

    def outputs(self, images, tokens, patch_size, max_patches):
        """Unit embeddings in float64."""
        transform = their_transform(patch_size, max_patches)
        collate = naflex.NaFlexCollator(max_patches)
        inputs, _ = collate([(transform(image), 0) for image in images])
        inputs["patches"] = inputs["patches"].double()
        normalize = torch.nn.functional.normalize
        with torch.no_grad():
            found = self.visual.trunk(inputs), self.text(torch.tensor(tokens).long())
        return [normalize(z, dim=-1).numpy() for z in found]


def their_transform(patch_size, max_patches):
    """As open_clip 4 makes it for evaluation."""
    return timm.data.create_transform(
        (3, 224, 224), is_training=False, naflex=True, patchify=True, max_seq_len=max_patches,
        patch_size=patch_size, mean=CENTRED_MEAN, std=CENTRED_STD, interpolation="bicubic",
    )  # fmt: skip


def make_peer(name, **sizes):
    """The peer, in float64, and its tensors."""
    peer = Peer(timm.create_model(name, num_classes=0, global_pool="map", **sizes)).double().eval()
    tensors = random_tensors({name: tuple(x.shape) for name, x in peer.state_dict().items()})
    peer.load_state_dict({name: torch.tensor(x) for name, x in tensors.items()}, strict=True)
    return peer, tensors


def images_of(shapes, patch):
    rng = np.random.default_rng(2)
    return [
        PIL.Image.fromarray(rng.integers(0, 256, (patch * rows, patch * columns, 3), np.uint8))
        for rows, columns in shapes
    ]


def some_tokens():
    return np.random.default_rng(3).integers(
        0, TEXT["vocab_size"], (4, TEXT["context_length"]), np.int32
    )


def assert_equal_embeddings(ours, peer, images, max_patches):
    tokens = some_tokens()
    zimg, ztxt = peer.outputs(images, tokens, ours.config.vision.patch_size, max_patches)
    found = np.asarray(ours.encode_image(images, max_patches=max_patches))
    np.testing.assert_allclose(found, zimg, rtol=0, atol=1e-5)
    found = np.asarray(encode_text(ours.variables, tokens, ours.spec, ours.compute))
    np.testing.assert_allclose(found, ztxt, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def small():
    sizes = {name: SIGLIP[name] for name in ("patch_size", "mlp_ratio")}
    peer, tensors = make_peer(
        "naflexvit_base_patch16_siglip", embed_dim=SIGLIP["width"], depth=SIGLIP["layers"],
        num_heads=SIGLIP["heads"], pos_embed_grid_size=(GRID, GRID), **sizes,
    )  # fmt: skip
    vision = SIGLIP | {"image_size": GRID * SIGLIP["patch_size"]}
    config = CLIPConfig(
        ViTConfig(**vision, activation="gelu_tanh", norm_eps=1e-6, family="siglip"),
        TextConfig(**TEXT, activation="gelu_tanh", norm_eps=1e-6, family="siglip"),
        embed_dim=SIGLIP["width"],
        init_logit_bias=-10.0,
    )
    table = open_clip_table(config, {name: x.shape for name, x in tensors.items()}, native=True)
    variables = jax.tree.map(jnp.asarray, unflatten(dict(table.to_ours(tensors))))
    back = table.to_theirs(variables)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)
    return CLIPModel(ModelSpec(config, NATIVE), variables), peer


@pytest.mark.parametrize("max_patches", [128, 256])
def test_embeddings_are_the_same(small, max_patches):
    ours, peer = small
    assert_equal_embeddings(ours, peer, images_of(SHAPES, SIGLIP["patch_size"]), max_patches)


@pytest.mark.parametrize("name", TOWERS)
def test_names_and_shapes_of_every_tower(name):
    """Full-size towers, without memory for their numbers."""
    with torch.device("meta"):
        theirs = Peer(timm.create_model(name, num_classes=0, global_pool="map"))
    text = TextConfig(**TEXT, activation="gelu_tanh", norm_eps=1e-6, family="siglip")
    config = CLIPConfig(TOWERS[name], text, TOWERS[name].width, init_logit_bias=-10.0)
    shapes = {name: tuple(x.shape) for name, x in theirs.state_dict().items()}
    assert open_clip_table(config, native=True).their_shapes() == shapes


def test_a_directory_of_open_clips(tmp_path):
    """Its own configuration of the smallest, but for the size of the text tower."""
    peer, tensors = make_peer("naflexvit_base_patch16_siglip")
    safetensors.numpy.save_file(tensors, tmp_path / "open_clip_model.safetensors")
    model = {
        "embed_dim": 768,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 384,
            "image_seq_len": 576,
            "timm_model_name": "naflexvit_base_patch16_siglip",
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": TEXT
        | {
            "hf_tokenizer_name": "timm/ViT-B-16-SigLIP2-256",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
            "act_kwargs": {"approximate": "tanh"},
        },
    }
    squares = {"mean": CENTRED_MEAN, "std": CENTRED_STD, "resize_mode": "squash"}
    text = json.dumps({"model_cfg": model, "preprocess_cfg": squares})
    (tmp_path / "open_clip_config.json").write_text(text)
    ours = flaxclip.load(tmp_path)
    assert (ours.transform.max_patches, ours.config.vision.grid) == (576, 16)
    assert_equal_embeddings(ours, peer, images_of([(5, 9), (16, 2), (16, 16)], 16), 64)


def test_sizes_of_a_thousand_images():
    from timm.data.naflex_transforms import get_image_size_for_seq

    rng = np.random.default_rng(0)
    sizes = [*rng.integers(1, 5001, (1000, 2)).tolist(), [1, 5000], [5000, 1], [1, 1]]
    for height, width in sizes:
        patch, most = int(rng.choice([14, 16, 32])), int(rng.integers(1, 1025))
        rows, columns = native_grid(height, width, patch, most)
        _, expected = get_image_size_for_seq((height, width), patch, most)
        assert (rows * patch, columns * patch) == expected, (height, width, patch, most)


@pytest.mark.parametrize("max_patches", [128, 576])
def test_photographs_come_out_equal(max_patches):
    transform = their_transform(16, max_patches)
    images = photographs_and_pieces(30)
    assert len(images) >= 30
    for name, image in images:
        # Theirs leaves the conversion to the caller: of other modes it cuts other patches.
        image = image.convert("RGB")
        theirs = transform(image)
        pixels = preprocess(image, NativeTransform(16, max_patches, NATIVE))
        ours = cut_into_patches([pixels], 16, max_patches, rows=1)
        assert tuple(theirs["patch_coord"].amax(0) + 1) == tuple(ours.grid[0]), name
        found = (ours.patches[0, : ours.grid.prod()] / 255 - 0.5) / 0.5
        np.testing.assert_allclose(found, theirs["patches"], rtol=0, atol=1e-6, err_msg=name)
