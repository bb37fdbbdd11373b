"""Directories as peers leave them: their weights are found, or what lies there is named."""

import json
import shutil

import fsspec
import numpy as np
import pytest
import safetensors.numpy

import flaxclip
from flaxclip.checkpoint.layout import save_variables
from flaxclip.errors import InputError
from flaxclip.interop.archives.open_archive import open_archive
from flaxclip.interop.export import export
from flaxclip.interop.files import find_weights
from tests.helpers.small_models import CLIP, as_transformers, assert_same, variables_of
from tests.helpers.torch_files import saved

MODEL = "model.safetensors"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "clip"
    export(CLIP, variables_of(CLIP), folder, "huggingface", overwrite=False)
    return folder


@pytest.fixture(params=["here", "elsewhere"])
def clip(request, exported, tmp_path, monkeypatch):
    """A directory that transformers wrote, and a function that loads what has become of it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "clip"
    shutil.copytree(exported, folder)

    def load():
        if request.param == "here":
            return flaxclip.load(folder)
        remote = fsspec.filesystem("memory")
        if remote.exists("/peers"):
            remote.rm("/peers", recursive=True)
        remote.put(str(folder), "/peers/clip", recursive=True)
        return flaxclip.load("memory://peers/clip")

    return folder, load


def split(folder, name, write):
    """`folder` with its weights in two files and an index so named."""
    tensors = safetensors.numpy.load_file(folder / MODEL)
    (folder / MODEL).unlink()
    stem, suffix = name.split(".index")[0].rsplit(".", 1)
    listed = {}
    for number, names in enumerate((sorted(tensors)[:9], sorted(tensors)[9:]), 1):
        file = f"{stem}-0000{number}-of-00002.{suffix}"
        (folder / file).write_bytes(write({name: tensors[name] for name in names}))
        listed |= dict.fromkeys(names, file)
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": listed}))


@pytest.mark.parametrize(
    ("index", "write"),
    [
        ("pytorch_model.bin.index.json", saved),
        ("model.safetensors.index.json", safetensors.numpy.save),
        ("model.safetensors.index.fp16.json", safetensors.numpy.save),
        ("open_clip_pytorch_model.bin.index.json", saved),
    ],
)
def test_weights_in_several_files_are_found_by_their_index(index, write, clip):
    folder, load = clip
    split(folder, index, write)
    assert_same(load(), as_transformers(CLIP), variables_of(CLIP))


def test_a_variant_is_read_where_it_is_alone(clip):
    folder, load = clip
    (folder / MODEL).rename(folder / "model.fp16.safetensors")
    assert_same(load(), as_transformers(CLIP), variables_of(CLIP))
    assert find_weights(folder) == folder / "model.fp16.safetensors"
    tensors = safetensors.numpy.load_file(folder / "model.fp16.safetensors")
    (folder / "pytorch_model.fp16.bin").write_bytes(saved(tensors))  # the same variant
    assert_same(load(), as_transformers(CLIP), variables_of(CLIP))
    (folder / "model.ema.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"variants of the weights: model\.ema.*, model\.fp16"):
        load()
    shutil.copy(folder / "model.fp16.safetensors", folder / MODEL)
    assert_same(load(), as_transformers(CLIP), variables_of(CLIP))


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (["flax_model.msgpack"], r"found: flax_model.msgpack\n.*\nweights of Flax and TensorFlow"),
        (["tf_model.h5"], r"found: tf_model.h5\n"),
        (["epoch_1.pt", "epoch_2.pt"], r"found: epoch_1.pt, epoch_2.pt\n.*\nname one of these"),
        ([f"last-{n}.ckpt" for n in range(7)], r"found: last-0.ckpt, .*, last-4.ckpt and 2 more"),
        ([], r"found: config.json\n.*\nput the weights beside it"),
    ],
)
def test_what_a_peers_directory_holds_instead_is_named(found, message, clip):
    folder, load = clip
    (folder / MODEL).unlink()
    for name in found:
        (folder / name).write_bytes(b"")
    with pytest.raises(InputError, match=message) as error:
        load()
    assert "has saved no checkpoint" not in str(error.value)
    assert "read are open_clip_model.safetensors" in str(error.value)


def test_an_adapter_of_another_name_is_no_model(clip):
    folder, load = clip
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"no adapter of a name that is read\nexpected adapter_m"):
        load()
    assert_same(flaxclip.load(folder / MODEL), as_transformers(CLIP), variables_of(CLIP))


def sentence_transformers(folder, modules, path="0_CLIPModel"):
    """`folder` as the module of a model of sentence-transformers."""
    module = folder / path
    module.mkdir()
    for file in [file for file in folder.iterdir() if file.is_file()]:
        file.rename(module / file.name)
    clip = {"idx": 0, "name": "0", "path": path, "type": "sentence_transformers.models.CLIPModel"}
    (folder / "modules.json").write_text(json.dumps([clip, *modules]))


def test_the_clip_of_sentence_transformers_is_found(clip):
    folder, load = clip
    normalize = {"path": "1_Normalize", "type": "sentence_transformers.models.Normalize"}
    sentence_transformers(folder, [normalize])
    assert_same(load(), as_transformers(CLIP), variables_of(CLIP))
    # A module that says it is in a module: not followed for ever.
    (folder / "0_CLIPModel" / "modules.json").write_text('[{"path": "0_CLIPModel"}]')
    assert_same(load(), as_transformers(CLIP), variables_of(CLIP))


def test_what_follows_the_clip_in_sentence_transformers_may_not_change_it(clip):
    folder, load = clip
    sentence_transformers(
        folder, [{"path": "1_Dense", "type": "sentence_transformers.models.Dense"}]
    )
    with pytest.raises(InputError, match="in which a module Dense follows the first one"):
        load()


@pytest.mark.parametrize("path", ["../clip", "/etc", "0_CLIPModel/..", "", "..", 3, None])
def test_modules_elsewhere_are_not_looked_for(path, exported, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    shutil.copytree(exported, tmp_path / "clip")
    (folder / "modules.json").write_text(json.dumps([{"path": path}]))
    assert find_weights(folder) == folder / MODEL


@pytest.mark.parametrize("modules", ["[", "{}", "[]", "[1]", "null"])
def test_a_list_of_modules_that_is_none_says_nothing(modules, exported, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    (folder / "modules.json").write_text(modules)
    assert find_weights(folder) == folder / MODEL


def test_a_run_of_ours_stays_one_whatever_lies_beside_it(tmp_path):
    save_variables(tmp_path / "run", CLIP._asdict(), variables_of(CLIP))
    for name in ("export.safetensors", "notes.pt", "model.fp16.safetensors", "flax_model.msgpack"):
        (tmp_path / "run" / name).write_bytes(b"")
    assert_same(flaxclip.load(tmp_path / "run"), CLIP, variables_of(CLIP))
    (tmp_path / "young").mkdir()
    shutil.copy(tmp_path / "run" / "config.json", tmp_path / "young")
    with pytest.raises(InputError, match="has saved no checkpoint yet"):
        flaxclip.load(tmp_path / "young")


def test_an_index_opens_no_index_and_takes_no_tensor_twice(tmp_path):
    index = tmp_path / "pytorch_model.bin.index.json"
    (tmp_path / "a.bin").write_text('{"weight_map": {"w": "a.bin"}}')
    index.write_text('{"weight_map": {"w": "a.bin"}}')
    with pytest.raises(InputError, match=r"a\.bin, which the index names: no file of weights"):
        open_archive(index)
    for name in ("a.bin", "b.bin"):
        (tmp_path / name).write_bytes(saved({"w": np.ones(2, np.float32)}))
    index.write_text('{"weight_map": {"w": "a.bin", "v": "b.bin"}}')
    with pytest.raises(InputError, match=r"tensor w is in b\.bin and in another file"):
        open_archive(index)
    (tmp_path / "b.bin").unlink()
    with pytest.raises(InputError, match=r"b\.bin, which the index names"):
        open_archive(index)


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path):
    for name in ("none.pt", "none.ckpt", "model.safetensors.index.fp16.json"):
        with pytest.raises(InputError, match="no file or directory"):
            flaxclip.load(tmp_path / name)
    (tmp_path / "weights.of.mine").write_bytes(b"hello")
    with pytest.raises(InputError, match="no file of weights: starts with b'hello'"):
        flaxclip.load(tmp_path / "weights.of.mine")
