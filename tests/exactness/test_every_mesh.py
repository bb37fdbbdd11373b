"""Ten steps by every loss, implementation, number of parts and mesh, as in the plainest form.

    python -m pytest -o addopts=-ra tests/exactness

All 56 combinations, some minutes; `tests/test_sharding.py` has a few of them.
"""

import math

import pytest

from flaxclip.sharding import MeshConfig
from tests.helpers.ten_steps import LOSSES, assert_equal_runs, plain_run, run

MESHES = (
    (1, 1, 1), (2, 1, 1), (1, 2, 1), (8, 1, 1), (1, 8, 1), (2, 2, 2), (4, 1, 2),
)  # fmt: skip


@pytest.fixture(scope="module")
def plain():
    return {loss: plain_run(loss) for loss in LOSSES}


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("implementation", ["gathered", "tiled"])
@pytest.mark.parametrize("mesh", MESHES, ids=lambda mesh: "x".join(map(str, mesh)))
@pytest.mark.parametrize("loss", LOSSES)
def test_ten_steps_equal_the_plain_form(plain, loss, mesh, implementation, accumulate):
    changes = {"loss_form": implementation, "accumulate": accumulate} | LOSSES[loss]
    assert_equal_runs(run(MeshConfig(*mesh), math.prod(mesh), **changes), plain[loss])


def test_patches_left_out_are_the_same_on_any_mesh_and_in_any_parts():
    half = {"patch_dropout": 0.5, "loss_form": "tiled"}
    whole = run(MeshConfig(), 1, **half)
    assert_equal_runs(run(MeshConfig(2, 2, 2), 8, accumulate=4, **half), whole)
