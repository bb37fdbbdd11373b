"""What a run has left, to compare with that of one to which nothing was done."""

import json

import jax
import numpy as np

from flaxclip.checkpoint.layout import load_variables
from flaxclip.models.clip import abstract_variables
from tests.helpers.tiny_run import TINY_MODEL


def params(folder, step):
    """Parameters of FOLDER/run at a step that is saved."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        abstract_variables(TINY_MODEL),
    )
    return load_variables(folder / "run", step, abstract)["params"]


def losses(folder):
    """Step and loss of every report."""
    lines = [
        json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    return [(line["step"], line["loss"]) for line in lines]


def assert_same_run(steps, folder, undisturbed):
    """No step of so many is lost or taken twice, and not one bit of the parameters differs."""
    assert [step for step, _ in losses(folder)] == list(range(1, steps + 1))
    assert losses(folder) == losses(undisturbed)
    jax.tree.map(np.testing.assert_array_equal, params(folder, steps), params(undisturbed, steps))
