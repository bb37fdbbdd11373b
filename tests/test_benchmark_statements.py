"""SugarCrepe++, ARO, MMVP-VLM, VALSE and NegBench as they are published, against plain NumPy."""

import csv
import io
import json

import numpy as np
import PIL.Image
import pytest

from flaxclip.benchmark.datasets import MissingDataError
from flaxclip.benchmark.methods.choice import choose_task, judge_task
from flaxclip.benchmark.methods.retrieval import retrieve_task
from flaxclip.benchmark.readers import open_test
from flaxclip.benchmark.tasks import all_tasks
from flaxclip.errors import InputError
from tests.helpers.image_tars import png
from tests.helpers.known_embeddings import KnownTexts
from tests.helpers.published_sets import write_aro, write_aro_order


def cosines(known, image, texts):
    return known.text_rows(texts) @ known.zimg[image]


def values(findings):
    return {name: score.value for name, score in findings.scores.items()}


def test_sugarcrepe_pp_scores_two_captions_alone_together_and_without_the_image(tmp_path):
    root = tmp_path / "sugar_crepe_pp"
    (root / "val2017").mkdir(parents=True)
    items = []
    for index in range(40):
        (root / f"val2017/{index:012}.jpg").write_bytes(png(index))
        texts = {name: f"{name} {index}" for name in ("caption", "caption2", "negative_caption")}
        items.append({"id": index, "filename": f"{index:012}.jpg", **texts})
    (root / "swap_obj.json").write_text(json.dumps(items))
    _, data = open_test(all_tasks()["sugarcrepe++_swap_obj"], tmp_path, 16)
    known = KnownTexts(40)
    hits = {"text": [], "text_1": [], "text_2": [], "text_only": []}
    for index, item in enumerate(items):
        texts = [item["caption"], item["caption2"], item["negative_caption"]]
        p1, p2, negative = cosines(known, index, texts)
        z1, z2, zn = known.text_rows(texts)
        hits["text"].append(p1 > negative and p2 > negative)
        hits["text_1"].append(p1 > negative)
        hits["text_2"].append(p2 > negative)
        hits["text_only"].append(z1 @ z2 > z1 @ zn and z1 @ z2 > z2 @ zn)
    findings = judge_task(known, data)
    assert values(findings) == pytest.approx({name: np.mean(hit) for name, hit in hits.items()})
    chances = {name: score.chance for name, score in findings.scores.items()}
    assert chances == {"text": 1 / 3, "text_1": 1 / 2, "text_2": 1 / 2, "text_only": 1 / 3}


def test_aro_means_over_relations_and_over_pairs_of_attributes(tmp_path):
    kinds = ["behind"] * 20 + ["holding"] * 5 + ["near"] * 7  # to be near is its own inverse
    write_aro(tmp_path, "relation", kinds, "relation_name")
    _, data = open_test(all_tasks()["aro_relation"], tmp_path, 16)
    image = data.images[9]
    assert image.shape == (10, 20, 3)
    assert (image == [9, 0, 0]).all()
    known = KnownTexts(32)
    hits = np.array([np.argmax(cosines(known, i, [f"false {i}", f"true {i}"])) for i in range(32)])
    findings = judge_task(known, data)
    expected = (hits[:20].mean() + hits[20:25].mean()) / 2
    assert values(findings) == pytest.approx({"text": hits.mean(), "text_of_kinds": expected})
    assert findings.details["kinds"]["near"]["items"] == 7
    assert findings.details["averaged_kinds"] == 2

    pairs = [["red", "big"]] * 25 + [["old", "wet"]] * 24
    write_aro(tmp_path, "attribution", pairs, "attributes")
    _, data = open_test(all_tasks()["aro_attribution"], tmp_path, 16)
    assert data.averaged_kinds == {"red_big"}
    assert set(data.kinds) == {"red_big", "old_wet"}


