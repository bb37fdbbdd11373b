"""Saving, keeping, verifying and restoring states."""

import concurrent.futures
import errno
import json
import re
import shutil
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flaxclip.checkpoint.restore
from flaxclip.checkpoint.checksum import diverged_replicas, tree_checksums
from flaxclip.checkpoint.layout import CHECKPOINTS, load_variables, saved_steps
from flaxclip.checkpoint.manager import CheckpointConfig, CheckpointManager
from flaxclip.checkpoint.restore import restore_latest
from flaxclip.errors import InputError
from flaxclip.exit_codes import TrainingFailedError
from flaxclip.health import check_replicas
from flaxclip.matrix_optimizers import scale_by_adafactor
from flaxclip.sharding import MeshConfig, make_mesh
from tests.helpers.full_disk import files_no_larger_than

RECORD = {"data": {"records": 3}}


def state_on(mesh, spec, scale=1.0):
    """A tree of arrays of several types, the matrix divided over the mesh by `spec`."""
    rng = np.random.default_rng(0)
    place = lambda value, spec: jax.device_put(value, jax.NamedSharding(mesh, spec))  # noqa: E731
    whole = jax.P()
    return {
        "params": {
            "kernel": place(np.float32(rng.standard_normal((64, 32)) * scale), spec),
            "bias": place(jnp.asarray(rng.standard_normal(33), jnp.bfloat16), whole),
        },
        "training": {
            "step": place(np.int32(7), whole),
            "mask": place(rng.random(16) < 0.5, whole),
        },
    }


def abstract(tree):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree
    )


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(fsdp=2))


@pytest.fixture(scope="module")
def saved(mesh, tmp_path_factory):
    """A workdir with checkpoints of steps 1 and 2, which hold different numbers."""
    workdir = tmp_path_factory.mktemp("saved")
    manager = CheckpointManager(workdir, CheckpointConfig(keep=5), RECORD)
    for step in (1, 2):
        manager.save(step, state_on(mesh, jax.P("fsdp"), scale=step), {})
    assert manager.close()
    (workdir / "config.json").write_text("{}")
    return workdir


def test_the_first_save_compiles_no_program_for_each_array(mesh, tmp_path):
    """Training stands still meanwhile."""
    replicated = jax.NamedSharding(mesh, jax.P())
    arrays = {str(rows): np.ones((rows, 2048), np.float32) for rows in range(64, 76)}
    tree = {"params": jax.device_put(arrays, replicated)}
    compiled = []
    monitor = lambda event, *_, **__: "backend_compile" in event and compiled.append(event)  # noqa: E731
    manager = CheckpointManager(tmp_path, CheckpointConfig(), RECORD)
    jax.monitoring.register_event_duration_secs_listener(monitor)
    try:
        manager.save(1, tree, {})
    finally:
        jax.monitoring.unregister_event_duration_listener(monitor)
    assert manager.close()
    assert len(compiled) == 1, "the one of the checksums"


def test_a_failed_save_is_no_success_and_does_not_cost_the_next(mesh, tmp_path):
    state, said = state_on(mesh, jax.P("fsdp")), []
    manager = CheckpointManager(tmp_path, CheckpointConfig(), RECORD, said.append)
    with files_no_larger_than(1000):
        manager.save(1, state, {})
        while not manager.failed_saves:
            manager.due()
        manager.save(2, state, {})
        assert not manager.close()
    manager.save(3, state, {})
    assert manager.close()
    assert saved_steps(tmp_path) == [3]
    assert [warning.partition(":")[0] for warning in said] == [
        "saving step 1 failed",
        "saving step 2 failed",
    ]
    assert not list((tmp_path / CHECKPOINTS).glob("*tmp*"))


def test_a_save_that_storage_timed_out_has_failed_and_is_not_under_way(tmp_path):
    """A stand-in for Orbax's response: no real storage lets its timeouts be awaited here."""
    said = []
    manager = CheckpointManager(tmp_path, CheckpointConfig(), RECORD, said.append)
    response = concurrent.futures.Future()
    manager._saving = 1, response
    manager.due()
    assert not said
    response.set_exception(TimeoutError(errno.ETIMEDOUT, "Connection timed out"))
    manager.due()
    assert manager.failed_saves == 1
    assert "saving step 1 failed: [Errno 110] Connection timed out" in said[0]
    assert not manager.close()


