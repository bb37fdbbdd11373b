"""Retrieval by captions of many sentences, read as they are published, against plain NumPy."""

import json

import numpy as np
import pytest

from flaxclip.benchmark.datasets import MissingDataError
from flaxclip.benchmark.methods.retrieval import retrieve_task, sentences_of
from flaxclip.benchmark.readers import open_test
from flaxclip.benchmark.tasks import all_tasks
from flaxclip.errors import InputError
from tests.helpers.image_tars import png
from tests.helpers.known_embeddings import KnownTexts
from tests.helpers.published_sets import write_docci


def test_separators_within_a_description_do_not_end_its_line(tmp_path):
    write_docci(tmp_path, count=3)
    file = tmp_path / "docci/docci_descriptions.jsonlines"
    file.write_text(file.read_text().replace("Sentence 1 of 1", "one\u2028two"), encoding="utf-8")
    _, data = open_test(all_tasks()["docci"], tmp_path, 16)
    assert data.captions[0] == "Sentence 0 of 1. one\u2028two."


@pytest.mark.parametrize("name", ["docci", "docci-sentences"])
def test_docci_whole_and_sentence_by_sentence(name, tmp_path):
    write_docci(tmp_path, count=45)
    task = all_tasks()[name]
    _, data = open_test(task, tmp_path, 16)
    assert len(data.captions) == len(data.images) == 30
    assert data.images.name(2) == "images/test_00004.jpg"
    cut = ["Sentence 1 of 5.", "Sentence 0 of 4."]  # the second is also a whole caption
    known = KnownTexts(30, cut=cut)
    if task.sub_captions:
        similar = np.stack([
            np.mean([known.text_rows([f"{part}."])[0] @ known.zimg.T
                     for part in caption.rstrip(".").split(". ")], axis=0)
            for caption in data.captions
        ])  # fmt: skip
    else:
        similar = known.text_rows(data.captions) @ known.zimg.T
    findings = retrieve_task(known, data, task.sub_captions)
    for direction, matrix in (("text_to_image", similar), ("image_to_text", similar.T)):
        places = (matrix > np.diag(matrix)[:, None]).sum(axis=1)
        for k in (1, 5, 10):
            score = findings.scores[f"{direction}_recall@{k}"]
            assert score.value == pytest.approx((places < k).mean())
    texts = [part for caption in data.captions for part in sentences_of(caption)]
    texts = texts if task.sub_captions else data.captions
    expected = {"texts": len(texts), "texts_cut": sum(text in cut for text in texts)}
    assert findings.details == expected
    kind = "sentences" if task.sub_captions else "captions"
    assert f"{expected['texts_cut']} of {len(texts)} {kind} were too long" in findings.notes[0]


@pytest.mark.parametrize(
    ("caption", "sentences"),
    [
        ("A dog. It barks! Why? No.", ["A dog.", "It barks!", "Why?", "No."]),
        ("At 3.5 m, e.g.a cat\ntail: long\n\nears", ["At 3.5 m, e.g.a cat", "tail: long", "ears"]),
        ("no end", ["no end"]),
        ("一只猫。两只狗！ 树", ["一只猫。", "两只狗！", "树"]),
        (" ", [" "]),
    ],
)
def test_sentences_end_with_a_mark_or_a_line(caption, sentences):
    assert sentences_of(caption) == sentences


def test_dci_as_its_authors_put_it_together(tmp_path):
    root = tmp_path / "densely_captioned_images"
    (root / "complete").mkdir(parents=True)
    (root / "photos").mkdir()
    masks = {
        str(number): {"label": f"label {number}", "caption": "words", "mask_quality": number}
        for number in range(3)
    }
    for number, mask_data in enumerate((masks, {})):
        (root / f"photos/sa_{number}.jpg").write_bytes(png(number))
        item = {"image": f"sa_{number}.jpg", "short_caption": "short.", "extra_caption": "more."}
        (root / f"complete/{number}.json").write_text(json.dumps(item | {"mask_data": mask_data}))
    _, data = open_test(all_tasks()["dci"], tmp_path, 16)
    assert data.captions == ("short.\nmore.",) * 2
    _, data = open_test(all_tasks()["dci-complete"], tmp_path, 16)
    shown = "The following can also be seen in the image:"
    assert data.captions[0] == f"short.\nmore.\n{shown}\nlabel 0: words\nlabel 1"
    assert data.captions[1] == "short.\nmore."
    (root / "complete/._1.json").write_bytes(b"\0\5\x16\7")
    assert len(open_test(all_tasks()["dci"], tmp_path, 16)[1].images) == 2
    (root / "complete/1.json").write_text("{}")
    with pytest.raises(InputError, match=r"complete/1\.json has no image"):
        open_test(all_tasks()["dci"], tmp_path, 16)


def test_urban_1k_takes_the_first_line_of_each_file(tmp_path):
    for folder in ("caption", "image"):
        (tmp_path / "Urban1k" / folder).mkdir(parents=True)
    for number, text in ((1, "A street.\nmore\n"), (2, "A square.")):
        (tmp_path / f"Urban1k/caption/{number}.txt").write_text(text)
        (tmp_path / f"Urban1k/image/{number}.jpg").write_bytes(png(number))
    _, data = open_test(all_tasks()["urban1k"], tmp_path, 16)
    assert data.captions == ("A street.", "A square.")
    assert data.pairs.tolist() == [[0, 0], [1, 1]]
    (tmp_path / "Urban1k/caption/._2.txt").write_bytes(b"\0\5\x16\7\xff")
    assert len(open_test(all_tasks()["urban1k"], tmp_path, 16)[1].images) == 2
    (tmp_path / "Urban1k/caption/2.txt").write_text("\nA square.")
    with pytest.raises(InputError, match="nothing in its first line"):
        open_test(all_tasks()["urban1k"], tmp_path, 16)
    with pytest.raises(MissingDataError, match="BeichenZhang/Urban1k"):
        open_test(all_tasks()["urban1k"], tmp_path / "none", 16)
