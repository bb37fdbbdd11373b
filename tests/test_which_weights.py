"""A checkpoint may hold weights and their average: either is taken, and it is said which."""

import json
import warnings

import jax
import numpy as np
import PIL.Image
import pytest
import safetensors.numpy

import flaxclip
from flaxclip.benchmark.command import Command
from flaxclip.benchmark.command import run as measure
from flaxclip.benchmark.report.exports import checkpoint_name
from flaxclip.checkpoint.layout import save_variables
from flaxclip.errors import InputError
from flaxclip.interop.__main__ import Convert, Info, convert, info
from flaxclip.interop.archives.open_archive import open_archive
from flaxclip.interop.open_clip.names import open_clip_table
from flaxclip.interop.open_clip.write_config import open_clip_json
from tests.helpers.small_models import CLIP, assert_same, variables_of
from tests.helpers.torch_files import RAW, assert_is, checkpoint, stored, torch_file

AVERAGE = {name: np.asarray(2 * array) for name, array in RAW.items()}
BOTH = [
    ("state_dict", "state_dict_ema"),  # timm
    ("model", "model_ema"),  # DeiT, ConvNeXt
    ("state_dict", "ema_state_dict"),
    ("model_state_dict", "ema_model_state_dict"),
    ("model", "ema"),
]


@pytest.mark.parametrize(("raw", "average"), BOTH)
def test_of_weights_and_their_average_the_average_is_taken_and_said(raw, average, write):
    path = write(checkpoint({"epoch": 1, raw: RAW, average: AVERAGE}))
    for which, taken, other, arrays in (
        (None, average, raw, AVERAGE),
        ("ema", average, raw, AVERAGE),
        ("raw", raw, average, RAW),
    ):
        archive = open_archive(path, which)
        assert_is(archive, arrays)
        assert (archive.key, archive.others) == (taken, (other,))
        kind = "weights" if which == "raw" else "averaged weights"
        assert archive.describe() == f", {kind} {taken!r}, not {other!r}"


def test_an_average_that_cannot_be_read_is_named(write):
    tensors, storages = stored(RAW)
    value = {"model": tensors, "ema": {"decay": 0.99, "shadow_params": [*tensors.values()]}}
    archive = open_archive(write(torch_file(value, storages)))
    assert_is(archive, RAW)
    assert archive.describe() == ", weights 'model', not 'ema'"


def test_lightning_puts_the_average_in_the_place_of_the_weights(write):
    value = {
        "state_dict": {f"model.{name}": array for name, array in AVERAGE.items()},
        "current_model_state": {f"model.{name}": array for name, array in RAW.items()},
        "averaging_state": {"n_averaged": np.array(7)},
    }
    path = write(checkpoint(value))
    assert open_archive(path).describe() == (
        ", averaged weights 'state_dict', not 'current_model_state'"
    )
    assert_is(open_archive(path), AVERAGE)
    assert_is(open_archive(path, "raw"), RAW)


def test_other_parameters_of_a_lightning_module_are_named(write):
    clip = {
        "model.logit_scale": np.float32(1)[None],
        "model.visual.proj": np.ones((2, 3), np.float32),
    }
    head = {"head.weight": np.ones(3, np.float32), "criterion.margin": np.ones(1, np.float32)}
    path = write(checkpoint({"state_dict": clip | head}))
    message = r"under 'model\.' in the file, and 2 other tensors.*criterion.margin, head.weight"
    with pytest.raises(InputError, match=message):
        open_archive(path)


@pytest.mark.parametrize("wrapped", [False, True])
def test_torchs_averaged_model_counts_beside_its_weights(wrapped, write):
    arrays = {"n_averaged": np.array(7)} | {f"module.{n}": array for n, array in AVERAGE.items()}
    path = write(checkpoint({"state_dict": arrays} if wrapped else arrays))
    assert_is(open_archive(path, "ema"), AVERAGE)
    name = " 'state_dict'" if wrapped else ""
    assert open_archive(path).describe() == f", averaged weights{name}"
    with pytest.raises(InputError, match=r"holds (an average of|no) weights (alone|besides)"):
        open_archive(path, "raw")


