"""Workdirs of an older format load, are resumed and are measured as by the version that wrote them.

What they are: `golden/workdirs/README.md`.
"""

import dataclasses
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

import flaxclip
from flaxclip.config import TrainConfig, differing_fields
from flaxclip.config_json import run_from_json, to_json
from flaxclip.data.order import OrderConfig
from flaxclip.errors import InputError
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.inputs import ImageTransform, TokenizerConfig
from flaxclip.models.variants import VARIANTS
from flaxclip.run.experiment import load_experiment
from flaxclip.run.workdir import claim_workdir
from tests.helpers.command_lines import run_cli

GOLDEN = Path(__file__).parent / "golden" / "workdirs"
CONFIGS = json.loads((GOLDEN / "configs_format_0.json").read_text())
# The experiment of the run, as it is written today.
EXPERIMENT = """
from flaxclip.checkpoint.manager import CheckpointConfig
from flaxclip.config import TrainConfig
from flaxclip.data.config import DataConfig
from flaxclip.models.clip import CLIPConfig
from flaxclip.models.inputs import ImageTransform, TokenizerConfig
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.vision_transformer import ViTConfig
from flaxclip.optim import OptimConfig

SIZES = {"width": 32, "layers": 2, "heads": 2}
TRAITS = {"activation": "gelu_tanh", "norm_eps": 1e-6, "family": "siglip"}

def get_config():
    return TrainConfig(
        workdir="unset",
        steps=8,
        batch_size=16,
        model=CLIPConfig(
            vision=ViTConfig(image_size=16, patch_size=8, **SIZES, **TRAITS),
            text=TextConfig(context_length=16, vocab_size=45, **SIZES, **TRAITS),
            embed_dim=32,
            init_logit_scale=2.3,
            init_logit_bias=-10.0,
        ),
        preprocess=ImageTransform("squash", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        tokenizer=TokenizerConfig("siglip", "spiece.model"),
        loss="sigmoid",
        data=DataConfig(workers=0),
        optim=OptimConfig(peak_lr=1e-3, warmup_steps=2),
        log_every=1,
        shown_pairs=0,
        checkpoint=CheckpointConfig(every_steps=4),
    )
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with the old run in `run`, what came out of it, and its experiment."""
    with tarfile.open(GOLDEN / "format_0.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    shutil.copy(tmp_path / "run" / "spiece.model", tmp_path)
    (tmp_path / "siglip.py").write_text(EXPERIMENT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def saved(folder):
    path = folder / "run" / "config.json"
    return run_from_json(TrainConfig, path.read_text(), path)


BF16 = ComputeConfig("bfloat16", unroll=1, remat="names")  # defaults until they were left open
TODAY = {
    "experiment quickstart": ("ViT-tiny", ComputeConfig(unroll=4, remat="none")),
    "experiment lit_vit_b16": ("LiT-B16B_2", BF16),
    "experiment siglip_vit_b16": ("ViT-B-16-SigLIP", BF16),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_of_before_means_what_it_did(name):
    old = CONFIGS[name]
    config = run_from_json(TrainConfig, json.dumps(old), "config.json")
    variant, compute = TODAY.get(name, (name, ComputeConfig("bfloat16", 2, "full", "xla")))
    expected = VARIANTS[variant]
    # How texts are cleaned, it could not say: it was the tokenizer's own way.
    own_cleaning = dataclasses.replace(expected.tokenizer, cleaning=None)
    assert config.spec == expected._replace(tokenizer=own_cleaning)
    assert config.compute == compute
    new = json.loads(to_json(config))
    for part in ("model", "preprocess", "tokenizer", "compute"):
        new.pop(part)
    # Fields that came since, at what they were then.
    assert (new.pop("init_weights"), new["data"].pop("index")) == (None, None)
    assert (new["data"].pop("cache_dir"), new["data"].pop("cache_gib")) == (None, None)
    assert not new["data"].pop("allow_empty_shards")
    assert new["data"].pop("counts") is None
    assert (new.pop("lora"), new.pop("lora_rank"), new.pop("lora_alpha")) == ([], 16, None)
    assert (new.pop("teacher"), new["data"].pop("teacher_vectors")) == ([], False)
    assert new["data"].pop("teacher_widths") == [768, 768]
    assert (new["data"].pop("sequence_lengths"), new["data"].pop("token_budget")) == ([], None)
    assert (new.pop("batch_divisor"), new.pop("scale_loss_by_pairs")) == (8, "none")
    settings = "teacher_model", "teacher_weight", "teacher_scale", "teacher_regression"
    assert [new.pop(field) for field in settings] == [[], 1, [], 0]
    assert new.pop("contrastive_weight") == 1
    assert new == {field: value for field, value in old.items() if field != "model"}
    # What is the default today means the same for corpora on disk.
    auto = dataclasses.replace(config.data, order=OrderConfig())
    assert differing_fields(dataclasses.replace(config, data=auto), config) == {}


def test_a_run_is_what_its_experiment_is_today(folder):
    run, experiment = saved(folder), load_experiment("siglip.py")
    assert differing_fields(run, experiment) == {}
    assert run.compute == ComputeConfig(unroll=1, remat="names")  # defaults until they were open
    data = dataclasses.replace(run.data, order=OrderConfig(window="auto"))
    then = dataclasses.replace(run, workdir="unset", data=data, compute=experiment.compute)
    assert then == experiment
    model = flaxclip.load("run")
    vocabulary = TokenizerConfig("siglip", str(folder / "run" / "spiece.model"))
    assert model.spec == experiment.spec._replace(tokenizer=vocabulary)
    zimg = model.encode_image(np.zeros((1, 16, 16, 3), np.uint8))
    np.testing.assert_allclose(np.linalg.norm(zimg), 1, rtol=1e-5)


def test_a_converted_model_has_nothing_but_a_model_in_its_configuration(folder):
    spec = flaxclip.load("run").spec
    path = folder / "run" / "config.json"
    path.write_text(json.dumps({"model": json.loads(path.read_text())["model"]}))
    assert flaxclip.load("run").spec == spec


def test_a_run_goes_on_with_the_losses_that_it_would_have_had(folder):
    before = (folder / "run" / "config.json").read_bytes()
    done = run_cli("flaxclip.train", "siglip.py", "--workdir", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "at step 4, where its last checkpoint is" in done.stdout
    metrics, expected = (
        [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for name in ("run/metrics.jsonl", "metrics_of_all_steps.jsonl")
    )
    assert [line["step"] for line in metrics] == [5, 6, 7, 8]
    for line, theirs in zip(metrics, expected[4:], strict=True):
        # Tests compile without LLVM's optimisation, which theirs was not.
        for name in ("loss", "grad_norm", "logit_scale", "logit_bias", "learning_rate"):
            np.testing.assert_allclose(line[name], theirs[name], rtol=1e-6, err_msg=name)
    assert (folder / "run" / "config.json").read_bytes() == before


def test_a_checkpoint_has_the_scores_that_it_had(folder):
    done = run_cli(
        "flaxclip.benchmark", "run/checkpoints/4", "--tasks", "scenes-unseen", "--out", "results",
        "--cache", "cache", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads((folder / "results" / "scenes-unseen.json").read_text())
    scores = {name: score["value"] for name, score in record["scores"].items()}
    expected = json.loads((folder / "scores_of_step_4.json").read_text())["scenes-unseen"]
    assert {name: scores[name] for name in expected} == expected


def test_compute_may_change_at_a_resume_and_this_is_said(folder, capsys):
    experiment = dataclasses.replace(load_experiment("siglip.py"), workdir="run")
    before = saved(folder)
    claim_workdir(experiment)  # leaves open how it is computed
    assert capsys.readouterr().out == ""
    assert saved(folder) == before
    changed = ComputeConfig(unroll=2, remat="full", attention="xla")
    claim_workdir(dataclasses.replace(experiment, compute=changed))
    assert capsys.readouterr().out == (
        "compute  compute.unroll 1 -> 2, compute.remat 'names' -> 'full', "
        "compute.attention 'auto' -> 'xla': as of this resume\n"
    )
    assert saved(folder) == dataclasses.replace(experiment, compute=changed)
    assert flaxclip.load("run").compute == changed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preprocess": ImageTransform("shortest")}, "preprocess.resize: 'squash' -> 'shortest'"),
        (
            {"tokenizer": TokenizerConfig("siglip", "spiece.model", "lower")},
            "tokenizer.cleaning: None -> 'lower'",
        ),
        ({"model": {"init_logit_bias": -9.0}}, "model.init_logit_bias: -10.0 -> -9.0"),
    ],
)
def test_another_model_is_refused_at_a_resume_by_the_field(changes, message, folder):
    experiment = dataclasses.replace(load_experiment("siglip.py"), workdir="run")
    if "model" in changes:
        changes = {"model": dataclasses.replace(experiment.model, **changes["model"])}
    before = (folder / "run" / "config.json").read_bytes()
    with pytest.raises(InputError) as error:
        claim_workdir(dataclasses.replace(experiment, **changes))
    assert message in str(error.value)
    assert (folder / "run" / "config.json").read_bytes() == before


def test_a_change_writes_the_configuration_in_todays_format_and_loses_nothing(folder):
    old = saved(folder)
    other = dataclasses.replace(old, workdir="run", seed=5)
    claim_workdir(other, ["seed"])
    written = json.loads((folder / "run" / "config.json").read_text())
    assert written["format"] == 1
    assert saved(folder) == other
    assert dataclasses.replace(saved(folder), workdir=old.workdir, seed=old.seed) == old


def test_a_newer_format_is_refused_with_what_to_do(folder):
    path = folder / "run" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    message = r"config.json is of format 2\nthis version of flaxclip knows formats up to 1: install"
    with pytest.raises(InputError, match=message):
        flaxclip.load("run")
    with pytest.raises(InputError, match=message):
        claim_workdir(dataclasses.replace(load_experiment("siglip.py"), workdir="run"))