@pytest.mark.parametrize("listed", [True, False])
def test_aro_order_takes_the_caption_before_its_shuffles(listed, tmp_path):
    columns = write_aro_order(tmp_path / "gowitheflow/ARO-COCO-order/data", listed)
    names = list(columns)[:5]
    _, data = open_test(all_tasks()["aro_coco_order"], tmp_path, 16)
    pixels = [PIL.Image.open(io.BytesIO(data.images[row])).getpixel((0, 0)) for row in range(6)]
    assert pixels == [(row, 0, 0) for row in range(6)]
    known = KnownTexts(6)
    options = [[columns[name][row] for name in names] for row in range(6)]
    hits = [np.argmax(cosines(known, row, options[row])) == 0 for row in range(6)]
    assert values(judge_task(known, data)) == {"text": pytest.approx(np.mean(hits))}


def test_mmvp_asks_for_the_image_of_each_of_two_statements(tmp_path):
    root = tmp_path / "mmvp_vlm"
    rows = []
    for number in range(1, 13):
        kind = "Texts" if number <= 4 else "Quantity and Count"
        (root / f"MLLM_VLM Images/{kind}").mkdir(parents=True, exist_ok=True)
        (root / f"MLLM_VLM Images/{kind}/{number}.jpg").write_bytes(png(number))
        rows.append([number, kind, f"statement {number}"])
    with (root / "Questions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["Question ID", "Type", "Statement"], *rows])
    _, data = open_test(all_tasks()["mmvp_vlm"], tmp_path, 16)
    known = KnownTexts(12)
    hits = []
    for first in range(0, 12, 2):
        texts = [f"a photo of statement {first + side + 1}" for side in (0, 1)]
        logits = known.text_rows(texts) @ known.zimg[first : first + 2].T
        hits.append(logits.argmax(axis=1).tolist() == [0, 1])
    findings = choose_task(known, data)
    assert findings.scores["image"].value == pytest.approx(np.mean(hits))
    kinds = {kind: found["image"] for kind, found in findings.details["kinds"].items()}
    expected = {"Texts": np.mean(hits[:2]), "Quantity and Count": np.mean(hits[2:])}
    assert kinds == pytest.approx(expected)
    with (root / "Questions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["Question ID", "Type", "Statement"], *rows[1:]])
    with pytest.raises(InputError, match="no pairs"):
        open_test(all_tasks()["mmvp_vlm"], tmp_path, 16)
    (root / "Questions.csv").write_text("Question ID,Type,Statement\n1,Texts,a\ntwo,Texts\n")
    with pytest.raises(InputError, match=r"has numbers 1, \.\.\.: no pairs"):
        open_test(all_tasks()["mmvp_vlm"], tmp_path, 16)


def test_valse_counts_what_annotators_agree_upon(tmp_path):
    root = tmp_path / "valse"
    (root / "images/coco/val2014").mkdir(parents=True)
    (root / "data").mkdir()
    expected, rows = {}, 0
    known = KnownTexts(14)
    for piece, votes in (("existence", [3, 2, 1] * 5), ("plurals", [2, 0, 3, 1] * 2)):
        items, hits = {}, []
        for index, vote in enumerate(votes):
            name = f"{piece}{index}.jpg"
            (root / "images/coco/val2014" / name).write_bytes(png(index))
            texts = {"caption": f"yes {name}", "foil": f"no {name}"}
            items[name] = {"image_file": name, "mturk": {"caption": vote, "foil": 0}, **texts}
            if vote >= 2:
                right, wrong = cosines(known, rows, list(texts.values()))
                hits.append(right > wrong)
                rows += 1
        expected[piece] = np.mean(hits)
        (root / f"data/{piece}.json").write_text(json.dumps(items))
        (root / f"data/._{piece}.json").write_bytes(b"\0\5\x16\7")
    _, data = open_test(all_tasks()["valse"], tmp_path, 16)
    assert len(data.images) == rows == 14
    findings = judge_task(known, data)
    kinds = {kind: found["text"] for kind, found in findings.details["kinds"].items()}
    assert kinds == pytest.approx(expected)
    mean = np.mean(list(expected.values()))
    assert findings.scores["text_of_kinds"].value == pytest.approx(mean)


def write_negbench(root, name, rows):
    (root / "negbench/images/val2017").mkdir(parents=True, exist_ok=True)
    for index in range(len(rows)):
        (root / f"negbench/images/val2017/{index}.jpg").write_bytes(png(index))
    with (root / f"negbench/{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_negbench_choices_by_the_template_of_the_answer(tmp_path):
    templates = ["positive", "negative", "hybrid"]
    rows = [
        {
            "image_path": f"/data/coco/val2017/{index}.jpg",
            **{f"caption_{option}": f"{option} of {index}, not" for option in range(4)},
            "correct_answer": 0,
            "correct_answer_template": templates[index % 3],
        }
        for index in range(30)
    ]
    write_negbench(tmp_path, "COCO_val_mcq_llama3.1_rephrased", rows)
    _, data = open_test(all_tasks()["negbench_coco_choices"], tmp_path, 16)
    known = KnownTexts(30)
    best = np.array([np.argmax(cosines(known, i, [f"{o} of {i}, not" for o in range(4)]))
                     for i in range(30)])  # fmt: skip
    findings = judge_task(known, data)
    assert findings.scores["text"].value == pytest.approx((best == 0).mean())
    assert findings.scores["text"].chance == 1 / 4
    for number, template in enumerate(templates):
        found = findings.details["kinds"][template]
        assert found["text"] == pytest.approx((best[number::3] == 0).mean())
        assert found["most_similar"] == np.bincount(best[number::3], minlength=4).tolist()
    for answer in ("-1", "4", "nan", "the second"):
        wrong = [*rows[:2], rows[2] | {"correct_answer": answer}]
        write_negbench(tmp_path, "COCO_val_mcq_llama3.1_rephrased", wrong)
        with pytest.raises(
            InputError, match=rf"row 3: correct_answer is '{answer}'\nexpected 0 to"
        ):
            open_test(all_tasks()["negbench_coco_choices"], tmp_path, 16)
    del rows[3]["correct_answer_template"]
    write_negbench(tmp_path, "COCO_val_mcq_llama3.1_rephrased", rows)
    with pytest.raises(InputError, match=r"row 4: no correct_answer_template"):
        open_test(all_tasks()["negbench_coco_choices"], tmp_path, 16)


def test_negbench_retrieval_by_lists_of_captions(tmp_path):
    captions = [[f"a {i}", f"no 'b', but {i}"][: 1 + i % 2] for i in range(20)]
    rows = [{"filepath": f"x/{i}.jpg", "captions": repr(captions[i])} for i in range(20)]
    name = "COCO_val_negated_retrieval_llama3.1_rephrased_affneg_true"
    write_negbench(tmp_path, name, rows)
    _, data = open_test(all_tasks()["negbench_coco_retrieval"], tmp_path, 16)
    known = KnownTexts(20)
    similar = known.text_rows(data.captions) @ known.zimg.T
    own = np.repeat(np.arange(20), [len(texts) for texts in captions])
    best = np.argsort(-similar, axis=1)[:, :5]
    expected = (best == own[:, None]).any(axis=1).mean()
    assert retrieve_task(known, data).scores["text_to_image_recall@5"].value == pytest.approx(
        expected
    )
    write_negbench(tmp_path, name, [{"filepath": "0.jpg", "captions": "__import__('os')"}])
    with pytest.raises(InputError, match="row 1: captions are"):
        open_test(all_tasks()["negbench_coco_retrieval"], tmp_path, 16)


def test_images_that_a_file_names_must_be_there_once(tmp_path):
    rows = [{"filepath": "x/0.jpg", "captions": "['a']"}]
    write_negbench(tmp_path, "COCO_val_retrieval", rows)
    task, folder = all_tasks()["negbench_coco_retrieval_plain"], tmp_path / "negbench/images"
    (folder / "other").mkdir()
    (folder / "other/0.jpg").write_bytes(png(0))
    with pytest.raises(InputError, match=r"2 images named 0.jpg"):
        open_test(task, tmp_path, 16)
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX/0.jpg").write_bytes(b"no image")
    (folder / "other/0.jpg").unlink()
    assert len(open_test(task, tmp_path, 16)[1].images) == 1
    (folder / "val2017/0.jpg").unlink()
    with pytest.raises(InputError, match=r"0 images named 0.jpg"):
        open_test(task, tmp_path, 16)
    with pytest.raises(MissingDataError, match="m1k2zoo/negbench"):
        open_test(task, tmp_path / "none", 16)
