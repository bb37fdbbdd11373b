"""Others' configurations: what they leave out, and what we would compute otherwise."""

import dataclasses
import json

import pytest

import flaxclip
from flaxclip.checkpoint.layout import save_variables
from flaxclip.errors import InputError
from flaxclip.interop.__main__ import Convert, convert
from flaxclip.interop.export import export
from flaxclip.interop.huggingface.read_config import read_config as read_huggingface_config
from flaxclip.interop.huggingface.write_config import huggingface_json, processor_json
from flaxclip.models.variants import VARIANTS
from tests.helpers.small_models import (
    CLIP,
    GELU,
    RESNET,
    SIGLIP,
    as_transformers,
    variables_of,
    with_tokenizer,
)


@pytest.fixture
def exported(tmp_path):
    """A directory of each library, and a function that changes its JSON."""

    def make(to, file, **changes):
        folder = tmp_path / to
        export(GELU, variables_of(GELU), folder, to, overwrite=True)
        value = json.loads((folder / file).read_text())
        for path, change in changes.items():
            *parents, last = path.split("__")
            target = value
            for parent in parents:
                target = target[parent]
            target[last] = change
        (folder / file).write_text(json.dumps(value))
        return folder

    return make


OPEN_CLIP, PROCESSOR = "open_clip_config.json", "preprocessor_config.json"
TOKENIZER = "tokenizer_config.json"


@pytest.mark.parametrize(
    ("to", "file", "path", "value", "message"),
    [
        ("open_clip", OPEN_CLIP, "model_cfg__vision_cfg__ls_init_value", 0.1, "ls_init_value"),
        ("open_clip", OPEN_CLIP, "model_cfg__vision_cfg__new_idea", True, "vision_cfg.new_idea"),
        ("open_clip", OPEN_CLIP, "model_cfg__text_cfg__pool_type", "last", "expected pool_type"),
        ("open_clip", OPEN_CLIP, "model_cfg__text_cfg__hf_model_name", "bert", "hf_model_name"),
        ("open_clip", OPEN_CLIP, "model_cfg__text_cfg__hf_tokenizer_name", "bert", "tokenizers of"),
        ("open_clip", OPEN_CLIP, "model_cfg__embed_dim", "wide", "model_cfg.embed_dim: Input"),
        ("open_clip", OPEN_CLIP, "model_cfg__text_cfg__layers", 2, "tensors unknown: transformer"),
        ("open_clip", OPEN_CLIP, "preprocess_cfg__resize_mode", "longest", "resize_mode"),
        ("open_clip", OPEN_CLIP, "preprocess_cfg__size", 336, "preprocess_cfg.size is 336"),
        ("open_clip", OPEN_CLIP, "model_cfg__vision_cfg__layers", 10**9, "layers is 1000000000"),
        ("open_clip", OPEN_CLIP, "model_cfg__vision_cfg__head_width", 0, "head_width: Input"),
        ("open_clip", OPEN_CLIP, "model_cfg__vision_cfg__head_width", 999, "heads is 0"),
        ("open_clip", OPEN_CLIP, "model_cfg__text_cfg__mlp_ratio", float("nan"), "mlp_ratio: Inp"),
        ("open_clip", OPEN_CLIP, "model_cfg__text_cfg__norm_kwargs__eps", -1, "norm_eps is -1"),
        ("open_clip", OPEN_CLIP, "preprocess_cfg__std", [1, 0, 1], r"std\[1\] is 0"),
        ("huggingface", "config.json", "text_config__num_attention_heads", 0, "_heads: Input sh"),
        ("huggingface", "config.json", "text_config__num_hidden_layers", 10**18, "layers is 1"),
        ("huggingface", PROCESSOR, "rescale_factor", 1, "rescale_factor is 1"),
        ("huggingface", "config.json", "model_type", "blip", "a model of type 'blip'"),
        ("huggingface", "config.json", "vision_config__hidden_act", "relu", "hidden_act"),
        ("huggingface", "config.json", "text_config__eos_token_id", 7, "eos_token_id is 7"),
        ("huggingface", PROCESSOR, "size", {"shortest_edge": 30}, "do not make squares"),
        ("huggingface", PROCESSOR, "resample", 1, "resample: Input should be 2 or 3"),
        ("huggingface", PROCESSOR, "use_square_size", True, "use_square_size: Input should be F"),
        ("huggingface", PROCESSOR, "do_pad", True, "do_pad: Input should be False"),
        ("huggingface", PROCESSOR, "image_processor_type", "BlipImageProcessor", "type is 'Blip"),
        ("huggingface", TOKENIZER, "padding_side", "left", "padding_side is 'left'\nexpected rig"),
        ("huggingface", TOKENIZER, "truncation_side", "left", "truncation_side is 'left'"),
    ],
)  # fmt: skip
def test_configurations_that_we_would_compute_otherwise_are_refused_by_field(
    to, file, path, value, message, exported
):
    folder = exported(to, file, **{path: value})
    with pytest.raises(InputError, match=message):
        flaxclip.load(folder)