@pytest.fixture
def workdir(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def restore(workdir, state, warnings=None):
    heard = [] if warnings is None else warnings
    return restore_latest(workdir, abstract(state), heard.append)


@pytest.mark.parametrize(
    ("config", "spec"),
    [
        (MeshConfig(fsdp=2), jax.P("fsdp")),
        (MeshConfig(fsdp=8), jax.P(None, "fsdp")),
        (MeshConfig(), jax.P()),
        (MeshConfig(tensor=4), jax.P("tensor")),
    ],
)
def test_a_state_comes_back_bit_for_bit_on_any_mesh(workdir, config, spec):
    state = state_on(make_mesh(config), spec, scale=2)
    warnings = []
    restored = restore(workdir, state, warnings)
    assert (restored.step, restored.record, warnings) == (2, RECORD, [])
    jax.tree.map(np.testing.assert_array_equal, restored.trees, state)
    assert restored.trees["params"]["kernel"].sharding.spec == spec


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def cut_short(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("damage", [flip_a_bit, cut_short, lambda path: path.unlink()])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(workdir, mesh, damage):
    """Whichever file of it is hit: either the state still is what was saved, or it is not used."""
    state = state_on(mesh, jax.P("fsdp"), scale=2)
    step = workdir / CHECKPOINTS / "2"
    whole = shutil.copytree(step, workdir / "whole")
    files = [path for path in step.rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    noticed = []
    for path in [largest, step / "_CHECKPOINT_METADATA", step / "params" / "_METADATA"]:
        damage(path)
        warnings = []
        restored = restore(workdir, state, warnings)
        if restored.step == 1:
            noticed.append(path)
            assert "checkpoint of step 2" in warnings[0]
        else:
            jax.tree.map(np.testing.assert_array_equal, restored.trees, state)
        shutil.rmtree(step, ignore_errors=True)
        shutil.copytree(whole, step)
    assert largest in noticed
    assert step / "_CHECKPOINT_METADATA" in noticed


def test_a_checkpoint_that_is_seen_late_is_waited_for(workdir, mesh, monkeypatch):
    """As on NFS, where host 0 sees it first."""
    step = workdir / CHECKPOINTS / "2"
    listed, unseen = saved_steps(workdir), step.rename(workdir / "unseen")
    monkeypatch.setattr(flaxclip.checkpoint.restore, "saved_steps", lambda _: listed)
    # Its clock alone: other threads may sleep too.
    clock = types.SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: unseen.rename(step))
    monkeypatch.setattr(flaxclip.checkpoint.restore, "time", clock)
    warnings = []
    assert restore(workdir, state_on(mesh, jax.P("fsdp")), warnings).step == 2
    assert warnings == []
    assert not (workdir / "damaged").exists()


def test_numbers_that_are_not_those_that_were_saved_are_noticed(workdir, mesh):
    """Both files are sound to Orbax, but the parameters are those of another step."""
    step = workdir / CHECKPOINTS / "2"
    shutil.rmtree(step / "params")
    shutil.copytree(workdir / CHECKPOINTS / "1" / "params", step / "params")
    warnings = []
    state = state_on(mesh, jax.P("fsdp"))
    with pytest.raises(InputError, match="not what was saved: params/kernel"):
        load_variables(workdir, 2, {"params": abstract(state)["params"]})
    assert restore(workdir, state, warnings).step == 1
    assert "not what was saved: params/kernel" in warnings[0]


def test_a_damaged_checkpoint_makes_room_for_its_step_to_come_again(workdir, mesh):
    flip_a_bit(workdir / CHECKPOINTS / "2" / "_CHECKPOINT_METADATA")
    state = state_on(mesh, jax.P("fsdp"), scale=2)
    assert restore(workdir, state).step == 1
    assert (workdir / "damaged" / "2" / "_CHECKPOINT_METADATA").exists()
    manager = CheckpointManager(workdir, CheckpointConfig(keep=5), RECORD)
    manager.save(2, state, {})
    assert manager.close()
    assert restore(workdir, state).step == 2
    flip_a_bit(workdir / CHECKPOINTS / "2" / "_CHECKPOINT_METADATA")
    assert restore(workdir, state).step == 1
    moved = sorted(path.name for path in (workdir / "damaged").iterdir())
    assert moved == ["2", "2-2"]  # what was moved away before is still there


def test_where_all_are_damaged_the_run_does_not_start_over(workdir, mesh):
    for step in ("1", "2"):
        flip_a_bit(workdir / CHECKPOINTS / step / "_CHECKPOINT_METADATA")
    with pytest.raises(InputError, match=r"no checkpoint in .* can be restored") as error:
        restore(workdir, state_on(mesh, jax.P()))
    assert "step 1: " in str(error.value)
    assert "step 2: " in str(error.value)


def resized(leaf):
    return jax.ShapeDtypeStruct((leaf.shape[0], 1), leaf.dtype, sharding=leaf.sharding)


def retyped(leaf):
    return jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16, sharding=leaf.sharding)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": resized}, r"params/kernel: float32\[64, 32\] there, float32\[64, 1\] here$"),
        # Orbax would cast it.
        ({"kernel": retyped}, r"params/kernel: float32\[64, 32\] there, bfloat16\[64, 32\] here$"),
        ({"scale": None}, r"params/scale: nothing there, float32\[64, 32\] here$"),
        ({"kernel": None}, r"params/kernel: float32\[64, 32\] there, nothing here$"),
        ({"kernel": resized, "scale": None}, "float32.* here, and 1 more arrays$"),
    ],
)
def test_a_checkpoint_of_another_state_is_not_called_damaged(workdir, mesh, change, message):
    state = abstract(state_on(mesh, jax.P()))
    kernel = state["params"]["kernel"]
    for name, changed in change.items():
        if name == "scale":
            state["params"][name] = kernel
        elif changed is None:
            del state["params"][name]
        else:
            state["params"][name] = changed(kernel)
    warnings = []
    with pytest.raises(InputError) as error:
        restore_latest(workdir, state, warnings.append)
    lines = str(error.value).splitlines()
    assert lines[1].startswith("step 2: ")
    assert re.search(message, lines[1])
    assert "saved with other optim settings, or by another version of flaxclip" in lines[3]
    assert f"--init-from {workdir} and another --workdir" in lines[4]
    assert not any("damaged" in said for said in [*warnings, *lines])
    assert saved_steps(workdir) == [1, 2]


