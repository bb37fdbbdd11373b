import dataclasses
import io
import json
import re
import subprocess
import sys
import tarfile

import jax
import numpy as np
import PIL.Image
import pytest

from flaxclip.checkpoint.layout import load_variables, saved_steps
from flaxclip.checkpoint.manager import CheckpointConfig
from flaxclip.data.sources.scenes import ScenesSource
from flaxclip.data.sources.tars.webdataset import WebDatasetSource
from flaxclip.errors import InputError
from flaxclip.models.clip import abstract_variables
from flaxclip.optim import OptimConfig, make_optimizer
from flaxclip.run.announcement import announce, explain_out_of_memory, peak_memory
from flaxclip.run.command_line import TrainCommand, parse
from flaxclip.run.experiment import load_experiment
from flaxclip.sharding import MeshConfig, make_mesh
from flaxclip.train import train
from flaxclip.train_state import abstract_train_state
from tests.helpers.command_lines import refused, run_cli
from tests.helpers.image_tars import jpeg, write_shard
from tests.helpers.metric_files import read_events
from tests.helpers.tiny_run import TINY_MODEL, tiny_config


def params_of(workdir, step):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        abstract_variables(TINY_MODEL),
    )
    return jax.device_get(load_variables(workdir, step, abstract)["params"])


NEVER = CheckpointConfig(every_steps=10**9)


class Killed(Exception):
    pass


def test_a_resumed_run_equals_one_that_never_stopped_bit_for_bit(
    finished_run, tmp_path, monkeypatch
):
    workdir = tmp_path / "stopped"
    writer = "flaxclip.train.CheckpointManager"
    with monkeypatch.context() as patch:
        import flaxclip.checkpoint.manager

        class StopsAfterFirstSave(flaxclip.checkpoint.manager.CheckpointManager):
            def save(self, *args):
                super().save(*args)
                self.close()
                raise Killed

        patch.setattr(writer, StopsAfterFirstSave)
        with pytest.raises(Killed):
            train(tiny_config(workdir))
    assert saved_steps(workdir) == [4]
    train(tiny_config(workdir))
    assert saved_steps(workdir) == [4, 8]
    jax.tree.map(np.testing.assert_array_equal, params_of(workdir, 8), params_of(finished_run, 8))
    assert not read_events(workdir / "tensorboard")[1]  # of `shown_pairs` 0


def test_metrics_are_written_for_every_report(finished_run):
    lines = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 4, 6, 8]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[-1]["replaced_records"] == 0
    assert list((finished_run / "tensorboard").glob("events.*"))


def test_tensorboard_gets_the_same_scalars_and_a_image_with_every_checkpoint(finished_run):
    lines = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    scalars, images = read_events(finished_run / "tensorboard")
    for line in lines:
        known = {name: value for name, value in line.items() if isinstance(value, float)}
        del known["time"]
        np.testing.assert_allclose(
            [scalars[name, line["step"]] for name in known], list(known.values()), rtol=1e-6
        )
    assert sorted(images) == [
        (name, step) for name in ("predictions", "similarities") for step in (4, 8)
    ]
    for image in images.values():
        assert min(PIL.Image.open(io.BytesIO(image)).size) > 200


def test_sixteen_real_pairs_are_learnt_by_heart(tmp_path):
    source, pairs = ScenesSource("train", 32), {}
    for index in range(16):
        image = io.BytesIO()
        PIL.Image.fromarray(source[index].image).save(image, "PNG")
        pairs[f"{index}"] = (image.getvalue(), source[index].captions[0])
    write_shard(tmp_path / "0.tar", pairs)
    config = tiny_config(tmp_path / "run", steps=30, log_every=30, checkpoint=NEVER)
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, path=(str(tmp_path / "0.tar"),)),
        optim=OptimConfig(peak_lr=5e-3, warmup_steps=10, weight_decay=0.0),
    )
    train(config)
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["image_to_text_accuracy"] == last["text_to_image_accuracy"] == 1.0


