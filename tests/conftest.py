"""Eight virtual devices, no silent rank promotion, and shapes of public signatures checked.

The fixtures are those that several files ask for. They import for themselves what they need, so
that a test pays for nothing that it does not use.
"""

import atexit
import ctypes
import gc
import io
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
import pytest
from filelock import FileLock
from jaxtyping import install_import_hook

import tests.helpers.typecheck  # noqa: F401  (the hook finds it by name)

jax.config.update("jax_numpy_rank_promotion", "raise")
install_import_hook("flaxclip", "tests.helpers.typecheck.check")
# How long an example takes, and making it, is the machine's affair.
hypothesis.settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("untimed")
# python -m pytest tests/test_corpus_fuzz.py --hypothesis-profile=long
hypothesis.settings.register_profile(
    "long", hypothesis.settings.get_profile("untimed"), max_examples=20_000
)


@pytest.fixture(scope="module", autouse=True)
def _memory_is_given_back():
    """A worker runs hundreds of files: with what each has compiled and freed it grew to 8 GB."""
    yield
    jax.clear_caches()
    gc.collect()
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's: others keep less
    if malloc_trim is not None:
        malloc_trim(0)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """A copy of its own for every worker of pytest-xdist, of which the first one trains."""
    workdir = tmp_path_factory.mktemp("runs") / "straight"
    base = tmp_path_factory.getbasetemp()
    original = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished_run"
    with FileLock(f"{original}.lock"):
        if not original.exists():
            from flaxclip.train import train
            from tests.helpers.tiny_run import tiny_config

            train(tiny_config(workdir, shown_pairs=4))
            shutil.copytree(workdir, original)
    shutil.copytree(original, workdir, dirs_exist_ok=True)
    return workdir


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    from tests.helpers.tiny_run import EXPERIMENT

    path = tmp_path_factory.mktemp("experiment") / "tiny.py"
    path.write_text(EXPERIMENT)
    return str(path)


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory):
    """A folder for indexes and copies that no other module's tests have written to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory):
    """A SentencePiece model with the special tokens, in the order, of SigLIP's."""
    import sentencepiece

    model = io.BytesIO()
    sentences = ["a red circle", "two dogs at the beach", "a photo of a cat", "blue squares"] * 9
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, vocab_size=60, pad_id=0, eos_id=1,
        bos_id=-1, unk_id=2, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("vocabulary") / "spiece.model"
    path.write_bytes(model.getvalue())
    return str(path)


@pytest.fixture(scope="module")
def retrieved(finished_run, tmp_path_factory):
    """A folder with image-caption pairs, one image broken, and the results of retrieving them."""
    from tests.helpers.command_lines import run_cli
    from tests.helpers.image_tars import jpeg, write_shard

    folder = tmp_path_factory.mktemp("retrieved")
    pairs = {f"{i:02}": (jpeg(i * 10), f"an image of shade {i}") for i in range(20)}
    write_shard(folder / "mine.tar", pairs | {"20": (b"no image", "a broken image")})
    result = run_cli(
        "flaxclip.benchmark", str(finished_run / "checkpoints" / "4"),
        "--tasks", "retrieval:mine.tar", "--max-unreadable", "0.05",
        "--out", "results", "--cache", "cache", cwd=folder,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def watched(finished_run, tmp_path_factory):
    """A folder with results of every step of a run, and a page of them."""
    from tests.helpers.command_lines import run_cli

    folder = tmp_path_factory.mktemp("watched")
    result = run_cli(
        "flaxclip.benchmark", str(finished_run), "--watch", "--tasks", "scenes-unseen",
        "--out", "results", "--cache", "cache", cwd=folder,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return folder / "results"


@pytest.fixture
def write(tmp_path):
    """Puts bytes into a file and says where it is."""

    def write(data, name="file"):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write
