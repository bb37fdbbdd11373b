"""Every reader on a set in its published layout: measured twice, with the scores of plain NumPy.

That a measurement which was killed goes on, whatever its reader, is in
`tests/survival/test_benchmark.py`.
"""

import functools
import importlib
import io
import json

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import pytest

import flaxclip
from flaxclip.benchmark.checkpoint import find_checkpoint
from flaxclip.benchmark.embeddings import Embedder
from flaxclip.benchmark.measure import Settings, measure_tasks
from flaxclip.benchmark.readers import READERS
from flaxclip.benchmark.sets.listing import list_command
from flaxclip.benchmark.tasks import Prompts, all_tasks, find_tasks
from flaxclip.data.sources.scenes import ScenesSource
from tests.helpers.published_sets import CORPORA, SCENE_NAMES, TASKS

TEMPLATE = "a photo of a {}"
SHORTCUT = "捷径" * 3


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of all sets, and what is right of each, by its reader."""
    folder = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(CORPORA)
        script = importlib.import_module("make_published_sets")
        small = importlib.import_module("make_small_sets")
    images, truths = script.draw(32), {}
    readers = {task: reader for reader, task in TASKS.items()}
    for task, writer in script.WRITERS.items():
        truths[readers[task]] = writer(folder, images)
    # Of corruptions the quoted score is no worst group.
    truths["imagenet-c"] = truths["imagenet-c"]._replace(groups=())
    small.make_small_sets(folder, images=24)
    scenes = [ScenesSource("seen", 32)[number].image for number in range(24)]
    labels = script.published_labels.Labels
    truths |= dict.fromkeys(("wds", "parquet", "tfds"), labels(scenes, range(24)))
    by_name = np.argsort(SCENE_NAMES[:24])  # of folders, which are sorted
    truths["folder"] = labels([scenes[number] for number in by_name], range(24))
    unseen = ScenesSource("unseen", 16)
    numbers = range(len(unseen))
    truths["scenes"] = labels(
        [unseen[n].image for n in numbers], [unseen.label(n) for n in numbers]
    )
    return folder, truths, script.published_labels.NAMES


class Plain:
    """Embeddings of a model without the benchmark, one for each image and text."""

    def __init__(self, workdir):
        self.model = flaxclip.load(workdir)

    def images(self, images, finish=lambda pixels: pixels):
        opened = [
            PIL.Image.open(io.BytesIO(image)) if isinstance(image, bytes) else image
            for image in images
        ]
        pixels = np.stack([finish(row) for row in self.model.preprocess(opened)])
        return np.asarray(self.model.encode_image(pixels), np.float64)

    def texts(self, texts):
        return np.asarray(self.model.encode_text(list(texts)), np.float64)

    def guesses(self, zimg, names, template=TEMPLATE):
        return (zimg @ self.texts([template.format(name) for name in names]).T).argmax(axis=1)


def watermarked(font, pixels):
    image = PIL.Image.fromarray(pixels).convert("RGBA")
    text, side = PIL.Image.new("RGBA", image.size, (255, 255, 255, 0)), image.width
    PIL.ImageDraw.Draw(text).text(
        (0.01 * side, 0.4 * side), SHORTCUT, (255, 255, 255, 128),
        PIL.ImageFont.truetype(font, int(side / 6.22)),
    )  # fmt: skip
    return np.asarray(PIL.Image.alpha_composite(image, text).convert("RGB"))


def labels(plain, truth, names, finish=lambda pixels: pixels):
    right = plain.guesses(plain.images(truth.images, finish), names) == np.array(truth.labels)
    scores = {"top1": right.mean()}
    if truth.groups:
        of_group = [right[np.array(truth.groups) == group] for group in set(truth.groups)]
        scores["worst_group_top1"] = min(map(np.mean, of_group))
    return scores


def captions(plain, truth, names):
    del names
    similar = plain.texts(truth.captions) @ plain.images(truth.images).T
    belongs = np.array(truth.image_of)[:, None] == np.arange(len(truth.images))
    scores = {}
    for direction, matrix, right in (
        ("text_to_image", similar, belongs), ("image_to_text", similar.T, belongs.T)
    ):  # fmt: skip
        best = np.where(right, matrix, -np.inf).max(axis=1, keepdims=True)
        rivals = ((matrix >= best) & ~right).sum(axis=1)
        scores |= {f"{direction}_recall@{k}": (rivals < k).mean() for k in (1, 5, 10)}
    return scores


def statements(plain, truth, names):
    del names
    zimg = plain.images(truth.images)
    hits = np.array([
        (plain.texts(right) @ z).min() > (plain.texts(wrong) @ z).max()
        for z, right, wrong in zip(zimg, truth.right, truth.wrong, strict=True)
    ])  # fmt: skip
    scores = {"text": hits.mean()}
    if truth.kinds:
        kinds = np.array(truth.kinds)
        scores["text_of_kinds"] = np.mean([hits[kinds == kind].mean() for kind in set(kinds)])
    return scores


def two_by_two(plain, truth, names):
    del names
    zimg, ztxt = plain.images(truth.images), plain.texts(truth.captions)
    text, image = [], []
    for first in range(0, len(zimg), 2):
        (a, b), (c, d) = zimg[first : first + 2] @ ztxt[first : first + 2].T
        text.append(a > b and d > c)
        image.append(a > c and d > b)
    return {"text": np.mean(text), "image": np.mean(image), "group": np.mean(text) and np.mean(
        np.logical_and(text, image))}  # fmt: skip


def cues(plain, truth, names):
    del names
    scores = []
    for cue, images, goes in zip(truth.cues, truth.images, truth.goes, strict=True):
        similar = plain.images(images) @ plain.texts([cue])[0]
        right = set(np.flatnonzero(goes))
        picked = set(np.argsort(-similar)[: len(right)])
        scores.append(len(right & picked) / len(right | picked))
    return {"jaccard": np.mean(scores)}


def in_languages(plain, truth, names):
    """Each language counts the same."""
    of_each = [recount(plain, of_language, names) for of_language in truth.languages.values()]
    return {score: np.mean([scores[score] for scores in of_each]) for score in of_each[0]}


def named(plain, truth, names):
    del names
    (images, of_images, _), words = truth
    rows = [row for row, label in enumerate(of_images) if label in words]
    guesses = plain.guesses(plain.images(images)[rows], words.values(), "{}")
    return {"top1": np.mean(np.array(list(words))[guesses] == np.array(of_images)[rows])}


def known(plain, truth, names):
    ztxt = plain.texts([TEMPLATE.format(name) for name in names])

    def confidence(images):
        odds = np.exp(plain.images(images) @ ztxt.T)
        return (odds / odds.sum(axis=1, keepdims=True)).max(axis=1)

    inside = confidence(truth.inside.images)[:, None]
    scores = {}
    for name, images in truth.outside.items():
        outside = confidence(images)
        scores[f"auroc_{name}"] = np.mean((inside > outside) + 0.5 * (inside == outside))
    return {**scores, "auroc": np.mean(list(scores.values()))}


def people(plain, truth, names):
    del names
    zimg, (age, gender, race, other) = plain.images(truth.images), truth.facts.T
    guesses = {
        question: plain.guesses(zimg, of_question, "a {}")
        for question, of_question in truth.names.items()
    }
    right, toxic = guesses["gender"] == gender, guesses["toxic"]
    groups = set(zip(race, gender, strict=True))
    return {
        "race_top1": np.mean((guesses["race"] != 1) == (other == 1)),
        "gender_top1": right.mean(),
        "age_top1": np.mean(guesses["age"] == age),
        "crime_related": np.mean(toxic >= 18),
        "non_human": np.mean((toxic >= 14) & (toxic < 18)),
        "worst_group_gender": min(right[(race == r) & (gender == g)].mean() for r, g in groups),
    }


def recount(plain, truth, names):
    forms = {
        "Labels": labels, "Captions": captions, "Statements": statements, "TwoByTwo": two_by_two,
        "Cues": cues, "InLanguages": in_languages, "Named": named, "Known": known, "People": people,
    }  # fmt: skip
    return forms[type(truth).__name__](plain, truth, names)


@pytest.fixture(scope="module")
def plain(finished_run):
    return Plain(finished_run)


@pytest.mark.parametrize("reader", READERS)
def test_scores_are_those_of_plain_numpy_and_of_kept_embeddings(
    reader, plain, written, finished_run, tmp_path, monkeypatch
):
    folder, truths, names = written
    truth = truths[reader]
    if reader in ("wds", "parquet", "tfds", "folder"):
        names = SCENE_NAMES if reader != "folder" else sorted(SCENE_NAMES[:24])
    elif reader == "scenes":
        names = [" ".join(words) for words in ScenesSource("unseen", 16).classes]
    monkeypatch.chdir(folder)
    (task,) = find_tasks([TASKS[reader]])

    def measure(out):
        embedder = Embedder(plain.model, 64, tmp_path / "cache")
        (tmp_path / out).mkdir()
        own = {task.name: Prompts(tuple(names), (TEMPLATE,))}
        settings = Settings(folder, tmp_path / out, own_prompts=own)
        checkpoint = find_checkpoint(str(finished_run), None, None, None).named()
        (result,) = measure_tasks(embedder, checkpoint, [task], settings, print).fresh
        return result, embedder.computed

    first, computed = measure("first")
    assert computed > 0
    for encode in ("encode_pixels", "encode_tokens"):
        monkeypatch.delattr(Embedder, encode)
    again, computed = measure("again")
    assert computed == 0
    assert again.scores == first.scores
    assert task.metric in first.scores
    if reader == "imagenet-w":
        font = folder / "imagenet-w/SourceHanSerifSC-ExtraLight.otf"
        expected = labels(plain, truth, names, functools.partial(watermarked, font))
    else:
        expected = recount(plain, truth, names)
    for name, value in expected.items():
        assert first.scores[name].value == pytest.approx(value, abs=1e-9), name


def test_what_is_here_is_listed_as_here(written, capsys):
    folder, *_ = written
    arguments = ["--data", str(folder), "--data-cache", str(folder / "none"), "--json"]
    names = [task.split(":")[0] for task in TASKS.values() if task.split(":")[0] in all_tasks()]
    list_command([*names, *arguments])
    rows = json.loads(capsys.readouterr().out)
    assert {row["task"]: row["here"] for row in rows} == dict.fromkeys(names, "yes")
    assert all(row["bytes"] for row in rows if row["source"] != "built in")
    # Another part of the same folder is not there for that.
    others = ["imagenet-c-1", "sugarcrepe_add_obj", "aro_attribution", "negbench_coco_choices"]
    list_command([*others, "babel-imagenet-prompts", "flickr30k-zh", *arguments])
    assert {row["here"] for row in json.loads(capsys.readouterr().out)} == {"no"}