def test_an_adafactor_state_that_was_factored_otherwise_is_named(tmp_path, mesh):
    """As runs saved it whose second moments were factored from 128 upwards."""
    kernel = jax.device_put(np.ones((3, 48, 64), np.float32), jax.NamedSharding(mesh, jax.P()))
    params = {"text": {"transformer": {"blocks": {"mlp": {"fc1": {"kernel": kernel}}}}}}

    def trees(tx):
        return {"params": params, "training": {"opt_state": jax.jit(tx.init)(params)}}

    manager = CheckpointManager(tmp_path, CheckpointConfig(), RECORD)
    before = optax.chain(optax.scale_by_factored_rms(), optax.ema(0.9, debias=False))
    manager.save(8, trees(before), {})
    assert manager.close()
    ours = jax.eval_shape(lambda: trees(scale_by_adafactor(0.9, jnp.float32)))
    ours = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=kernel.sharding), ours
    )
    with pytest.raises(InputError) as error:
        restore_latest(tmp_path, ours)
    assert re.search(
        r"step 8: training/opt_state/0/v/text/transformer/blocks/mlp/fc1/kernel: "
        r"float32\[3, 48, 64\] there, float32\[3, 1\] here, and 2 more arrays",
        str(error.value),
    )


def test_variables_of_another_model_are_named(workdir, mesh):
    state = {"params": abstract(state_on(mesh, jax.P()))["params"]}
    state["params"]["kernel"] = resized(state["params"]["kernel"])
    with pytest.raises(InputError, match=r"cannot be read: params/kernel: float32\[64, 32\] there"):
        load_variables(workdir, 2, state)