def test_a_resnets_heads_are_those_of_its_configuration_or_it_is_refused(tmp_path):
    """open_clip makes width * 32 // head_width of them, which no tensor's shape tells."""
    export(RESNET, variables_of(RESNET), tmp_path / "out", "open_clip", overwrite=False)
    path = tmp_path / "out" / OPEN_CLIP
    config = json.loads(path.read_text())
    for head_width in (64, 32):
        config["model_cfg"]["vision_cfg"]["head_width"] = head_width
        path.write_text(json.dumps(config))
        if head_width == 64:
            assert flaxclip.load(tmp_path / "out").spec == RESNET
    with pytest.raises(
        InputError, match=r"head_width is 32, which makes 4 heads .*\nexpected 2, of"
    ):
        flaxclip.load(tmp_path / "out")


SIDES = [[16, 16], {"height": 16, "width": 16}, 16]


@pytest.mark.parametrize("side", SIDES, ids=str)
@pytest.mark.parametrize(
    ("to", "file", "tower"),
    [
        ("open_clip", OPEN_CLIP, "model_cfg__vision_cfg"),
        ("huggingface", "config.json", "vision_config"),
    ],
)
def test_the_side_of_a_square_may_be_said_twice(to, file, tower, side, exported):
    folder = exported(to, file, **{f"{tower}__image_size": side, f"{tower}__patch_size": [8, 8]})
    assert flaxclip.load(folder).config.vision == GELU.model.vision


@pytest.mark.parametrize("side", [[16, 24], {"height": 16, "width": 24}], ids=str)
@pytest.mark.parametrize(
    ("to", "file", "tower"),
    [
        ("open_clip", OPEN_CLIP, "model_cfg__vision_cfg"),
        ("huggingface", "config.json", "vision_config"),
    ],
)
def test_images_that_are_no_squares_are_refused_by_both_sides(to, file, tower, side, exported):
    folder = exported(to, file, **{f"{tower}__image_size": side})
    with pytest.raises(InputError, match=r"image_size: .*height 16, width 24; expected a square"):
        flaxclip.load(folder)


def test_weights_of_transformers_need_the_files_beside_them(exported):
    folder = exported("huggingface", "config.json")
    (folder / PROCESSOR).unlink()
    (folder / "processor_config.json").write_text('{"processor_class": "CLIPProcessor"}')
    with pytest.raises(InputError, match="without it, size, mean and deviation"):
        flaxclip.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match="whose shapes do not tell heads"):
        flaxclip.load(folder / "model.safetensors")


def test_defaults_that_transformers_leaves_out_are_filled_in(tmp_path):
    """As in the published config.json of SigLIP, which is nearly empty.

    Its class takes nothing from `vision_config_dict`, which is of CLIP's old files.
    """
    config = {"model_type": "siglip", "vision_config": {}, "text_config": {}}
    config["vision_config_dict"] = {"hidden_size": 96}
    (tmp_path / "config.json").write_text(json.dumps(config))
    processor = {"size": {"height": 224, "width": 224}, "resample": 3}
    processor |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / PROCESSOR).write_text(json.dumps(processor))
    spec, _ = read_huggingface_config(tmp_path)
    assert spec == as_transformers(VARIANTS["ViT-B-16-SigLIP"])


