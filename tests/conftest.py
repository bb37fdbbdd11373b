"""Eight virtual devices, no silent rank promotion, and shapes of public signatures checked."""

import atexit
import os
import shutil
import tempfile

from tests.helpers.xla_flags import EIGHT_DEVICES

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = EIGHT_DEVICES
# XLA's threads, which are as many as cores or devices otherwise. Every device may wait in several
# collectives at once, each in a thread of its own, for others that then find none.
os.environ["NPROC"] = "32"
# Runs that compile the same step, here and in other processes, compile it once a session:
# the workers of pytest-xdist inherit the folder that their parent has made.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="flaxclip-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import hypothesis
import jax
from jaxtyping import install_import_hook

import tests.helpers.typecheck  # noqa: F401  (the hook finds it by name)

jax.config.update("jax_numpy_rank_promotion", "raise")
install_import_hook("flaxclip", "tests.helpers.typecheck.check")
# python -m pytest tests/test_corpus_fuzz.py --hypothesis-profile=long
hypothesis.settings.register_profile("long", max_examples=20_000)
