import csv
import dataclasses
import json
import re

import numpy as np
import pytest
import scipy.stats

from flaxclip.benchmark.compare.command import compare_command, print_comparison
from flaxclip.benchmark.compare.comparison import compare
from flaxclip.benchmark.compare.differing import shown_examples
from flaxclip.benchmark.compare.measured import results_of
from flaxclip.benchmark.compare.outcomes import Outcomes, find_outcomes
from flaxclip.benchmark.compare.paired import holm, paired_bootstrap, paired_test
from flaxclip.benchmark.readers import open_test
from flaxclip.benchmark.report.names import result_names
from flaxclip.benchmark.report.report import find_results, report_command
from flaxclip.benchmark.results import (
    MeasuredCheckpoint,
    Result,
    Score,
    read_arrays,
    read_result,
    short_names,
    write_result,
)
from flaxclip.benchmark.scores import mean_of, mean_per_class, roc_auc
from flaxclip.benchmark.sets.place import DataPlace
from flaxclip.benchmark.tasks import all_tasks
from flaxclip.errors import InputError
from tests.helpers.command_lines import refused, run_cli
from tests.helpers.hub_stand_in import Hosted, serve_hub, take_for_the_hub
from tests.helpers.image_tars import labelled, write_wds

LABELS = np.arange(300) % 3
NAMES = np.array([f"0.tar/{number:03}" for number in range(300)])


def test_holm_equals_the_published_procedure():
    # p.adjust(c(0.03, 0.01, 0.04, 0.02, 0.9), "holm") of R.
    corrected = holm([0.03, 0.01, 0.04, 0.02, 0.9])
    np.testing.assert_allclose(corrected, [0.09, 0.05, 0.09, 0.08, 0.9])
    assert holm([]).shape == (0,)
    assert holm([0.6, 0.7]).tolist() == [1, 1]


def test_the_paired_bootstrap_agrees_with_the_t_test_on_means():
    rng = np.random.default_rng(0)
    values = rng.random(400)
    other = values - 0.01 + 0.1 * rng.normal(size=400)
    found = paired_bootstrap(*(Outcomes(mean_of(v), 400, v, False) for v in (values, other)))
    exact = scipy.stats.ttest_rel(values, other)
    assert found.value == pytest.approx(np.mean(values - other))
    assert found.p_value == pytest.approx(exact.pvalue, abs=0.01)
    interval = exact.confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=0.001)
    # Each by itself would not tell them apart: nine tenths of what they vary by is in common.
    assert scipy.stats.ttest_ind(values, other).pvalue > 0.3 > exact.pvalue


@pytest.mark.parametrize("size", [0.0, 0.2])
def test_no_more_is_known_than_samples_show(size):
    zeros, all_same = np.zeros(20), np.full(20, size)
    outcomes = [Outcomes(mean_of(v), 20, v, False) for v in (all_same, zeros)]
    assert paired_bootstrap(*outcomes).p_value == (1 / 1001 if size else 1.0)


def write(folder, right, path="runs/a", names=NAMES, labels=LABELS, task="pets", **fields):
    """Results of a checkpoint that is right where `right` says so."""
    folder.mkdir(parents=True, exist_ok=True)
    guesses = np.where(right, labels, (labels + 1) % 3)
    score = Score(float(right.mean()), 1 / 3, 0.0, 1.0)
    result = Result(
        task=task, title="pets of ours", method="zero-shot", kind="classification", metric="top1",
        checkpoint=MeasuredCheckpoint(path, 8), parameters_sha256="12",
        source={"reader": "folder", "name": "nowhere"}, data_sha256="34", task_preprocessing=None,
        identity_sha256="56", examples=len(labels), scores={"top1": score},
        details={"class_names": ["cat", ["dog", "hound"], "owl"], "prompts_sha256": "78"},
    )  # fmt: skip
    arrays = {
        "labels": labels,
        "ranking": np.stack([guesses, (guesses + 1) % 3, (guesses + 2) % 3], axis=1),
        "confidence": np.linspace(0.4, 0.9, len(labels)),
    }
    if names is not None:
        arrays["image_names"] = names
    write_result(dataclasses.replace(result, **fields), arrays, folder / task)
    return folder


