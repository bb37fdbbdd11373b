"""Tasks in many languages, read in their published layouts and scored against plain NumPy."""

import json

import numpy as np
import pytest

from flaxclip.benchmark.datasets import LanguageNames, MissingDataError, Multilingual
from flaxclip.benchmark.methods.averages import mean_over_languages
from flaxclip.benchmark.methods.languages import classify_in_languages, retrieve_in_languages
from flaxclip.benchmark.prompts import choose_wording
from flaxclip.benchmark.readers import open_test
from flaxclip.benchmark.tasks import all_tasks, find_tasks
from flaxclip.errors import InputError
from tests.helpers.image_tars import labelled, png, write_wds
from tests.helpers.known_embeddings import KnownTexts
from tests.helpers.published_sets import LANGUAGES, write_crossmodal


def recall(similar, positive, k):
    """Of queries in rows: one of the k most similar candidates is a partner."""
    best = np.argsort(-similar, axis=1)[:, :k]
    return np.take_along_axis(positive, best, axis=1).any(axis=1).mean()


@pytest.mark.parametrize("name", ["crossmodal3600", "crossmodal3600-all"])
def test_crossmodal_recall_of_each_language_and_the_mean(name, tmp_path):
    write_crossmodal(tmp_path, images=12)
    _, data = open_test(all_tasks()[name], tmp_path, 16)
    known = KnownTexts(len(data.images))
    findings = retrieve_in_languages(known, data)
    means = {}
    for language in LANGUAGES:
        captioned = data.captions[language]
        of_image = [int(text.split()[1].split(".")[0]) for text in captioned.captions]
        if name == "crossmodal3600":
            assert of_image == list(range(12))
        else:
            assert len(of_image) == (24 if language == "de" else 18)
        similar = known.text_rows(captioned.captions) @ known.zimg.T
        positive = np.array(of_image)[:, None] == np.arange(12)
        for k in (1, 5, 10):
            expected = {
                f"text_to_image_recall@{k}": recall(similar, positive, k),
                f"image_to_text_recall@{k}": recall(similar.T, positive.T, k),
            }
            for score, value in expected.items():
                assert findings.details["languages"][language][score] == pytest.approx(value)
                means.setdefault(score, []).append(value)
    for score, values in means.items():
        assert findings.scores[score].value == pytest.approx(np.mean(values))
        assert findings.scores[score].low <= np.mean(values) <= findings.scores[score].high


def test_a_language_alone_and_one_that_is_not_there(tmp_path):
    write_crossmodal(tmp_path)
    (task,) = find_tasks(["crossmodal3600:quz"])
    assert task.name == "crossmodal3600-quz"
    assert list(open_test(task, tmp_path, 16)[1].captions) == ["quz"]
    (task,) = find_tasks(["crossmodal3600:de,xx"])
    with pytest.raises(InputError, match="no language 'xx'\nthere are: de, quz"):
        open_test(task, tmp_path, 16)


