"""The command line of conversion: from any format to any other, and what it refuses."""

import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

import flaxclip
from flaxclip.errors import InputError
from flaxclip.interop.__main__ import Convert, Info, convert, info
from flaxclip.interop.export import export
from flaxclip.interop.huggingface.names import huggingface_table
from tests.helpers.small_models import (
    RESNET,
    SIGLIP,
    as_transformers,
    assert_same,
    variables_of,
    with_tokenizer,
    write_bare,
)


@pytest.fixture
def bare(tmp_path):
    return write_bare(tmp_path)


def test_convert_to_a_workdir_and_on_to_the_others(vocabulary, tmp_path, capsys):
    variables = variables_of(SIGLIP)
    tensors = huggingface_table(SIGLIP.model).to_theirs(variables)
    named = with_tokenizer(SIGLIP, file=vocabulary)
    export(named, variables, tmp_path / "theirs", "huggingface", overwrite=False)
    convert(Convert(str(tmp_path / "theirs"), tmp_path / "run", "flaxclip"))
    (tmp_path / "run").rename(tmp_path / "moved")
    model = flaxclip.load(tmp_path / "moved")
    assert_same(model, as_transformers(SIGLIP), variables)
    assert model.spec.tokenizer.file == str(tmp_path / "moved" / "spiece.model")

    convert(Convert(str(tmp_path / "moved"), tmp_path / "back", "huggingface"))
    back = safetensors.numpy.load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor, strict=True)

    capsys.readouterr()
    for source in ("moved", "back"):
        info(Info(str(tmp_path / source)))
        out = capsys.readouterr().out
        for text in (
            "gelu_tanh",
            "squash, bicubic, mean (0.5",
            "siglip, vocabulary in",
            "12 tokens",
        ):
            assert text in out


def test_nothing_is_overwritten_that_is_no_model_or_without_being_told(bare, tmp_path):
    def command(dst, overwrite=False):
        return Convert(str(bare), dst, "open_clip", model="ViT-tiny", overwrite=overwrite)

    convert(command(tmp_path / "out"))
    with pytest.raises(InputError, match="out exists\nname another folder, or add --overwrite"):
        convert(command(tmp_path / "out"))
    convert(command(tmp_path / "out", overwrite=True))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="home holds no model, so it is not replaced"):
        convert(command(tmp_path / "home", overwrite=True))
    with pytest.raises(InputError, match="holds the model itself"):
        convert(command(bare.parent, overwrite=True))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "epoch_32.safetensors", "home", "out",
    ]  # fmt: skip


def test_a_model_that_the_other_library_lacks_is_not_written(tmp_path):
    with pytest.raises(InputError, match="transformers has no model of a ResNet"):
        export(RESNET, variables_of(RESNET), tmp_path / "out", "huggingface", overwrite=False)
    with pytest.raises(InputError, match="open_clip takes such towers from timm by name"):
        export(SIGLIP, variables_of(SIGLIP), tmp_path / "out", "open_clip", overwrite=False)
    with pytest.raises(InputError, match="whose vocabulary is not known\nname its file with --tok"):
        export(SIGLIP, variables_of(SIGLIP), tmp_path / "out", "huggingface", overwrite=False)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_says_what_is_wrong_in_two_lines(bare):
    command = [sys.executable, "-m", "flaxclip.interop", "info", str(bare)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"flaxclip.interop: {bare} is a bare state dict")
    assert "Traceback" not in done.stderr