def test_which_of_two_wins_where_and_on_which_images(tmp_path, capsys):
    right = np.arange(300) < 150
    better = np.arange(300) < 190  # 40 more
    same = right.copy()
    same[[7, 200]] = same[[200, 7]]
    for task, second in (("pets", better), ("zoo", same)):
        write(tmp_path / "a", right, task=task)
        write(tmp_path / "b", second, "runs/b", task=task)
    found = compare(*(find_results([tmp_path / name]) for name in "ab"), ("A", "B"))
    pets, zoo = found.tasks
    assert (pets.winner, zoo.winner) == (1, None)
    assert pets.difference.value == pytest.approx(40 / 300)
    assert pets.difference.p_value == pytest.approx(2 * 0.5**40)
    assert pets.corrected == pytest.approx(4 * 0.5**40)
    assert zoo.difference.p_value == zoo.corrected == 1
    assert found.verdict() == (
        "B is better on 1 task; no difference is shown on 1 task "
        "(p < 0.05, corrected for 2 tests (Holm))."
    )
    print_comparison(found)  # into a log: 80 columns are too few for it
    assert re.search("95% interval +corrected p +better", capsys.readouterr().out)
    drawn = dataclasses.replace(found, tasks=[zoo])
    assert drawn.verdict() == "No difference is shown on 1 task (p < 0.05)."
    assert [indices.tolist() for indices in zoo.differing()] == [[7], [200]]
    examples, reason = shown_examples(pets, tmp_path)
    # The six of which both were most certain.
    assert [example.name for example in examples] == [f"0.tar/{n}" for n in range(189, 183, -1)]
    assert (examples[0].truth, examples[0].guesses) == ("cat", ("dog", "cat"))
    assert reason.startswith("pets of ours is not on this machine")


def test_images_on_which_two_differ_are_read_where_they_are_published(
    tmp_path, monkeypatch, capsys
):
    root = write_wds(tmp_path / "hub/wds_vtab-pets", labelled())
    with serve_hub({"clip-benchmark/wds_vtab-pets": Hosted(root)}) as hub:
        take_for_the_hub(monkeypatch, hub.address)
        place = DataPlace("hf://datasets/clip-benchmark", tmp_path / "copies")
        source, data = open_test(all_tasks()["pets"], place, 16)
        fields = {
            "names": np.array([data.images.name(index) for index in range(7)]),
            "labels": data.labels,
            "source": dataclasses.asdict(source),
        }
        write(tmp_path / "a", np.arange(7) < 2, **fields)
        write(tmp_path / "b", np.arange(7) < 5, "runs/b", **fields)
        published = ["--data", place.data, "--data-cache", str(tmp_path / "copies")]
        folders = [str(tmp_path / name) for name in "ab"]
        page = tmp_path / "page.html"
        compare_command([*folders, "--out", str(page), *published])
        assert page.read_text().count("data:image/jpeg") == 3
        report_command([*folders, "--out", str(page), *published])
        assert page.read_text().count("data:image/jpeg") == 3
        # In a folder, as before: they are not there, and the page says so.
        report_command([*folders, "--out", str(page), "--data", str(tmp_path / "nowhere")])
        assert "data:image/jpeg" not in page.read_text()
        assert "Without images: pets of ours is not on this machine." in page.read_text()


def test_results_of_other_images_are_not_compared(tmp_path):
    right = np.arange(300) < 150
    a = find_results([write(tmp_path / "a", right)])

    def left_out(name, *arguments, **fields):
        b = find_results([write(tmp_path / name, *arguments, **fields)])
        found = compare(a, b, ("A", "B"))
        assert found.tasks == []
        return found.left_out

    assert left_out("b", right[:200], labels=LABELS[:200], names=NAMES[:200]) == [
        "pets, zero-shot: they were measured on 300 and 200 examples"
    ]
    assert left_out("c", right, labels=LABELS[::-1]) == [
        "pets, zero-shot: the same images have other labels"
    ]
    assert left_out("d", right, names=NAMES[::-1], data_sha256="99") == [
        "pets, zero-shot: they were measured on different images"
    ]
    assert (
        "at least one result does not keep the images' names"
        in (left_out("e", right, names=None, data_sha256="99")[0])
    )
    assert left_out("f", right, task="zoo") == [
        "pets, zero-shot: B has no result", "zoo, zero-shot: A has no result"
    ]  # fmt: skip
    # The same images in another place; or in the same one, by a version that kept no names.
    for name, fields in (("g", {"data_sha256": "99"}), ("h", {"names": None})):
        b = find_results([write(tmp_path / name, right, **fields)])
        assert len(compare(a, b, ("A", "B")).tasks) == 1


