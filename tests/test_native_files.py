"""Files of models that take images at their own aspect ratio, and their measurement."""

import dataclasses
import json

import jax
import numpy as np
import PIL.Image
import pytest
import tyro
from safetensors.numpy import load_file

import flaxclip
from flaxclip.api import CLIPModel
from flaxclip.benchmark.checkpoint import find_checkpoint
from flaxclip.benchmark.command import Command, run_each
from flaxclip.benchmark.embed.command import Command as EmbedCommand
from flaxclip.benchmark.embed.command import run as embed_corpus
from flaxclip.benchmark.embed.search import Command as SearchCommand
from flaxclip.benchmark.embed.search import run as search
from flaxclip.benchmark.results import read_result
from flaxclip.checkpoint.layout import save_variables
from flaxclip.errors import InputError
from flaxclip.fine_tuning.lora import LoRA
from flaxclip.interop.__main__ import Info, info
from flaxclip.interop.big_vision import NATIVE_IMAGES, big_vision_table
from flaxclip.interop.export import export
from flaxclip.interop.graphs.write_graphs import write_graphs
from flaxclip.interop.open_clip.read_config import CONFIG_FILE, read_config
from flaxclip.interop.open_clip.write_config import open_clip_json
from flaxclip.interop.peft.write_adapter import write_adapter
from flaxclip.interop.trunks.registry import TIMM_TRUNKS
from flaxclip.models.variants import VARIANTS
from flaxclip.weights import open_weights
from tests.helpers.command_lines import refused
from tests.helpers.image_tars import labelled, write_wds
from tests.helpers.small_models import CLIP, SIGLIP, assert_same, variables_of, with_tokenizer

NAFLEX = with_tokenizer(
    SIGLIP._replace(preprocess=dataclasses.replace(NATIVE_IMAGES, max_patches=4)),
    name="siglip2",
    cleaning="transformers_siglip2",
)
OPEN_CLIP = with_tokenizer(
    SIGLIP._replace(
        preprocess=dataclasses.replace(SIGLIP.preprocess, resize="native", max_patches=6)
    ),
    name="siglip2",
    cleaning="canonicalize",
)
WIDE = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 90, 3), np.uint8))


@pytest.fixture
def folder(vocabulary, tmp_path):
    spec = with_tokenizer(NAFLEX, file=vocabulary)
    export(spec, variables_of(NAFLEX), tmp_path / "naflex", "huggingface", overwrite=False)
    return tmp_path / "naflex"


def test_what_is_exported_is_read_back(folder):
    assert json.loads((folder / "config.json").read_text())["vision_config"]["num_patches"] == 4
    assert_same(flaxclip.load(folder), NAFLEX, variables_of(NAFLEX))


@pytest.mark.parametrize("stacked", [True, False])
def test_big_visions_naflex_tells_its_architecture(stacked, tmp_path):
    variables = variables_of(NAFLEX)
    tensors = big_vision_table(NAFLEX.model, stacked, native=True).to_theirs(variables)
    assert tensors["img/embedding/kernel"].shape == (3 * 8 * 8, 64)
    assert tensors["img/pos_embedding"].shape == (2, 2, 64)
    np.savez(tmp_path / "naflex.npz", **tensors)
    model = flaxclip.load(tmp_path / "naflex.npz")
    expected = NAFLEX._replace(preprocess=NATIVE_IMAGES)
    # By the size of the vocabulary, that of SigLIP.
    expected = with_tokenizer(expected, name="siglip", cleaning="big_vision")
    assert_same(model, expected, variables)
    assert model.transform.max_patches == 4


def test_a_workdir_keeps_the_most_patches(tmp_path):
    save_variables(tmp_path, NAFLEX._asdict(), variables_of(NAFLEX))
    model = flaxclip.load(tmp_path)
    assert_same(model, NAFLEX, variables_of(NAFLEX))
    assert model.transform.max_patches == 4


def test_its_most_patches_are_said(folder, capsys):
    info(Info(str(folder)))
    assert "native aspect ratio, at most 4 patches" in capsys.readouterr().out