def test_what_a_killed_save_left_is_cleared_away_and_never_taken_for_a_checkpoint(workdir, mesh):
    unfinished = workdir / CHECKPOINTS / "3.orbax-checkpoint-tmp"
    shutil.copytree(workdir / CHECKPOINTS / "2", unfinished)
    # In object storage nothing is renamed: there an unfinished one only lacks this file.
    bare = shutil.copytree(workdir / CHECKPOINTS / "2", workdir / CHECKPOINTS / "4")
    (bare / "commit_success.txt").unlink()
    assert saved_steps(workdir) == [1, 2]
    shutil.rmtree(bare)
    manager = CheckpointManager(workdir, CheckpointConfig(keep=5), RECORD)
    manager.save(3, state_on(mesh, jax.P()), {})
    assert manager.close()
    assert saved_steps(workdir) == [1, 2, 3]
    assert not unfinished.exists()


def test_whether_a_step_is_held_is_known_once_its_save_has_ended(tmp_path, mesh):
    manager = CheckpointManager(tmp_path, CheckpointConfig(), RECORD)
    manager.save(1, state_on(mesh, jax.P()), {})
    assert manager.holds(1)  # though that save was still under way
    assert not manager.holds(2)
    assert manager.close()


def test_latest_every_and_best_are_kept(tmp_path, mesh):
    config = CheckpointConfig(keep=2, keep_every=4, keep_best="loss")
    manager = CheckpointManager(tmp_path, config, RECORD)
    for step, loss in enumerate([5.0, 1.0, 4.0, 3.0, 2.5, 2.4, 2.3], 1):
        manager.save(step, state_on(mesh, jax.P()), {"loss": loss})
    manager.close()
    assert saved_steps(tmp_path) == [2, 4, 6, 7]
    assert manager.take_stall_seconds() > 0
    assert manager.take_stall_seconds() == 0


def test_minutes_are_counted_by_a_clock_that_does_not_jump(tmp_path, mesh, monkeypatch):
    manager = CheckpointManager(tmp_path, CheckpointConfig(every_minutes=1.0), RECORD)
    now, wall = time.monotonic(), time.time()
    monkeypatch.setattr(time, "time", lambda: wall + 1e6)
    assert not manager.due()
    monkeypatch.setattr(time, "monotonic", lambda: now + 61)
    assert manager.due()
    manager.save(1, state_on(mesh, jax.P()), {})
    assert not manager.due()
    manager.close()


def test_a_checksum_is_the_same_on_any_mesh_and_changes_with_any_bit(mesh):
    whole, divided = state_on(mesh, jax.P()), state_on(mesh, jax.P("data", "fsdp"))
    sums = tree_checksums(whole)
    assert sums == tree_checksums(divided)
    assert list(json.loads(json.dumps(sums))) == [
        "params/bias",
        "params/kernel",
        "training/mask",
        "training/step",
    ]
    kernel = np.array(whole["params"]["kernel"])
    for index in [(0, 0), (63, 31), (17, 5)]:
        other = kernel.copy()
        other.view(np.uint32)[index] ^= 1 << 31
        assert tree_checksums([jnp.asarray(other)])["0"] != sums["params/kernel"]
    swapped = kernel.copy()
    swapped[[3, 4]] = swapped[[4, 3]]
    assert tree_checksums([jnp.asarray(swapped)])["0"] != sums["params/kernel"]


@pytest.mark.parametrize("spec", [jax.P(), jax.P("fsdp")])
def test_a_replica_that_differs_in_one_bit_is_found_and_named(mesh, spec):
    tree = state_on(mesh, spec)
    assert diverged_replicas(tree, mesh) == []
    kernel = tree["params"]["kernel"]
    parts = [np.array(shard.data) for shard in kernel.addressable_shards]
    parts[5].view(np.uint32)[2, 3] ^= 1
    devices = [shard.device for shard in kernel.addressable_shards]
    tree["params"]["kernel"] = jax.make_array_from_single_device_arrays(
        kernel.shape,
        kernel.sharding,
        [jax.device_put(part, device) for part, device in zip(parts, devices, strict=True)],
    )
    found = f"params/kernel on device {devices[5].id} of host 0"
    assert diverged_replicas(tree, mesh) == [found]
    with pytest.raises(TrainingFailedError, match=f"at step 7 copies of the state .*\n{found}\n1"):
        check_replicas(tree, mesh, 7)