def test_every_score_is_made_again_from_what_is_kept_of_examples(tmp_path):
    rng = np.random.default_rng(3)
    positive = rng.normal(size=300)
    binary, groups = rng.integers(2, size=300), rng.integers(4, size=300)
    arrays = {
        "labels": binary, "groups": groups, "positive": positive, "jaccard": rng.random(300),
        "ranking": np.stack([positive > 0, positive <= 0], axis=1).astype(int),
        "text_hits": positive > 1, "image_to_text_rivals": rng.integers(9, size=300),
        "similarities": rng.random((300, 4)), "present": rng.random((300, 4)) > 0.5,
    }  # fmt: skip
    result = read_result(write(tmp_path, LABELS > 0) / "pets.json")
    ones = np.ones(300, int)
    first = (positive > 0) == binary
    for score, value in {
        "top1": first.mean(), "text": (positive > 1).mean(), "top5": 1.0,
        "jaccard": arrays["jaccard"].mean(), "roc_auc": roc_auc(positive, binary)(ones),
        "image_to_text_recall@5": (arrays["image_to_text_rivals"] < 5).mean(),
        "mean_per_class": mean_per_class(first, binary)(ones),
        "mean_top1_top5": (first.mean() + 1) / 2,
        "worst_group_top1": min(first[groups == group].mean() for group in range(4)),
    }.items():  # fmt: skip
        outcomes = find_outcomes(score, result, arrays)
        assert outcomes.statistic(ones) == pytest.approx(value), score
        assert paired_test(outcomes, outcomes) == (0, 0, 0, 1)
    right, asked = rng.integers(2, size=(2, 300)), np.ones((2, 300), int)
    source = np.repeat([0, 1, 2], 100)
    arrays = {
        "text_of_kinds_hits": first, "text_of_kinds_classes": np.where(groups < 3, groups, -1),
        "worst_group_gender_hits": first, "worst_group_gender_groups": groups,
        "top1_right": right, "top1_asked": asked, "known_probability": positive, "source": source,
        "top1_4_shot": arrays["jaccard"],
    }  # fmt: skip
    auroc = [roc_auc(positive[rows], 1 * (source[rows] == 0))(ones[rows])
             for rows in (source != 2, source != 1)]  # fmt: skip
    for score, value in {
        "text_of_kinds": mean_per_class(first, groups)(1 * (groups < 3)), "top1": right.mean(),
        "worst_group_gender": min(first[groups == group].mean() for group in range(4)),
        "auroc": np.mean(auroc), "top1_4_shot": arrays["top1_4_shot"].mean(),
    }.items():  # fmt: skip
        outcomes = find_outcomes(score, result, arrays)
        assert outcomes.statistic(ones) == pytest.approx(value), score
        assert paired_test(outcomes, outcomes) == (0, 0, 0, 1)


def test_scores_that_were_not_kept_of_examples(tmp_path):
    result = read_result(write(tmp_path, LABELS > 0) / "pets.json")
    arrays = {
        "similarities": np.random.default_rng(3).random((300, 4)), "present": np.eye(300, 4) > 0,
        "labels": LABELS, "ranking": LABELS[:, None],
    }  # fmt: skip
    assert find_outcomes("mean_average_precision", result, arrays).examples == 300
    assert find_outcomes("f1_macro", result, arrays).examples == 300
    assert find_outcomes("top1_16_shot", result, {}) is None


def test_names_are_as_long_as_it_takes_to_tell_checkpoints_apart():
    paths = ("x/runs/a", "x/runs/b")
    assert short_names([MeasuredCheckpoint(path, 8) for path in paths]) == [
        "runs/a step 8", "runs/b step 8"
    ]  # fmt: skip
    paths = ("x/runs/a", "y/runs/a")
    assert short_names([MeasuredCheckpoint(path, None) for path in paths]) == list(paths)
    with pytest.raises(InputError, match="a is named twice"):
        short_names([MeasuredCheckpoint("a", None)] * 2)


def test_checkpoints_whose_paths_end_alike_have_columns_of_their_own(tmp_path, capsys):
    write(tmp_path / "1", LABELS > 0, "x/runs/a", parameters_sha256="1")
    write(tmp_path / "2", LABELS > 1, "y/runs/a", parameters_sha256="2")
    out = tmp_path / "page.html"
    report_command([str(tmp_path), "--out", str(out)])
    assert "2 results of 2 checkpoints" in capsys.readouterr().out
    names = ("x/runs/a step 8", "y/runs/a step 8")
    page = re.sub("<wbr>", "", out.read_text())
    assert f"{names[1]} against {names[0]}" in page
    rows = list(csv.DictReader(out.with_suffix(".clip_benchmark.csv").read_text().splitlines()))
    tops = ((LABELS > 0).mean(), (LABELS > 1).mean())
    assert [(row["pretrained"], float(row["acc1"])) for row in rows] == list(
        zip(names, tops, strict=True)
    )
    for name, top in zip(names, tops, strict=True):
        assert (
            f"| {name} | pets, zero-shot | top1 | {top:.2%} |" in out.with_suffix(".md").read_text()
        )
        assert page.count(f">{top:.1%}\n") == 1  # in the summary