def test_more_patches_show_more_of_a_wide_image(folder):
    model = flaxclip.load(folder)
    few, many = model.preprocess([WIDE]), model.with_max_patches(16).preprocess([WIDE])
    np.testing.assert_array_equal(few.grid, [[1, 4]])
    np.testing.assert_array_equal(many.grid, [[2, 8]])
    zimg = np.asarray(model.encode_image([WIDE], 1, max_patches=16))
    np.testing.assert_allclose(np.linalg.norm(zimg, axis=1), 1, rtol=1e-5)
    assert np.abs(zimg - np.asarray(model.encode_image([WIDE], 1))).max() > 1e-5
    assert model.transform.max_patches == 4


def test_what_is_preprocessed_already_is_encoded_as_images_are():
    model = CLIPModel(NAFLEX, variables_of(NAFLEX)).with_max_patches(9)
    images = [WIDE, WIDE.rotate(90, expand=True), WIDE.resize((30, 30))]
    for batch_size in (2, 4):
        np.testing.assert_array_equal(
            model.encode_image(model.preprocess(images), batch_size),
            model.encode_image(images, batch_size),
        )
    with pytest.raises(InputError, match="max_patches is 4, and the images are patches already"):
        model.encode_image(model.preprocess(images), max_patches=4)
    with pytest.raises(InputError, match="images are patches, and the model takes squares of 16"):
        CLIPModel(SIGLIP, variables_of(SIGLIP)).encode_image(model.preprocess(images))


def test_patches_are_refused_where_the_model_takes_squares():
    model = CLIPModel(SIGLIP, variables_of(SIGLIP))
    with pytest.raises(InputError, match="max_patches is 9, and the model takes squares of 16"):
        model.encode_image([WIDE], max_patches=9)
    with pytest.raises(InputError, match="max_patches is 0\nan image has at least one patch"):
        CLIPModel(NAFLEX, {}).encode_image([WIDE], max_patches=0)
    with pytest.raises(InputError, match="only with resize native"):
        dataclasses.replace(SIGLIP.preprocess, max_patches=9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 16}, "patch_size is 16\nexpected 8, as in config.json"),
        ({"image_processor_type": "SiglipImageProcessor"}, "type siglip2 needs a Siglip2Image"),
        ({"max_num_patches": 0}, "max_num_patches"),
        ({"rescale_factor": 1.0}, "rescale_factor is 1.0\nexpected 1 / 255"),
    ],
)
def test_another_processor_is_refused(changes, message, folder):
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(InputError, match=message):
        flaxclip.load(folder)


@pytest.fixture
def open_clip_folder(monkeypatch, vocabulary, tmp_path):
    """As open_clip 4 names them; timm's own towers would take seconds."""
    (trunk,) = (trunk for trunk in TIMM_TRUNKS if trunk.native)
    monkeypatch.setitem(trunk.towers, "naflexvit_tiny_patch8_siglip", NAFLEX.model.vision)
    spec = with_tokenizer(OPEN_CLIP, file=vocabulary)
    export(spec, variables_of(OPEN_CLIP), tmp_path / "naflex", "open_clip", overwrite=False)
    return tmp_path / "naflex"


def test_open_clips_configuration_is_written_and_read_back(open_clip_folder):
    file = json.loads((open_clip_folder / "open_clip_config.json").read_text())
    assert file["model_cfg"]["vision_cfg"] == {
        "image_size": 16,
        "image_seq_len": 6,
        "timm_model_name": "naflexvit_tiny_patch8_siglip",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    }
    assert file["preprocess_cfg"]["resize_mode"] == "squash"
    tensors = load_file(open_clip_folder / "open_clip_model.safetensors")
    assert tensors["visual.trunk.embeds.proj.weight"].shape == (64, 3 * 8 * 8)
    assert tensors["visual.trunk.embeds.pos_embed"].shape == (1, 2, 2, 64)
    assert_same(flaxclip.load(open_clip_folder), OPEN_CLIP, variables_of(OPEN_CLIP))


def test_an_adapter_for_open_clips_has_its_names(open_clip_folder, tmp_path):
    kernel = "params/vision/patch_embedding/kernel"
    pairs = {kernel: (np.ones((192, 2), np.float32), np.ones((2, 64), np.float32))}
    base, folder = str(open_clip_folder), tmp_path / "adapter"
    weights = open_weights(base)
    lora = LoRA((kernel,), rank=2, alpha=2.0)
    write_adapter(pairs, lora, weights.spec.model, base, weights.kind, folder, overwrite=False)
    change = flaxclip.load(folder).params["vision"]["patch_embedding"]["kernel"]
    before = variables_of(OPEN_CLIP)["params"]["vision"]["patch_embedding"]["kernel"]
    np.testing.assert_allclose(change - before, np.full((192, 64), 2.0), rtol=1e-6)


