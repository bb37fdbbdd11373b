"""Transfers that nobody has asked for are refused while a run steps."""

import jax
import numpy as np
import pytest

import flaxclip.train
from flaxclip.run.process import no_hidden_transfers
from flaxclip.sharding import MeshConfig, make_mesh
from tests.helpers.tiny_run import tiny_config


def test_only_what_is_asked_for_moves():
    mesh = make_mesh(MeshConfig())
    everywhere = jax.NamedSharding(mesh, jax.P())
    double = jax.jit(lambda x: 2 * x, in_shardings=everywhere)
    with no_hidden_transfers():
        asked_for = double(jax.device_put(np.ones(3, np.float32), everywhere))
        with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device"):
            double(np.ones(3, np.float32))
        with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device"):
            asked_for + 1
        np.testing.assert_array_equal(jax.device_get(asked_for), 2)


def test_a_batch_that_is_not_on_the_devices_ends_the_run(tmp_path, monkeypatch):
    load_batches = flaxclip.train.load_batches

    def fetched(*args, **kwargs):
        for loaded in load_batches(*args, **kwargs):
            tokens = jax.device_get(loaded.batch.tokens)
            yield loaded._replace(batch=loaded.batch._replace(tokens=tokens))

    monkeypatch.setattr(flaxclip.train, "load_batches", fetched)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        flaxclip.train.train(tiny_config(tmp_path))
