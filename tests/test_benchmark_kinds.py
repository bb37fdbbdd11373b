"""Every kind of task from the command line to the page, with the weights of a real run."""

import dataclasses
import json

import numpy as np
import pytest
import tyro

from flaxclip.benchmark.command import Command, run
from flaxclip.benchmark.compare.outcomes import find_outcomes
from flaxclip.benchmark.report.report import write_report
from flaxclip.benchmark.results import read_arrays
from flaxclip.benchmark.tasks import all_tasks
from tests.helpers.image_tars import labelled, write_wds
from tests.helpers.published_sets import write_aro, write_crossmodal, write_docci

TASKS = (
    "crossmodal3600:de,quz",
    "aro_relation",
    "docci-sentences",
    "ood_cifar10",
    "babel-imagenet",
)


@pytest.fixture
def data(tmp_path):
    write_crossmodal(tmp_path / "data", images=12)
    write_aro(tmp_path / "data", "relation", ["behind"] * 5 + ["holding"] * 3, "relation_name")
    write_docci(tmp_path / "data", count=15)
    names = all_tasks()["cifar10"].prompts["openai"].class_names
    for name in ("vtab-cifar10", "vtab-cifar100", "vtab-svhn"):
        write_wds(tmp_path / f"data/wds_{name}", labelled(20, 10), names=names)
    write_wds(tmp_path / "data/wds_imagenet1k", labelled(12, classes=4))
    (tmp_path / "data/babel-imagenet").mkdir()
    words = {"DE": [[0, 1, 2, 3], ["Schleie", "Goldfisch", "Hai", "Tigerhai"]]}
    (tmp_path / "data/babel-imagenet/babel_imagenet-298.json").write_text(json.dumps(words))
    return tmp_path


def test_every_kind_of_task_is_measured_kept_and_drawn(finished_run, data, monkeypatch, capsys):
    monkeypatch.chdir(data)
    arguments = [str(finished_run), "--tasks", *TASKS, "--out", "results", "--cache", "cache"]
    command = tyro.cli(Command, args=arguments)
    first = run(command)
    assert [result.task for result in first.fresh] == [
        "crossmodal3600-de-quz", "aro_relation", "docci-sentences", "ood_cifar10", "babel-imagenet"
    ]  # fmt: skip
    for result in first.results:
        assert result.metric in result.scores
        for score in result.scores.values():
            assert np.isfinite([score.value, score.low, score.high, score.chance]).all()
    of_languages = first.results[0].details["languages"]
    mean = np.mean([scores["text_to_image_recall@1"] for scores in of_languages.values()])
    assert first.results[0].scores["text_to_image_recall@1"].value == pytest.approx(mean)
    assert set(first.results[4].details["languages"]) == {"DE", "EN"}
    for result in first.results:
        # What `compare` tests is made again from what is kept, to the last digit.
        outcomes = find_outcomes(
            result.metric, result, read_arrays(data / f"results/{result.task}.json")
        )
        score = outcomes.statistic(np.ones(outcomes.examples, int))
        assert score == result.scores[result.metric].value
    write_report([data / "results"], data / "page.html")
    page = (data / "page.html").read_text()
    for result in first.results:
        assert result.task in page

    assert run(command).fresh == []
    # Measured anew of the same embeddings, nothing is another score.
    kept = {path: path.stat().st_mtime_ns for path in (data / "cache").rglob("*.np*")}
    again = run(dataclasses.replace(command, out=data / "again"))
    assert [result.scores for result in again.fresh] == [r.scores for r in first.results]
    assert kept == {path: path.stat().st_mtime_ns for path in (data / "cache").rglob("*.np*")}
    assert kept
    # The same images with other captions are another question.
    file = data / "data/crossmodal3600/captions.jsonl"
    file.write_text(file.read_text().replace("de 3.0", "ein Hund"))
    assert [result.task for result in run(command).fresh] == ["crossmodal3600-de-quz"]
    # So are the same known classes among others.
    write_wds(data / "data/wds_vtab-svhn", labelled(24, 10))
    assert [result.task for result in run(command).fresh] == ["ood_cifar10"]