def test_open_clips_names_are_those_of_its_files(tmp_path):
    """What open_clip 4 calls the models, and the tower that timm has for them."""
    for name, tower in (("B", "base"), ("SO400M", "so400m")):
        spec = VARIANTS[f"ViT-{name}-16-SigLIP2-naflex"]
        file = open_clip_json(spec)
        sizes = ("image_size", "image_seq_len", "timm_model_name")
        found = tuple(file["model_cfg"]["vision_cfg"][field] for field in sizes)
        assert found == (384, 576, f"naflexvit_{tower}_patch16_siglip")
        (tmp_path / CONFIG_FILE).write_text(json.dumps(file))
        again = read_config(tmp_path / CONFIG_FILE)
        assert again == with_tokenizer(spec, cleaning="canonicalize")


def test_big_visions_squares_are_not_taken_for_another(tmp_path):
    tensors = big_vision_table(SIGLIP.model, stacked=True).to_theirs(variables_of(SIGLIP))
    np.savez(tmp_path / "squares.npz", **tensors)
    with pytest.raises(InputError, match="an image tower of squares\nViT-B-16-SigLIP2-naflex is"):
        flaxclip.load(tmp_path / "squares.npz", model="ViT-B-16-SigLIP2-naflex")


def test_open_clips_square_tells_the_most_patches_where_nothing_else_does(open_clip_folder):
    path = open_clip_folder / "open_clip_config.json"
    file = json.loads(path.read_text())
    vision = file["model_cfg"]["vision_cfg"]
    del vision["image_seq_len"]
    vision["image_size"] = 40
    path.write_text(json.dumps(file))
    model = flaxclip.load(open_clip_folder)
    assert model.transform.max_patches == 25
    assert model.config.vision.image_size == 16  # of the learned grid


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timm_model_kwargs": {"patch_size": 32}}, r"vision_cfg\.timm_model_kwargs"),
        ({"timm_model_name": "naflexvit_base_patch16_gap"}, "timm_model_name is 'naflexvit_base"),
        ({"timm_pool": "avg"}, "timm_pool 'avg' .*\nexpected 'map' and 'none'"),
        ({"image_seq_len": 0}, r"vision_cfg\.image_seq_len"),
        (
            {"timm_model_name": "vit_base_patch16_siglip_256"},
            "image_seq_len is 6\nexpected none: timm's vit_base_patch16_siglip_256 sees squares",
        ),
    ],
)
def test_other_towers_of_open_clip_are_refused(changes, message, open_clip_folder):
    path = open_clip_folder / "open_clip_config.json"
    file = json.loads(path.read_text())
    file["model_cfg"]["vision_cfg"] |= changes
    path.write_text(json.dumps(file))
    with pytest.raises(InputError, match=message):
        flaxclip.load(open_clip_folder)


def test_what_takes_squares_alone_is_not_written(tmp_path):
    variables = variables_of(NAFLEX)
    with pytest.raises(InputError, match="8\nopen_clip takes such towers from timm by name"):
        export(NAFLEX, variables, tmp_path / "a", "open_clip", overwrite=False)
    clip = CLIP._replace(preprocess=NATIVE_IMAGES)
    with pytest.raises(InputError, match='"clip" for images at their own aspect ratio\nof such'):
        export(clip, variables_of(CLIP), tmp_path / "d", "open_clip", overwrite=False)
    other = with_tokenizer(NAFLEX, name="siglip")
    with pytest.raises(InputError, match="tokenizer is siglip, and transformers gives"):
        export(other, variables, tmp_path / "c", "huggingface", overwrite=False)
    with pytest.raises(InputError, match="takes squares"):
        write_graphs(NAFLEX, variables, tmp_path / "b", "onnx")