def test_weights_that_are_asked_for_and_not_there_are_refused(write):
    path = write(checkpoint({"state_dict": RAW}))
    assert_is(open_archive(path, "raw"), RAW)
    with pytest.raises(
        InputError, match=r"holds no average of weights that can.*\nit has: state_dict"
    ):
        open_archive(path, "ema")
    with pytest.raises(InputError, match="holds no weights besides their average"):
        open_archive(write(checkpoint({"ema": AVERAGE})), "raw")
    with pytest.raises(InputError, match="one set of weights, and does not say that they are"):
        open_archive(write(safetensors.numpy.save(RAW)), "ema")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A checkpoint of timm's kind beside open_clip's configuration."""
    folder = tmp_path_factory.mktemp("both")
    raw = open_clip_table(CLIP.model).to_theirs(variables_of(CLIP))
    average = {f"module.{name}": np.asarray(2 * array) for name, array in raw.items()}
    (folder / "best.pt").write_bytes(checkpoint({"state_dict": raw, "state_dict_ema": average}))
    (folder / "open_clip_config.json").write_text(json.dumps(open_clip_json(CLIP)))
    return folder / "best.pt"


def doubled(variables):
    return jax.tree.map(lambda x: 2 * x, variables)


def test_flaxclip_load_says_which_weights_it_took_and_takes_the_others(both):
    with pytest.warns(UserWarning, match=r"holds weights and their average, which is taken\n.*raw"):
        assert_same(flaxclip.load(both), CLIP, doubled(variables_of(CLIP)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(flaxclip.load(both, weights="ema"), CLIP, doubled(variables_of(CLIP)))
        assert_same(flaxclip.load(both, weights="raw"), CLIP, variables_of(CLIP))


def test_commands_say_which_weights_they_took(both, tmp_path, capsys):
    info(Info(str(both)))
    out = capsys.readouterr().out
    assert "holds weights and their average, which is taken" in out
    assert "open_clip, averaged weights 'state_dict_ema', not 'state_dict'; float32" in out
    convert(Convert(str(both), tmp_path / "raw", "open_clip", weights="raw"))
    out = capsys.readouterr().out
    assert out == (
        f"{tmp_path / 'raw'}: open_clip, from open_clip, weights 'state_dict', "
        "not 'state_dict_ema'\n"
    )
    assert_same(flaxclip.load(tmp_path / "raw"), CLIP, variables_of(CLIP))


def test_scores_of_either_lie_apart_and_say_whose_they_are(both, tmp_path, capsys):
    for name, shade in (("dark", 20), ("light", 230)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(2):
            image = PIL.Image.new("RGB", (16, 16), (shade, shade, 9 * number))
            image.save(tmp_path / "images" / name / f"{number}.png")
    results = []
    for which in (None, "raw"):
        command = Command((str(both),), images=tmp_path / "images", cache=tmp_path, weights=which)
        results += measure(command).results
    assert capsys.readouterr().out.count("holds weights and their average, which is taken") == 1
    assert [result.checkpoint.weights for result in results] == [None, "raw"]
    assert results[0].checkpoint.format.endswith("'state_dict_ema', not 'state_dict'")
    assert results[1].checkpoint.format.endswith("'state_dict', not 'state_dict_ema'")
    assert results[0].parameters_sha256 != results[1].parameters_sha256
    assert [checkpoint_name(result).split("/")[1] for result in results] == [
        "best.pt",
        "best.pt raw",
    ]
    folders = sorted(path.name for path in (both.parent / "benchmark").iterdir())
    assert folders == ["best", "best-raw"]


def test_of_a_run_of_ours_either_is_read(tmp_path):
    variables = variables_of(CLIP)
    average = doubled(variables)["params"]
    save_variables(tmp_path / "run", CLIP._asdict(), variables | {"ema": average})
    for which, params in ((None, average), ("ema", average), ("raw", variables["params"])):
        assert_same(
            flaxclip.load(tmp_path / "run", weights=which), CLIP, variables | {"params": params}
        )
    save_variables(tmp_path / "plain", CLIP._asdict(), variables)
    with pytest.raises(InputError, match="keeps no average of its weights"):
        flaxclip.load(tmp_path / "plain", weights="ema")
    assert_same(flaxclip.load(tmp_path / "plain", weights="raw"), CLIP, variables)
