"""Groups, corruptions and unknown classes: published layouts, scores against plain NumPy."""

import csv
import io
import pathlib

import matplotlib
import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import pytest
from sklearn import metrics

from flaxclip.benchmark.datasets import Labelled, MissingDataError, image_batches
from flaxclip.benchmark.methods.faces import judge_faces
from flaxclip.benchmark.methods.open_set import detect_task
from flaxclip.benchmark.methods.zero_shot import classify_task
from flaxclip.benchmark.prompts import Wording, choose_wording
from flaxclip.benchmark.readers import open_split, open_test
from flaxclip.benchmark.robustness import alexnet_errors
from flaxclip.benchmark.scores import fpr_at_recall, relative_error
from flaxclip.benchmark.tasks import all_tasks
from flaxclip.data.images.eval_transform import SizedTransform
from flaxclip.errors import InputError
from tests.helpers.image_tars import labelled, png, write_wds
from tests.helpers.known_embeddings import KnownTexts
from tests.helpers.published_sets import write_waterbirds


def write_csv(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def guesses(known, task, data):
    """Of the nearest of the classes' prompts, one each."""
    wording = choose_wording(task, data, "openai")
    (template,) = wording.templates
    ztxt = known.text_rows([template.format(name) for name in wording.class_names])
    return (known.zimg @ ztxt.T).argmax(axis=1), wording


def test_waterbirds_worst_group_and_every_group(tmp_path):
    rows = write_waterbirds(tmp_path)
    task = all_tasks()["waterbirds"]
    source, data = open_test(task, tmp_path, 16)
    test = [row for row in rows if row["split"] == 2]
    assert [data.images.name(i) for i in range(len(test))] == [row["img_filename"] for row in test]
    assert len(open_split(task, source, "validation", tmp_path, 16).labels) == 20

    known = KnownTexts(20)
    guessed, wording = guesses(known, task, data)
    assert wording.templates == ("This is a picture of a {}.",)
    findings = classify_task(known, task, data, wording)
    hits = guessed == [row["y"] for row in test]
    names = {(0, 0): "landbird on land", (0, 1): "landbird on water",
             (1, 0): "waterbird on land", (1, 1): "waterbird on water"}  # fmt: skip
    expected = {
        name: hits[[(row["y"], row["place"]) == key for row in test]].mean()
        for key, name in names.items()
    }
    found = {row["group"]: row["top1"] for row in findings.details["groups"]}
    assert found == pytest.approx(expected)
    assert findings.scores["worst_group_top1"].value == pytest.approx(min(expected.values()))

    metadata = tmp_path / source.name / "metadata.csv"
    lines = metadata.read_text().splitlines()
    lines[6] = lines[6][:-1] + "sea"
    metadata.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"metadata\.csv, row 6: place is 'sea'\nexpected a whole"):
        open_test(task, tmp_path, 16)


