"""Who may train in a workdir, with which configuration, and on which data."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flaxclip.config import TrainConfig, differing_fields
from flaxclip.config_json import run_from_json
from flaxclip.data.config import DataConfig
from flaxclip.data.order import OrderConfig
from flaxclip.data.sources.corpus import MixtureCorpus
from flaxclip.data.sources.source import Pair, UnreadableExampleError
from flaxclip.errors import InputError
from flaxclip.models.inputs import TokenizerConfig
from flaxclip.optim import OptimConfig
from flaxclip.run.provenance import data_fingerprint, run_record
from flaxclip.run.workdir import check_same_data, claim_workdir, hold_workdir
from flaxclip.sharding import MeshConfig
from tests.helpers.full_disk import files_no_larger_than
from tests.helpers.tiny_run import tiny_config


class Records:
    """A corpus in a list."""

    def __init__(self, pairs):
        self._pairs = list(pairs.items())

    def __len__(self):
        return len(self._pairs)

    def __getitem__(self, index):
        pair = self._pairs[index][1]
        if pair is None:
            raise UnreadableExampleError("broken")
        image, caption = pair
        return Pair(image, (caption,))

    def fields(self, index):
        return {}

    def name(self, index):
        return self._pairs[index][0]


PAIRS = {"a": (b"jpeg", "a cat"), "b": (np.zeros((2, 2, 3), np.uint8), "a dog"), "c": None}


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (PAIRS | {"d": (b"jpeg", "a bird")}, "3 records then, 4 now"),
        (dict(reversed(PAIRS.items())), "of other names or in another order"),
        (PAIRS | {"a": (b"jpeg", "a tomcat")}, "with other images or captions in them"),
        (PAIRS | {"b": (np.ones((2, 2, 3), np.uint8), "a dog")}, "with other images or captions"),
    ],
    ids=["more", "another order", "another caption", "another image"],
)
def test_a_run_goes_on_with_its_own_data_alone(now, message):
    then, now = data_fingerprint(Records(PAIRS)), data_fingerprint(Records(now))
    check_same_data(then, data_fingerprint(Records(PAIRS)), step=5)
    with pytest.raises(InputError, match=message) as error:
        check_same_data(now, then, step=5)
    assert "up to step 5" in str(error.value)
    check_same_data(now, then, 5, may_change=["data"])


def test_a_checkpoint_says_what_its_numbers_come_from(tmp_path):
    record = json.loads(json.dumps(run_record(tiny_config(tmp_path, seed=3), Records(PAIRS))))
    assert (record["config"]["seed"], record["config"]["format"]) == (3, 1)
    assert record["data"]["records"] == 3
    assert record["versions"]["jax"].startswith("0.")
    assert {"python", "flax", "optax", "orbax-checkpoint", "grain"} <= set(record["versions"])
    assert record["devices"] == "8 x cpu"


def test_a_run_is_refused_in_each_field_that_would_make_it_another(tmp_path):
    claim_workdir(tiny_config(tmp_path))
    claim_workdir(tiny_config(tmp_path))
    other = tiny_config(tmp_path, seed=5, batch_size=32, steps=9)
    other = dataclasses.replace(other, optim=OptimConfig(peak_lr=2e-3, warmup_steps=2))
    with pytest.raises(InputError) as error:
        claim_workdir(other)
    for line in (
        "seed: 0 -> 5",
        "batch_size: 16 -> 32",
        "steps: 8 -> 9",
        "optim.peak_lr: 0.001 -> 0.002",
    ):
        assert line in str(error.value)
    with pytest.raises(InputError) as error:
        claim_workdir(other, ["seed", "steps", "optim"])
    assert "batch_size: 16 -> 32" in str(error.value)
    assert "seed" not in str(error.value)
    saved = lambda: run_from_json(TrainConfig, (tmp_path / "config.json").read_text(), "")  # noqa: E731
    assert saved() == tiny_config(tmp_path)  # as long as it is refused, nothing is changed
    claim_workdir(other, ["seed", "steps", "optim", "batch_size"])
    assert saved() == other


def test_what_changes_no_number_may_change_freely(tmp_path):
    claim_workdir(tiny_config(tmp_path))
    claim_workdir(tiny_config(tmp_path, mesh=MeshConfig(fsdp=2), log_every=1, loss_form="tiled"))


def claim_in_order(folder, path, window):
    data = DataConfig(path=path, order=OrderConfig(window=window), workers=0)
    claim_workdir(tiny_config(folder, data=data))


@pytest.mark.parametrize(("then", "now"), [(None, "auto"), ("auto", None)])
def test_the_order_of_a_corpus_on_disk_is_the_same_as_before_it_was_chosen(then, now, tmp_path):
    claim_in_order(tmp_path, ("shards/{0..9}.tar",), then)
    claim_in_order(tmp_path, ("shards/{0..9}.tar",), now)
    with pytest.raises(InputError, match=r"data.order.window: None -> 64"):
        claim_in_order(tmp_path, ("shards/{0..9}.tar",), 64)


def test_the_order_of_a_corpus_in_object_storage_changes_by_no_new_version(tmp_path):
    claim_in_order(tmp_path, ("gs://bucket/{0..9}.tar",), None)
    with pytest.raises(InputError) as error:
        claim_in_order(tmp_path, ("gs://bucket/{0..9}.tar",), "auto")
    assert str(error.value).splitlines()[1:] == [
        "data.order.window: None -> 'auto'",
        "use another --workdir, or the configuration it was started with; or change this run with "
        "--resume-with-changes data.order.window",
        "the run's epochs are shuffled as a whole: --data.order.window None goes on with that",
    ]
    corpora = tuple(MixtureCorpus((path,)) for path in ("a.tar", "s3://bucket/b.tar"))
    auto, none = (
        tiny_config(tmp_path, data=DataConfig(mixture=corpora, order=OrderConfig(window=window)))
        for window in ("auto", None)
    )
    assert differing_fields(auto, none) == {"data.order.window": "None -> 'auto'"}


def test_a_run_in_object_storage_goes_on_in_runs_of_the_same_length(tmp_path):
    @dataclasses.dataclass
    class Bucket(Records):
        run_length: int | None
        reads_remotely: bool = True

        def __post_init__(self):
            super().__init__({str(n): (b"jpeg", f"caption {n}") for n in range(40)})

    def recorded(run_length, window="auto"):
        data = DataConfig(path=("gs://bucket/0.tar",), order=OrderConfig(window=window))
        return run_record(tiny_config(tmp_path, data=data), Bucket(run_length))["data"]

    check_same_data(recorded(4), recorded(4), 5)
    check_same_data(recorded(4, None), recorded(8, None), 5)
    # Its window is allowed to change, or it would not get here.
    check_same_data(recorded(4, "auto"), recorded(4, None), 5)
    for now, then, message in (
        (4, 8, "drawn in runs of 8 records then, of 4 now"),
        (12, None, "drawn in runs of 1 records then, of 12 now"),
    ):
        with pytest.raises(InputError, match=message):
            check_same_data(recorded(now), recorded(then), 5)


def test_a_workdir_is_held_by_one_process_and_free_once_that_is_gone(tmp_path):
    hold = (
        "import sys, time; from flaxclip.run.workdir import hold_workdir\n"
        "with hold_workdir(sys.argv[1]):\n"
        "    print('held', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", hold, tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(InputError, match=f"belongs to process {other.pid} on "),
            hold_workdir(str(tmp_path)),
        ):
            pass
        other.kill()
        other.wait()
    with hold_workdir(str(tmp_path)):
        pass


def test_a_vocabulary_is_copied_whole_or_not_at_all(vocabulary, tmp_path):
    tokenizer = TokenizerConfig("siglip", vocabulary)
    config = dataclasses.replace(tiny_config(tmp_path / "run"), tokenizer=tokenizer)
    with files_no_larger_than(1000), pytest.raises(InputError, match="cannot write"):
        claim_workdir(config)
    claim_workdir(config)  # there is room now
    source = Path(vocabulary)
    assert (tmp_path / "run" / source.name).read_bytes() == source.read_bytes()