def test_the_command_line_trains_resumes_and_says_when_it_is_done(experiment, tmp_path):
    command = ("flaxclip.train", experiment, "--workdir", "run", "--data.workers", "1")
    first = run_cli(*command, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert re.search(
        r"step 8/8  loss \d\.\d+  acc i→t .*img/s  mfu unknown  data wait", first.stdout
    )
    parts = "imports .*, data and checkpoints .*, state .*, compilation .*, first batch .*, step "
    assert re.search(rf"first step after \d+\.\d s: {parts}", first.stdout)
    assert "python -m flaxclip.benchmark run" in first.stdout
    assert "\x1b" not in first.stdout
    lines = first.stdout.splitlines()
    assert lines[0] == "importing JAX, Flax, Orbax"
    assert lines[11] == "compiling the training step"
    announced = dict(line.split(maxsplit=1) for line in lines[1:11])
    assert list(announced) == [
        "model", "data", "batch", "optim", "devices", "memory", "work", "workdir", "start",
        "compute",
    ]  # fmt: skip
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    state = abstract_train_state(TINY_MODEL, make_optimizer(OptimConfig(), 3000)[0], mesh)
    expected = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)) / 2**20
    assert announced["memory"].startswith(f"{expected:.1f} MiB of state a device")
    again = run_cli(*command, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "not at all: step 8 of 8: this run is finished" in again.stdout
    assert "acc i→t" not in again.stdout


def test_a_batch_that_is_larger_than_its_corpus_is_announced(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_shard(tmp_path / "0.tar", {str(n): (jpeg(n), f"caption {n}") for n in range(10)})
    config = tiny_config(tmp_path / "run", optim=OptimConfig(warmup_steps=0))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    state = abstract_train_state(TINY_MODEL, make_optimizer(config.optim, config.steps)[0], mesh)
    announce(config, mesh, WebDatasetSource(str(tmp_path / "0.tar")), state, 0)
    warning = "warning  a batch of 16 takes 16 pairs from the corpus, which has 10: each is in a ba"
    assert warning in capsys.readouterr().out
    announce(config, mesh, ScenesSource("train", 16), state, 0)
    assert not {"warning", "order"} & {
        line.split()[0] for line in capsys.readouterr().out.splitlines()
    }


def test_an_order_made_for_object_storage_is_announced(tmp_path, capsys):
    class RemoteScenes(ScenesSource):
        reads_remotely, run_length = True, 104

    config = tiny_config(tmp_path / "run")
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    state = abstract_train_state(TINY_MODEL, make_optimizer(config.optim, config.steps)[0], mesh)
    announce(config, mesh, RemoteScenes("train", 16), state, 0)
    line = "order    runs of 104 neighbouring examples, windows of 16 runs in 16 lanes"
    assert line in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--batch-size", "0"), "batch_size is 0"),
        (("--shown-pairs", "-1"), "shown_pairs is -1"),
        (("--stepz", "5"), "--steps"),
        (("--model", "ViT-B-23"), "did you mean ViT-B-32"),
        (("--data.path", "missing.tar"), "missing.tar"),
        (("--data.path", "none-*.tar"), "none-*.tar"),
        (("--data.path", "no-pairs.tar"), "no image–caption pairs in"),
        (("--data.path", "cut.tar"), "cut.tar"),
        (("--workdir", "file/run"), "cannot write into workdir file/run"),
        (("--workdir", "other"), "seed: 0 -> 5"),
        (("--workdir", "s3://bucket/run"), "no checkpoint can be written to s3://bucket/run"),
        (("--mesh.data", "3"), "does not fit 8 devices"),
        (("--batch-size", "12"), "choose 8 or 16"),
        (("--optim.warmup-steps", "8"), "warmup_steps 8 is not below the run's 8 steps"),
        (("--model.vision.heads", "5"), "vision width 32 is not divisible by its 5 heads"),
        (("--tokenizer.name", "siglip"), "needs a file with its vocabulary"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_a_message_and_exit_code_2(
    experiment, finished_run, tmp_path, monkeypatch, capsys, flags, message
):
    with tarfile.open(tmp_path / "no-pairs.tar", "w") as tar:
        tar.add(__file__, "README.md")
    write_shard(tmp_path / "whole.tar", {f"{i}": (jpeg(i), "caption") for i in range(3)})
    (tmp_path / "cut.tar").write_bytes((tmp_path / "whole.tar").read_bytes()[:1500])
    (tmp_path / "file").touch()
    (tmp_path / "other").symlink_to(finished_run)
    if flags == ("--workdir", "other"):
        flags = (*flags, "--seed", "5")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    arguments = [experiment, "--workdir", "run", *flags]
    assert message in refused(
        lambda: train(parse(TrainCommand, arguments, "flaxclip.train", None).config), capsys
    )
    assert not (tmp_path / "run").exists()


def test_wandb_that_is_not_installed_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'flaxclip\[wandb\]'"):
        train(tiny_config(tmp_path / "run", wandb="clip"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nothing_such", "ModuleNotFoundError: No module named 'nothing_such'\nin line 1"),
        ("\n\ndef get_config(:", "in line 3"),
        ("def get_config():\n    return 1 / 0", "ZeroDivisionError: division by zero\nin line 2"),
        ("def get_config():\n    return 1", "returned a int"),
        ("x = 1", "defines no get_config"),
    ],
)
def test_an_experiment_that_does_not_run_is_named_with_its_line(tmp_path, text, message):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(InputError, match=re.escape(message)):
        load_experiment(str(path))


def test_debug_adds_the_traceback(experiment, tmp_path):
    command = ("flaxclip.train", experiment, "--batch-size", "0")
    plain, debug = (run_cli(*command, *more, cwd=tmp_path) for more in ((), ("--debug",)))
    assert "Traceback" not in plain.stderr
    assert plain.returncode == debug.returncode == 2
    assert "Traceback" in debug.stderr
    assert debug.stderr.endswith(plain.stderr)


def test_memory_that_is_not_there_is_explained(tmp_path):
    config = tiny_config(tmp_path)
    with (
        pytest.raises(
            InputError, match=r"too small for batch size 16\n.*RESOURCE_EXHAUSTED"
        ) as info,
        explain_out_of_memory(config),
    ):
        jax.block_until_ready(jax.numpy.zeros((2**50,)))
    assert "--accumulate 2" in str(info.value)


def test_the_peak_of_memory_is_said_where_devices_count_it():
    assert peak_memory(None) is None
    counted = {"peak_bytes_in_use": 3 * 2**30, "bytes_limit": 16 * 2**30}
    assert peak_memory(counted) == "memory of a device at the peak: 3,072.0 MiB of 16,384.0 MiB"


def test_help_names_every_group_of_flags(tmp_path):
    result = run_cli("flaxclip.train", "--help", cwd=tmp_path)
    assert result.returncode == 0
    for flag in (
        "--workdir",
        "--model.vision.width",
        "--optim.peak-lr",
        "--mesh.fsdp",
        "--data.path",
    ):
        assert flag in result.stdout


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, flaxclip; print(sorted({'jax', 'flax', 'orbax', 'grain'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
