"""Models at URLs: copied once, anew when they change, and read from the Hub."""

import os
import subprocess
import sys
from pathlib import Path

import fsspec
import jax
import pytest

import flaxclip
from flaxclip.checkpoint.layout import save_variables
from flaxclip.errors import InputError
from flaxclip.interop.export import export
from flaxclip.weights import open_weights
from tests.helpers.hub_stand_in import Hosted, hub, serve_hub, take_for_the_hub
from tests.helpers.small_models import (
    CLIP,
    SIGLIP,
    as_transformers,
    assert_same,
    variables_of,
    with_tokenizer,
)


def test_urls_are_copied_once_and_anew_when_they_change(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    export(CLIP, variables_of(CLIP), tmp_path / "out", "huggingface", overwrite=False)
    remote = fsspec.filesystem("memory")
    remote.put(str(tmp_path / "out"), "/models/clip", recursive=True)
    for url in ("memory://models/clip", "memory://models/clip/model.safetensors"):
        assert_same(flaxclip.load(url), as_transformers(CLIP), variables_of(CLIP))
    cache = tmp_path / "cache" / "flaxclip" / "weights"
    copies = sorted(cache.iterdir())
    flaxclip.load("memory://models/clip")
    assert sorted(cache.iterdir()) == copies

    doubled = jax.tree.map(lambda x: 2 * x, variables_of(CLIP))
    export(CLIP, doubled, tmp_path / "out", "huggingface", overwrite=True)
    remote.rm("/models/clip", recursive=True)
    remote.put(str(tmp_path / "out"), "/models/clip", recursive=True)
    assert_same(flaxclip.load("memory://models/clip"), as_transformers(CLIP), doubled)


def test_a_run_at_a_url_is_copied_with_one_of_its_steps(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    doubled = jax.tree.map(lambda x: 2 * x, variables_of(CLIP))
    for step, variables in (("0", variables_of(CLIP)), ("7", doubled)):
        save_variables(tmp_path / step, CLIP._asdict(), variables)
        (tmp_path / step / "checkpoints" / "0").rename(tmp_path / "0" / "checkpoints" / step)
    fsspec.filesystem("memory").put(str(tmp_path / "0"), "/runs/mine", recursive=True)
    assert_same(flaxclip.load("memory://runs/mine"), CLIP, doubled)
    assert_same(flaxclip.load("memory://runs/mine/checkpoints/0"), CLIP, variables_of(CLIP))
    for url in ("memory://runs/mine/checkpoints/3", "memory://runs"):
        with pytest.raises(InputError, match=f"(no model at|cannot read) {url}"):
            flaxclip.load(url)


def test_a_runs_vocabulary_comes_with_it_whatever_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("words.json", "words.txt"):
        spec = with_tokenizer(SIGLIP, file=str(tmp_path / "elsewhere" / name))
        save_variables(tmp_path / name / "run", spec._asdict(), variables_of(SIGLIP))
        (tmp_path / name / "run" / name).write_text(name)
        files = fsspec.filesystem("memory")
        files.put(str(tmp_path / name / "run"), f"/runs/{name}", recursive=True)
        file = open_weights(f"memory://runs/{name}").spec.tokenizer.file
        assert file is not None
        assert Path(file).read_text() == name


def test_the_hubs_own_client_reads_a_repository(tmp_path):
    """The real client; in place of the Hub, which cannot be reached from a test, a small server."""
    export(CLIP, variables_of(CLIP), tmp_path / "out", "huggingface", overwrite=False)
    with hub("someone/clip", tmp_path / "out") as address:
        environment = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hub")}
        environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache")}
        command = [sys.executable, "-m", "flaxclip.interop", "info", "hf://someone/clip"]
        result = subprocess.run(
            command, env=os.environ | environment, capture_output=True, text=True, check=False
        )
    assert result.returncode == 0, result.stderr
    assert "transformers, clip; float32" in result.stdout


def test_what_the_hub_does_not_give_says_what_to_do(tmp_path, monkeypatch):
    export(CLIP, variables_of(CLIP), tmp_path / "out", "huggingface", overwrite=False)
    hosted = Hosted(tmp_path / "out", "models")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with serve_hub({"someone/clip": hosted}) as hub:
        take_for_the_hub(monkeypatch, hub.address)
        for url, message in (
            (
                "hf://someone/none",
                "the Hub shows no model someone/none: .*private\n.*hf auth login",
            ),
            ("hf://someone/clip@v9", "the model has no revision 'v9'"),
        ):
            with pytest.raises(InputError, match=message):
                flaxclip.load(url)
        hosted.gated = True
        with pytest.raises(InputError, match=r"agree at https://huggingface\.co/someone/clip, "):
            flaxclip.load("hf://someone/clip")
        take_for_the_hub(monkeypatch, hub.address, token="hf_of_nobody")
        with pytest.raises(InputError, match="does not accept the token that is set"):
            flaxclip.load("hf://someone/clip")
    with pytest.raises(InputError, match="a model of the Hub is hf://someone/clip"):
        flaxclip.load("someone/clip")


def test_new_weights_of_the_same_size_are_copied_anew(tmp_path, monkeypatch):
    variables = variables_of(CLIP)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with serve_hub({"someone/clip": Hosted(tmp_path / "out", "models")}) as hub:
        for factor in (1, 2):
            scaled = jax.tree.map(lambda leaf, factor=factor: factor * leaf, variables)
            export(CLIP, scaled, tmp_path / "out", "huggingface", overwrite=True)
            take_for_the_hub(monkeypatch, hub.address)
            loaded = flaxclip.load("hf://someone/clip").variables["params"]["logit_scale"]
            assert loaded == scaled["params"]["logit_scale"]


def test_urls_that_cannot_be_read_say_what_to_do(monkeypatch):
    with pytest.raises(InputError, match="Protocol not known: nonsense"):
        flaxclip.load("nonsense://a/b")
    fsspec.filesystem("memory").makedirs("/models", exist_ok=True)
    with pytest.raises(InputError, match="there is no file memory:"):
        flaxclip.load("memory://models/none.pt")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(InputError, match="pip install gcsfs"):
        flaxclip.load("gs://bucket/model.safetensors")