def test_a_damaged_crossmodal_file_is_refused(tmp_path):
    write_crossmodal(tmp_path)
    file = tmp_path / "crossmodal3600/captions.jsonl"
    lines = file.read_text().splitlines()
    lines[2] = lines[2].replace('"quz": {"caption": ["quz 2.0"]', '"quz": {"caption": []')
    file.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"captions.jsonl, line 3 has no captions in 'quz'"):
        open_test(all_tasks()["crossmodal3600"], tmp_path, 16)
    file.write_text("{")
    with pytest.raises(InputError, match=r"line 1 is no JSON"):
        open_test(all_tasks()["crossmodal3600"], tmp_path, 16)
    for text, message in (
        ("", "nothing in any language in "),
        ('{"de": {"caption": ["a"]}}', "line 1 has no 'image/key'"),
        ('{"image/key": "0"}', "nothing in any language in "),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            open_test(all_tasks()["crossmodal3600"], tmp_path, 16)


def write_lined(root, index, captions):
    """`captions`: path -> text of the file."""
    (root / "images").mkdir(parents=True)
    for number in range(3):
        (root / f"images/{number}.jpg").write_bytes(png(number))
    captions = {index: "0.jpg\n1.jpg\n2.jpg\n", **captions}
    for path, text in captions.items():
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_bytes(text.encode())


def test_files_with_a_caption_a_line(tmp_path):
    """XTD10's have either line end and stand in three folders, by who made them."""
    write_lined(
        tmp_path / "xtd10",
        "XTD10/test_image_names.txt",
        {
            "XTD10/test_1kcaptions_es.txt": "a\r\nb\u2028b\r\nc",
            "MIC/test_1kcaptions_de.txt": "d\ne\nf\n",
            "STAIR/test_1kcaptions_jp.txt": "猫\n犬\n梟\n",
        },
    )
    _, data = open_test(all_tasks()["xtd10"], tmp_path, 16)
    assert set(data.captions) == {"es", "de", "jp"}
    assert data.captions["es"].captions == ("a", "b\u2028b", "c")
    assert data.captions["jp"].pairs.tolist() == [[0, 0], [1, 1], [2, 2]]
    assert [data.images.name(index) for index in range(3)] == ["0.jpg", "1.jpg", "2.jpg"]
    copy = tmp_path / "xtd10/.ipynb_checkpoints/test_1kcaptions_es.txt"
    copy.parent.mkdir()
    copy.write_text("x\ny\nz\n")
    assert open_test(all_tasks()["xtd10"], tmp_path, 16)[1].captions["es"].captions[0] == "a"
    copy.rename(tmp_path / "xtd10/MIC/test_1kcaptions_es.txt")
    with pytest.raises(InputError, match="are both of 'es'"):
        open_test(all_tasks()["xtd10"], tmp_path, 16)
    write_lined(
        tmp_path / "flickr30k-200",
        "filenames.txt",
        {"ace_Arab.txt": "a\nb\nc\n", "eng_captions.txt": "x\n"},
    )
    task = all_tasks()["flickr30k-200"]
    assert list(open_test(task, tmp_path, 16)[1].captions) == ["ace_Arab"]
    for text, message in (("a\nb\n", "has 2 lines"), ("a\n \nc\n", "line 2 is empty")):
        (tmp_path / "flickr30k-200/ace_Arab.txt").write_text(text)
        with pytest.raises(InputError, match=message):
            open_test(task, tmp_path, 16)
    (tmp_path / "flickr30k-200/ace_Arab.txt").unlink()
    with pytest.raises(InputError, match="flickr30k-200: nothing in any language in"):
        open_test(task, tmp_path, 16)


def test_flickr_in_chinese(tmp_path):
    root = tmp_path / "flickr8k"
    root.mkdir()
    (root / "a.jpg").write_bytes(png(3))
    file = root / "flickr8k_test_zh.txt"
    file.write_text("image,caption\na.jpg,一只猫\nb.jpg,狗,两只\n\na.jpg,猫\n")
    _, data = open_test(all_tasks()["flickr8k-zh"], tmp_path, 16)
    assert data.captions == ("一只猫", "猫", "狗,两只")
    assert data.pairs.tolist() == [[0, 0], [0, 1], [1, 2]]
    file.write_text("image,caption\na.png\n")
    with pytest.raises(InputError, match=r"line 2 is 'a\.png'"):
        open_test(all_tasks()["flickr8k-zh"], tmp_path, 16)


def write_babel(root, named, prompts=None):
    write_wds(root / "wds_imagenet1k", labelled(12, classes=4))
    (root / "babel-imagenet").mkdir()
    (root / "babel-imagenet/babel_imagenet-298.json").write_text(json.dumps(named))
    if prompts is not None:
        (root / "babel-imagenet/babel_imagenet.json").write_text(json.dumps(named))
        (root / "babel-imagenet/nllb_dist13b_prompts.json").write_text(json.dumps(prompts))


def test_babel_imagenet_is_asked_on_the_images_of_the_classes_that_a_language_names(tmp_path):
    named = {"DE": [[3, 0, 2], ["Eule", "Katze", "Hund"]], "QU": [[1, 2], ["misi", "allqu"]]}
    prompts = {"DE": ["ein {}", "mein {}"]}
    write_babel(tmp_path, named, prompts)
    _, data = open_test(all_tasks()["babel-imagenet"], tmp_path, 16)
    assert list(data.languages) == ["DE", "QU", "EN"]
    assert data.languages["EN"].class_names[0] == "tench"
    assert data.languages["DE"].templates == ("{}",)
    _, prompted = open_test(all_tasks()["babel-imagenet-prompts"], tmp_path, 16)
    assert list(prompted.languages) == ["DE"]
    assert prompted.languages["DE"].templates == ("ein {}", "mein {}")

    known = KnownTexts(12)
    data = data._replace(languages={name: data.languages[name] for name in named})
    findings = classify_in_languages(known, data)
    values = []
    for language, (classes, names) in named.items():
        ztxt = known.text_rows(names)
        rows = [row for row in range(12) if data.labels[row] in classes]
        guesses = [classes[int((known.zimg[row] @ ztxt.T).argmax())] for row in rows]
        values.append(np.mean(np.array(guesses) == data.labels[rows]))
        assert findings.details["languages"][language]["top1"] == pytest.approx(values[-1])
    assert 0 < np.mean(values) < 1
    assert findings.scores["top1"].value == pytest.approx(np.mean(values))
    assert findings.scores["top1"].chance == pytest.approx((1 / 3 + 1 / 2) / 2)
    write_babel(tmp_path / "bad", {"DE": [[3, 1000], ["Eule", "Kauz"]]})
    with pytest.raises(InputError, match="DE has 2 classes, 2 names"):
        open_test(all_tasks()["babel-imagenet"], tmp_path / "bad", 16)
    with pytest.raises(MissingDataError, match="BabelNet, non-commercial"):
        open_test(all_tasks()["babel-imagenet"], tmp_path / "none", 16)


def test_a_language_that_names_the_class_of_no_image_does_not_count():
    known = KnownTexts(6)
    labels = np.array([0, 1, 2] * 2)
    one, other = (
        LanguageNames(np.array(classes), ("cat", "dog"), ("{}",)) for classes in ([0, 2], [7, 9])
    )
    data = Multilingual(range(6), labels, {"DE": one, "QU": other})
    findings = classify_in_languages(known, data)
    assert findings.scores["top1"].value == findings.details["languages"]["DE"]["top1"]
    assert findings.details["languages"]["QU"] == {"classes": 2, "different_names": 2}
    assert findings.notes == ("1 of 2 languages name the class of no image and do not count: QU",)
    with pytest.raises(InputError, match="name the class of no image: QU"):
        classify_in_languages(known, data._replace(languages={"QU": other}))


def test_a_language_whose_images_are_all_left_out_of_a_draw_does_not_count():
    right, asked = np.array([[1.0, 0, 0], [0, 1, 1]]), np.array([[1.0, 0, 0], [0, 1, 1]])
    assert mean_over_languages(right, asked)(np.array([0, 2, 1])) == 1.0
    assert np.isnan(mean_over_languages(right[:1], asked[:1])(np.array([0, 2, 1])))


@pytest.mark.parametrize(
    ("language", "first", "template", "templates", "prompt_set"),
    [
        ("ar", "سمك التنش", "صورة سيئة لـ {}", 55, "clip_benchmark"),
        ("cn", "丁鲷", "质量差的{}的照片。", 80, "openai"),
        ("it", "una tinca", "una brutta foto di {}", 49, "clip_benchmark"),
        ("jp", "テンチ", "{}の悪い写真", 37, "openai"),
    ],
    ids=["ar", "cn", "it", "jp"],
)
def test_imagenet_in_other_languages_whatever_the_prompts(
    language, first, template, templates, prompt_set, tmp_path
):
    """English names that lie beside the images, or another set of prompts, are not asked."""
    write_wds(tmp_path / "wds_imagenet1k", labelled(), names=[f"n{i:08}" for i in range(1000)])
    task = all_tasks()[f"imagenet-{language}"]
    _, data = open_test(task, tmp_path, 16)
    wording = choose_wording(task, data, prompt_set)
    assert wording.class_names[0] == first
    assert template in wording.templates
    assert len(wording.templates) == templates
    assert wording.names_from == wording.templates_from == "clip_benchmark"