@pytest.mark.parametrize(
    ("kind", "processor", "expected"),
    [
        ("clip", {"size": 224}, ("shortest", "bicubic")),
        (
            "clip",
            {"feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "crop_size": 224},
            ("shortest", "bicubic"),
        ),
        (
            "clip",
            {"image_processor_type": "CLIPImageProcessorFast", "size": 224, "do_center_crop": None},
            ("shortest", "bicubic"),
        ),
        (
            "clip",
            {
                "image_processor_type": "SiglipImageProcessor",
                "size": {"height": 224, "width": 224},
            },
            ("squash", "bicubic"),
        ),
        ("siglip2", {"image_processor_type": "Siglip2ImageProcessor"}, ("native", "bilinear")),
    ],
)
@pytest.mark.parametrize("file", [PROCESSOR, "processor_config.json"])
def test_an_image_processor_that_is_told_little_does_what_its_class_does(
    kind, processor, expected, file, tmp_path
):
    from flaxclip.interop.huggingface.read_config import read_config

    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    processor = processor | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    if file == PROCESSOR:
        (tmp_path / file).write_text(json.dumps(processor))
    else:
        # Of both files, transformers 5 obeys this one.
        (tmp_path / file).write_text(json.dumps({"image_processor": processor}))
        (tmp_path / PROCESSOR).write_text(json.dumps(processor | {"resample": 1}))
    preprocess = read_config(tmp_path)[0].preprocess
    assert (preprocess.resize, preprocess.interpolation) == expected
    assert (preprocess.transparency, preprocess.crop_rounding) == ("white", "down")


def test_a_crop_smaller_than_the_model_is_refused_though_its_size_is_not_written(tmp_path):
    """`CLIPImageProcessor` cuts 224 pixels out unless it is told otherwise."""
    from flaxclip.interop.huggingface.read_config import read_config

    config = {"model_type": "clip", "vision_config": {"image_size": 256}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    processor = {"size": 256, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / PROCESSOR).write_text(json.dumps(processor))
    with pytest.raises(InputError, match="crop_size 224, do_center_crop True do not make squares"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("to", "spec", "remarks"),
    [
        (
            "huggingface",
            CLIP,
            ["transformers lays images over white", "centre crops", "in place of lower"],
        ),
        (
            "huggingface",
            SIGLIP,
            ["transformers lays images over white", "in place of canonicalize"],
        ),
        (
            "open_clip",
            as_transformers(CLIP),
            ["open_clip drops alpha", "centre crops", "in place of transformers_clip"],
        ),
        (
            "open_clip",
            as_transformers(GELU),
            ["open_clip drops alpha", "in place of transformers_clip"],
        ),
    ],
)
def test_what_the_other_librarys_files_cannot_say_is_said(
    to, spec, remarks, vocabulary, tmp_path, capsys
):
    file = vocabulary if spec.tokenizer.name != "clip" else None
    named = with_tokenizer(spec, file=file)
    save_variables(tmp_path / "run", named._asdict(), variables_of(spec))
    convert(Convert(str(tmp_path / "run"), tmp_path / "out", to))
    _, second, *found = capsys.readouterr().out.splitlines()
    assert second == "its files cannot say how this model prepares"
    assert len(found) == len(remarks)
    assert all(remark in line for remark, line in zip(remarks, found, strict=True))


def test_captions_are_read_out_at_clips_end_marker_though_there_are_more_embeddings(tmp_path):
    """Padded to a multiple, say: transformers looks for eos_token_id, and not for the highest."""
    text = dataclasses.replace(CLIP.model.text, vocab_size=49_500)
    spec = as_transformers(CLIP._replace(model=dataclasses.replace(CLIP.model, text=text)))
    config = huggingface_json(spec)
    found = config["text_config"]
    assert found["vocab_size"] == 49_500
    assert (found["bos_token_id"], found["eos_token_id"]) == (49_406, 49_407)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / PROCESSOR).write_text(json.dumps(processor_json(spec)))
    assert read_huggingface_config(tmp_path)[0] == spec
    found["eos_token_id"] = 49_499  # which no caption has: all would be read out at their start
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"eos_token_id is 49499\nexpected .* highest id, 49407"):
        read_huggingface_config(tmp_path)