def test_each_number_of_patches_is_a_column(folder, tmp_path, capsys):
    write_wds(tmp_path / "data/wds_vtab-cifar10", labelled(20, 10), names=list("abcdefghij"))
    arguments = [
        str(folder), "--max-patches", "4", "9", "--tasks", f"wds:{tmp_path}/data/wds_vtab-cifar10",
        "--out", str(tmp_path / "results"), "--cache", str(tmp_path / "cache"),
        "--batch-size", "8", "--dtype", "float32",
    ]  # fmt: skip
    run_each(tyro.cli(Command, args=arguments))
    results = [
        read_result(path) for path in sorted((tmp_path / "results").glob("*-patches/*.json"))
    ]
    assert [result.checkpoint.max_patches for result in results] == [4, 9]
    assert len({result.identity_sha256 for result in results}) == 2
    for result in results:
        assert result.details["preprocessing"]["max_patches"] == result.checkpoint.max_patches
        assert not result.unreadable
    page = (tmp_path / "results/comparison.html").read_text()
    assert "4 patches" in page
    assert "9 patches" in page


def test_embeddings_have_the_number_of_patches_that_is_asked_for(tmp_path, capsys):
    # Around 0: embeddings of positive numbers alone are all nearly the same.
    variables = jax.tree.map(lambda x: x - 0.5, variables_of(NAFLEX))
    save_variables(tmp_path, NAFLEX._asdict(), variables)
    (tmp_path / "photos").mkdir()
    for name in ("a", "b"):
        WIDE.rotate(180 * (name == "b")).save(tmp_path / f"photos/{name}.png")

    def embed(*more):
        words = (tmp_path, tmp_path / "photos", tmp_path / "out", "--batch-size", "8", *more)
        return embed_corpus(tyro.cli(EmbedCommand, args=list(map(str, words))))

    found = embed("--max-patches", "9", "--precision", "float32").embeddings("image", 0)
    few, many = (
        np.asarray(CLIPModel(NAFLEX, variables).encode_image([WIDE], 1, max_patches=n))
        for n in (4, 9)
    )
    np.testing.assert_allclose(found[:1], many, rtol=0, atol=1e-5)
    assert np.abs(found[0] - few).max() > 0.01
    words = [str(tmp_path / "out"), "--image", str(tmp_path / "photos/a.png")]
    (best, _) = search(tyro.cli(SearchCommand, args=words))
    assert (best["image_path"], best["similarity"]) == ("a.png", pytest.approx(1, abs=1e-5))
    for more in ((), ("--max-patches", "4")):
        said = refused(lambda more=more: embed("--precision", "float32", *more), capsys)
        assert "holds other embeddings" in said


def test_the_checkpoint_of_squares_among_several_is_named(folder, tmp_path):
    save_variables(tmp_path / "squares", SIGLIP._asdict(), variables_of(SIGLIP))
    words = [str(folder), str(tmp_path / "squares"), "--max-patches", "4", "--tasks", "cifar10"]
    with pytest.raises(InputError, match="squares: max_patches is 4, and the model takes squares"):
        run_each(tyro.cli(Command, args=words))


def test_more_patches_than_published_models_have_learned_are_warned_of(tmp_path, capsys):
    save_variables(tmp_path, NAFLEX._asdict(), variables_of(NAFLEX))
    assert find_checkpoint(str(tmp_path), None, None, 16).weights.notice == ""
    warning = "images of up to 17 patches have positions resampled from 2 x 2 learned ones"
    assert warning in find_checkpoint(str(tmp_path), None, None, 17).weights.notice
    (tmp_path / "photos").mkdir()
    WIDE.save(tmp_path / "photos/a.png")
    words = (tmp_path, tmp_path / "photos", tmp_path / "out", "--batch-size", "8")
    more = ("--precision", "float32", "--max-patches", "17")
    embed_corpus(tyro.cli(EmbedCommand, args=list(map(str, (*words, *more)))))
    assert warning in capsys.readouterr().out


def test_squares_are_not_embedded_in_patches(tmp_path, capsys):
    save_variables(tmp_path, SIGLIP._asdict(), variables_of(SIGLIP))
    words = [str(tmp_path), str(tmp_path / "photos"), str(tmp_path / "out"), "--max-patches", "9"]
    said = refused(lambda: embed_corpus(tyro.cli(EmbedCommand, args=words)), capsys)
    assert "max_patches is 9, and the model takes squares of 16" in said