def test_celeba_groups_are_hair_by_sex(tmp_path):
    root = tmp_path / "celeba"
    (root / "img_align_celeba").mkdir(parents=True)
    attributes = [
        {"image_id": f"{i:06}.jpg", "Bald": -1, "Blond_Hair": 2 * (i % 2) - 1,
         "Male": 2 * (i // 2 % 2) - 1} for i in range(12)
    ]  # fmt: skip
    partition = [{"image_id": row["image_id"], "partition": i % 3}
                 for i, row in enumerate(attributes)]  # fmt: skip
    write_csv(root / "list_attr_celeba.csv", attributes)
    write_csv(root / "list_eval_partition.csv", partition)
    task = all_tasks()["celeba"]
    _, data = open_test(task, tmp_path, 16)
    assert data.labels.tolist() == [0, 1, 0, 1]  # 2, 5, 8, 11
    assert data.groups.tolist() == [1, 2, 0, 3]
    assert data.group_names[3] == "blond, male"
    write_csv(root / "list_eval_partition.csv", partition[1:])
    with pytest.raises(InputError, match="not of the same images"):
        open_test(task, tmp_path, 16)


def test_faces_by_race_and_gender(tmp_path):
    rng = np.random.default_rng(6)
    counts = {"race": 7, "gender": 2, "age": 9, "toxic": 21}
    names = [
        f"{question}:{question} {n}" for question, count in counts.items() for n in range(count)
    ]
    age, gender, race = (rng.integers(count, size=140) for count in (9, 2, 7))
    facts = np.stack([age, gender, race, race != 1], axis=1)
    examples = []
    for row in facts:
        file = io.BytesIO()
        np.save(file, row)
        examples.append({"png": png(1), "npy": file.getvalue()})
    root = write_wds(tmp_path / "wds_fairness-fairface", examples, shards=1, names=names)
    templates = [f"{question}:a {{c}}" for question in counts] + ["race:the {c}"]
    (root / "zeroshot_classification_templates.txt").write_text("\n".join(templates))
    _, data = open_test(all_tasks()["fairface"], tmp_path, 16)
    known = KnownTexts(140, width=12)

    def guess(question):
        sums = sum(
            known.text_rows([f"{word} {question} {n}" for n in range(counts[question])])
            for word in (("a", "the") if question == "race" else ("a",))
        )
        return (known.zimg @ (sums / np.linalg.norm(sums, axis=1, keepdims=True)).T).argmax(axis=1)

    findings = judge_faces(known, data)
    right, toxic = guess("gender") == gender, guess("toxic")
    by_both = {(r, g): right[(race == r) & (gender == g)].mean() for r in range(7) for g in (0, 1)}
    expected = {
        "race_top1": ((guess("race") != 1) == (race != 1)).mean(),
        "gender_top1": right.mean(),
        "age_top1": (guess("age") == age).mean(),
        "crime_related": (toxic >= 18).mean(),
        "non_human": ((toxic >= 14) & (toxic < 18)).mean(),
        "worst_group_gender": min(by_both.values()),
    }
    assert {name: s.value for name, s in findings.scores.items()} == pytest.approx(expected)
    table = findings.details["gender_by_race_and_gender"]
    assert [row["share"] for row in table] == pytest.approx(list(by_both.values()))
    assert table[3]["group"] == "race 1, gender 1"
    white = findings.details["by_white_or_not"]["age_top1"][0]
    assert white["share"] == pytest.approx((guess("age") == age)[race == 1].mean())
    of_race = findings.details["by_race"]["crime_related"][4]
    assert of_race["share"] == pytest.approx((toxic >= 18)[race == 4].mean())
    (root / "classnames.txt").write_text("\n".join(names[:9]))
    with pytest.raises(InputError, match="begin with 'age:'"):
        open_test(all_tasks()["fairface"], tmp_path, 16)


def test_imagenet_c_is_the_mean_over_corruptions_and_relative_to_alexnet(tmp_path, monkeypatch):
    monkeypatch.setattr("flaxclip.benchmark.readers.shifts._IMAGENET_CLASSES", 40)
    names = list(alexnet_errors(3))
    folders = {"gaussian_noise": "noise/gaussian_noise", "snow": "weather/snow"}
    for number, name in enumerate(names):
        for wordnet in range(40):
            folder = tmp_path / "imagenet-c" / folders.get(name, name) / f"3/n{wordnet:08}"
            folder.mkdir(parents=True)
            if wordnet % 20 == number:
                (folder / "ILSVRC2012_val_1.JPEG").write_bytes(png(number))
    task = all_tasks()["imagenet-c-3"]
    _, data = open_test(task, tmp_path, 16)
    assert data.labels.tolist() == [n + part for n in range(15) for part in (0, 20)]
    assert data.groups.tolist() == [n for n in range(15) for _ in (0, 1)]
    assert data.group_names == tuple(names)
    with pytest.raises(MissingDataError, match=r"no .*gaussian_noise/4"):
        open_test(all_tasks()["imagenet-c-4"], tmp_path, 16)
    (tmp_path / "imagenet-c/fog/3/n00000039").rmdir()
    with pytest.raises(InputError, match="fog/3 has 39 folders"):
        open_test(task, tmp_path, 16)

    few = tuple(f"class {number}" for number in range(3))
    labels = np.random.default_rng(4).integers(3, size=150)
    data = Labelled(data.images, labels, groups=np.arange(150) % 15, group_names=tuple(names))
    known = KnownTexts(150)
    data = data._replace(images=range(150))
    wording = Wording(few, {name: (name,) for name in few}, "", "")
    findings = classify_task(known, task, data, wording)
    hits = (known.zimg @ known.text_rows(few).T).argmax(axis=1) == labels
    errors = [1 - hits[data.groups == group].mean() for group in range(15)]
    expected = np.mean([e / alexnet_errors(3)[n] for e, n in zip(errors, names, strict=True)])
    assert findings.scores["mean_corruption_error"].value == pytest.approx(expected)
    assert findings.scores["top1"].value == pytest.approx(1 - np.mean(errors))
    assert findings.details["groups"][4]["group"] == "glass_blur"


def test_imagenet_w_has_its_watermark_on_what_the_model_sees(tmp_path):
    write_wds(tmp_path / "wds_imagenet1k", labelled(3))
    (tmp_path / "imagenet-w").mkdir()
    fonts = pathlib.Path(matplotlib.get_data_path()) / "fonts/ttf"
    font = tmp_path / "imagenet-w/SourceHanSerifSC-ExtraLight.otf"
    font.write_bytes((fonts / "DejaVuSans.ttf").read_bytes())
    _, data = open_test(all_tasks()["imagenet-w"], tmp_path, 224)
    _, plain = open_test(all_tasks()["imagenet"], tmp_path, 224)
    assert data.images.identity != plain.images.identity
    for size, points in ((224, 36), (96, 15)):
        (drawn,), (seen,) = (
            image_batches(images, SizedTransform(size), 3) for images in (data.images, plain.images)
        )
        for row in range(3):
            image = PIL.Image.fromarray(seen.images[row]).convert("RGBA")
            text = PIL.Image.new("RGBA", image.size, (255, 255, 255, 0))
            PIL.ImageDraw.Draw(text).text(
                (0.01 * size, 0.4 * size), "捷径" * 3, fill=(255, 255, 255, round(0.5 * 255)),
                font=PIL.ImageFont.truetype(font, points),
            )  # fmt: skip
            expected = np.asarray(PIL.Image.alpha_composite(image, text).convert("RGB"))
            np.testing.assert_array_equal(drawn.images[row], expected)
            assert (expected != seen.images[row]).any()
    font.unlink()
    with pytest.raises(MissingDataError, match="SIL Open Font License"):
        open_test(all_tasks()["imagenet-w"], tmp_path, 224)


def test_alexnets_errors_are_those_by_which_mce_is_published():
    """Their means over levels, in per cent: Hendrycks and Dietterich 2019, table 1."""
    published = [88.6, 89.4, 92.3, 82.0, 82.6, 78.6, 79.8, 86.7, 82.7, 81.9, 56.5, 85.3, 64.6, 71.8,
                 60.7]  # fmt: skip
    levels = [list(alexnet_errors(level).values()) for level in range(1, 6)]
    np.testing.assert_allclose(100 * np.mean(levels, axis=0), published, atol=0.051)


def test_a_weight_of_two_is_the_example_twice():
    rng = np.random.default_rng(5)
    drawn = rng.integers(80, size=80)
    weights = np.bincount(drawn, minlength=80)
    positive, labels, groups = (
        rng.normal(size=80),
        rng.integers(2, size=80),
        rng.integers(3, size=80),
    )
    errors, ones = np.array([0.5, 0.7, 0.9]), np.ones(80, int)

    def both(make):
        return make(np.arange(80))(weights), make(drawn)(ones)

    assert np.diff(both(lambda r: relative_error(labels[r] == 1, groups[r], errors)))[0] == 0
    assert np.diff(both(lambda r: fpr_at_recall(positive[r], labels[r])))[0] == 0


def fpr95(inside, outside):
    """As MCM's code has it: of thresholds, that whose recall is closest to 95%."""
    values = np.unique(np.concatenate([inside, outside]))[::-1]
    recalls = np.array([(inside >= value).mean() for value in values])
    first_full = np.flatnonzero(recalls == 1)[0]
    closest = np.abs(recalls[: first_full + 1][::-1] - 0.95).argmin()
    return (outside >= values[first_full - closest]).mean()


def test_unknown_classes_by_maximum_concept_matching(tmp_path):
    write_wds(tmp_path / "wds_imagenet1k", labelled(60), names=("cat", "dog", "owl"))
    for number, folder in enumerate(("iNaturalist/images", "SUN", "Places", "dtd/images/banded")):
        (tmp_path / "imagenet_ood" / folder).mkdir(parents=True)
        for index in range(30 + number):
            (tmp_path / f"imagenet_ood/{folder}/{index}.jpg").write_bytes(png(index))
    (tmp_path / "imagenet_ood/SUN/.hidden.jpg").write_bytes(png(0))
    task = all_tasks()["ood_imagenet"]
    _, data = open_test(task, tmp_path, 16)
    assert data.left_out == {"leftovers_of_other_programs": 1}
    assert {name: len(images) for name, images in data.outside.items()} == {
        "iNaturalist": 30, "SUN": 31, "Places": 32, "Texture": 33
    }  # fmt: skip

    class Several(KnownTexts):
        def embed_images(self, images, limited=True):
            return KnownTexts(len(images)).embed_images(images)._replace(z=of(images))

    def of(images):
        z = np.random.default_rng(len(images)).normal(size=(len(images), 6))
        z += 1.5 * ztxt[np.arange(len(images)) % 3] * (images is data.images)
        return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)

    known, names = Several(60), ("cat", "dog", "owl")
    ztxt = known.text_rows([f"a photo of a {name}" for name in names])
    wording = Wording(names, ("a photo of a {}",), "", "")
    findings = detect_task(known, data, wording)

    def confidence(images):
        odds = np.exp(of(images).astype(np.float64) @ ztxt.T)
        return (odds / odds.sum(axis=1, keepdims=True)).max(axis=1)

    inside, aurocs, fprs = confidence(data.images), [], []
    for name, images in data.outside.items():
        outside = confidence(images)
        labels = np.repeat([1, 0], [60, len(outside)])
        aurocs.append(metrics.roc_auc_score(labels, np.concatenate([inside, outside])))
        fprs.append(fpr95(inside, outside))
        assert findings.scores[f"auroc_{name}"].value == pytest.approx(aurocs[-1], abs=1e-6)
        assert findings.scores[f"fpr95_{name}"].value == pytest.approx(fprs[-1])
    assert 0.5 < np.mean(aurocs) < 0.95
    assert findings.scores["auroc"].value == pytest.approx(np.mean(aurocs), abs=1e-6)
    assert findings.scores["fpr95"].value == pytest.approx(np.mean(fprs))


def test_known_classes_are_asked_in_the_words_of_the_method(tmp_path):
    """Not by the templates that lie beside the images."""
    for name in ("cifar10", "cifar100", "svhn"):
        names = all_tasks()["cifar10"].prompts["openai"].class_names
        write_wds(tmp_path / f"wds_vtab-{name}", labelled(10, 10), names=names)
    task = all_tasks()["ood_cifar10"]
    _, data = open_test(task, tmp_path, 16)
    assert list(data.outside) == ["cifar100", "svhn"]
    wording = choose_wording(task, data.inside, "clip_benchmark")
    assert wording.templates == ("a photo of a {}",)
    assert choose_wording(task, data.inside, "openai").class_names[0] == "airplane"
    with pytest.raises(MissingDataError, match="large_scale_ood"):
        open_test(all_tasks()["ood_imagenet"], tmp_path, 16)