def test_a_checkpoint_measured_twice_is_named_by_the_folders(tmp_path):
    for folder, path, sha in (
        ("a/0", "runs/a", "1"), ("b/0", "runs/a", "1"), ("c/1", "runs/a", "2"),
        ("d", "runs/b", "3"), ("e", "/whole/runs/b", "3"),
    ):  # fmt: skip
        task = "cars" if folder == "e" else "pets"
        write(tmp_path / folder, LABELS > 0, path, task=task, parameters_sha256=sha)
    names = {path.parent: name for path, name in result_names(find_results([tmp_path])).items()}
    for folder in ("a/0", "b/0", "c/1"):
        assert names[tmp_path / folder] == f"runs/a step 8 in {tmp_path / folder}"
    assert names[tmp_path / "d"] == names[tmp_path / "e"] == "runs/b step 8"


@pytest.fixture(scope="module")
def both(finished_run, tmp_path_factory):
    """Two steps of a run, measured and compared in one call."""
    folder = tmp_path_factory.mktemp("both")
    steps = [str(finished_run / f"checkpoints/{step}") for step in (4, 8)]
    result = run_cli(
        "flaxclip.benchmark", *steps, "--tasks", "scenes-unseen", "scenes-shift", "--out",
        "results", "--cache", "cache", cwd=folder,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return folder / "results", result.stdout


def test_several_checkpoints_of_one_call_are_compared(both, finished_run):
    results, said = both
    name = f"{finished_run.parent.name}/{finished_run.name}"
    assert f"A: {name} step 4\nB: {name} step 8" in said
    folders = [results / f"{name} step {step}".replace("/", "-").replace(" ", "-")
               for step in (4, 8)]  # fmt: skip
    tops = []
    for folder in folders:
        arrays = read_arrays(folder / "scenes-unseen.json")
        assert arrays["image_names"][7] == "scenes/unseen/7"
        tops.append(arrays["ranking"][:, 0] == arrays["labels"])
    page = (results / "comparison.html").read_text()
    assert f"{name} step 8 against {name} step 4" in page
    alone = [int((tops[0] & ~tops[1]).sum()), int((tops[1] & ~tops[0]).sum())]
    for count, step in zip(alone, (4, 8), strict=True):
        assert f"<h3>{count:,} that {name} step {step} alone gets right</h3>" in page
    rows = list(csv.DictReader((results / "comparison.differences.csv").read_text().splitlines()))
    assert sum(row["task"] == "scenes-unseen" for row in rows) == sum(alone)
    json.loads((results / "comparison.json").read_text())
    # Drawn anew for the page: the mistakes of a result are few, and of one checkpoint.
    section = page[page.index("Where they differ on scenes-unseen") :].partition("</details>")[0]
    assert section.count("data:image/jpeg") == sum(min(count, 6) for count in alone)


def test_measured_checkpoints_are_compared_by_name(both, finished_run, tmp_path, capsys):
    results, _ = both
    a, b = sorted(path for path in results.iterdir() if "step" in path.name)
    compare_command([str(a), str(b), "--out", str(tmp_path / "page.html")])
    said = capsys.readouterr().out
    assert re.search(r"scenes-unseen +top1 ", said)
    assert "4 results of 2 checkpoints, training curves of 1 run: " in said
    assert "Where they differ on" in (tmp_path / "page.html").read_text()
    said = refused(lambda: compare_command([str(a), str(a)]), capsys)
    assert "are the same results" in said
    said = refused(lambda: compare_command([str(results), str(a)]), capsys)
    assert "holds results of 2 checkpoints" in said
    said = refused(lambda: compare_command([str(finished_run / "nowhere"), str(a)]), capsys)
    assert "no results of" in said
    assert "measure it with" in said


@pytest.mark.parametrize(
    ("asked", "written"),
    [
        ("runs/a", "runs/a/benchmark/8"),
        ("runs/a/checkpoints/8", "runs/a/benchmark/8"),
        ("gs://bucket/runs/a/checkpoints/8", "benchmark/a/8"),
        ("weights/b.pt", "weights/benchmark/b"),
        ("hf://laion/b32", "benchmark/b32"),
        ("results", "results"),
    ],
)
def test_results_are_found_where_measuring_puts_them(asked, written, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/a/checkpoints").mkdir(parents=True)
    write(tmp_path / written, LABELS > 0)
    if asked == "runs/a":  # its latest step
        write(tmp_path / "runs/a/benchmark/4", LABELS > 1, checkpoint=MeasuredCheckpoint("a", 4))
    ((path, result),) = results_of(asked)
    assert (path.parent, result.checkpoint.step) == (type(path)(written), 8)
