"""A checkpoint as a model of mteb, on a task of built-in scenes.

pip install 'flaxclip[mteb]'
python -m pytest -o addopts=-ra tests/parity/test_mteb.py

The task is made here; its accuracy must be that of the embeddings themselves.
"""

import numpy as np
import PIL.Image
import pytest

from flaxclip.benchmark.embed.mteb_encoder import MtebEncoder
from flaxclip.data.sources.scenes import UNSEEN, ScenesSource
from flaxclip.errors import InputError

mteb = pytest.importorskip("mteb", reason="pip install 'flaxclip[mteb]'")
datasets = pytest.importorskip("datasets")
zeroshot = pytest.importorskip("mteb.abstasks.zeroshot_classification")

COUNT = 48
NAMES = [f"a {' '.join(combination)}" for combination in UNSEEN]


def metadata(name, kind, category, score):
    return mteb.TaskMetadata(
        name=name, description="Scenes that are drawn.", type=kind, category=category,
        modalities=["image", "text"], eval_splits=["test"], eval_langs=["eng-Latn"],
        main_score=score, dataset={"path": "none", "revision": "none"}, reference=None,
        date=None, domains=None, task_subtypes=None, license=None, annotations_creators=None,
        dialect=None, sample_creation=None, bibtex_citation=None,
    )  # fmt: skip


def scenes():
    source = ScenesSource("unseen", 32)
    images = [PIL.Image.fromarray(source[index].image) for index in range(COUNT)]
    return images, [source.label(index) for index in range(COUNT)]


class ScenesZeroShot(zeroshot.AbsTaskZeroShotClassification):
    metadata = metadata("ScenesZeroShot", "ZeroShotClassification", "i2t", "accuracy")

    def load_data(self, **_):
        images, labels = scenes()
        features = {"image": datasets.Image(), "label": datasets.Value("int64")}
        columns = {"image": images, "label": labels}
        test = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        self.dataset = {"test": test}
        self.data_loaded = True

    def get_candidate_labels(self):
        return NAMES


@pytest.fixture(scope="module")
def model(finished_run):
    return MtebEncoder(str(finished_run))


@pytest.fixture(autouse=True)
def nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("MTEB_CACHE", str(tmp_path))


def test_the_adapter_follows_the_protocol(model, finished_run):
    assert isinstance(model, mteb.EncoderProtocol)
    meta = model.mteb_model_meta
    assert meta.name.startswith("flaxclip/")
    assert meta.name.endswith("_step_8")
    assert (meta.embed_dim, meta.framework) == (16, ["JAX"])
    with pytest.raises(InputError, match="device 'cuda' cannot be chosen"):
        MtebEncoder(str(finished_run), device="cuda")


@pytest.mark.filterwarnings("default")  # theirs, of scores that are not looked at
def test_zero_shot_accuracy_is_our_own(model):
    images, labels = scenes()
    similar = (
        np.asarray(model.model.encode_image(images)) @ np.asarray(model.model.encode_text(NAMES)).T
    )
    expected = (similar.argmax(axis=1) == np.array(labels)).mean()
    results = mteb.evaluate(model, [ScenesZeroShot()], cache=None)
    (task,) = results.task_results
    assert task.get_score() == pytest.approx(expected)
