"""Whole runs at native aspect ratio: what they compile, report, save and go on with."""

import json

import jax
import pytest

import flaxclip.train
from flaxclip.checkpoint.manager import CheckpointManager
from flaxclip.sharding import MeshConfig
from flaxclip.train import train
from flaxclip.train_step import pair_flops
from tests.helpers.odd_shapes import LENGTHS, native_config, write_odd_shapes


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "odd.tar"
    write_odd_shapes(path)
    return path


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def watched(corpus, tmp_path_factory):
    """A run; the compilations before its loop and in it, and what it has printed."""
    workdir, compiled, begun = tmp_path_factory.mktemp("watched") / "run", [], []

    def note(event, duration, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(details.get("fun_name"))

    run_steps = flaxclip.train.run_steps

    def watched_steps(*args):
        begun.append(len(compiled))
        run_steps(*args)

    config = native_config(workdir, corpus, shown_pairs=4)
    jax.monitoring.register_event_duration_secs_listener(note)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flaxclip.train, "run_steps", watched_steps)
        train(config)
    jax.monitoring.unregister_event_duration_listener(note)
    return config, workdir, compiled[: begun[0]], compiled[begun[0] :]


def test_each_length_is_compiled_once_and_before_the_first_step(watched):
    config, _, before, during = watched
    lengths = {config.lengths.at(step).patches for step in range(config.steps)}
    assert lengths == set(LENGTHS)
    assert sum("train_step" in name for name in before) == len(LENGTHS)
    assert [name for name in during if "train_step" in name] == []


def test_reports_count_the_pairs_and_patches_of_each_step(watched):
    config, workdir, *_ = watched
    lines = metrics(workdir)
    assert [line["step"] for line in lines] == list(range(1, config.steps + 1))
    for line in lines:
        length = config.lengths.at(line["step"] - 1)
        assert (line["sequence_length"], line["step_pairs"]) == (length.patches, length.pairs)
        pairs = line["images_per_second"] * line["step_seconds"]
        assert pairs == pytest.approx(length.pairs)
        # Of the odd shapes none fills its places wholly, and few leave more than a half.
        assert 0 < line["padding_share"] < 0.5
        flops = 1e12 * line["tflops_per_second"] * line["step_seconds"]
        most, least = (pairs * pair_flops(config, n) for n in (length.patches, 1))
        assert least < flops < most
        filled = (1 - line["padding_share"]) * length.patches
        linear = least + (most - least) * (filled - 1) / (length.patches - 1)
        assert flops == pytest.approx(linear, rel=2e-3)  # attention to so few is next to nothing


def test_a_run_that_was_stopped_takes_the_same_steps(watched, corpus, tmp_path, monkeypatch):
    _, undisturbed, *_ = watched

    class Killed(Exception):
        pass

    class StopsAfterFirstSave(CheckpointManager):
        def save(self, *args):
            super().save(*args)
            self.close()
            raise Killed

    config = native_config(tmp_path / "run", corpus)
    with monkeypatch.context() as patch:
        patch.setattr(flaxclip.train, "CheckpointManager", StopsAfterFirstSave)
        with pytest.raises(Killed):
            train(config)
    train(config)
    same = ("sequence_length", "loss", "grad_norm")
    ours, theirs = (
        [[line[name] for name in same] for line in metrics(workdir)]
        for workdir in (tmp_path / "run", undisturbed)
    )
    assert ours == theirs


def test_another_mesh_takes_the_same_steps(watched, corpus, tmp_path):
    _, undisturbed, *_ = watched
    config = native_config(tmp_path / "run", corpus, steps=4, mesh=MeshConfig(fsdp=4))
    train(config)
    ours, theirs = (metrics(workdir)[:4] for workdir in (tmp_path / "run", undisturbed))
    for line, other in zip(ours, theirs, strict=True):
        assert line["sequence_length"] == other["sequence_length"]
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-5)
