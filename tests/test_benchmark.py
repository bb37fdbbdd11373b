import concurrent.futures
import contextlib
import csv
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pyarrow
import pyarrow.parquet
import pytest
import tyro

import flaxclip
from flaxclip.api import CLIPModel
from flaxclip.benchmark.command import Command, follow, run
from flaxclip.benchmark.datasets import batch_ranges, image_batches
from flaxclip.benchmark.embeddings import Embedder
from flaxclip.benchmark.kept_embeddings import Embedded, load_embedded, save_embedded
from flaxclip.benchmark.methods.zero_shot import task_classifier
from flaxclip.benchmark.readers.own import read_scenes
from flaxclip.benchmark.report.report import write_report
from flaxclip.benchmark.tasks import DataSource, all_tasks
from flaxclip.checkpoint.watch import watch
from flaxclip.data.images.eval_transform import SizedTransform
from flaxclip.data.sources.scenes import ScenesSource
from flaxclip.data.sources.source import UnreadableExampleError
from flaxclip.errors import InputError
from flaxclip.models.clip import init_variables
from flaxclip.models.text_transformer import TextConfig, TextTransformer, needed_length
from tests.helpers.command_lines import refused, run_cli
from tests.helpers.image_tars import labelled, png, write_wds
from tests.helpers.xla_flags import ONE_DEVICE


@pytest.fixture(scope="module")
def model(finished_run):
    return flaxclip.load(finished_run)


def unseen(tmp_path):
    source = DataSource("scenes", "unseen", train=None)
    return read_scenes(all_tasks()["scenes-unseen"], source, "test", tmp_path, 16).images


def test_weights_that_are_not_finite_have_no_score(model, tmp_path):
    """No similarity is above NaN: retrieval would find every partner first."""
    broken = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), model.variables)
    embedder = Embedder(CLIPModel(model.spec, broken), 960, tmp_path / "cache")
    with pytest.raises(InputError, match="960 of 960 embeddings of images are not finite"):
        embedder.embed_images(unseen(tmp_path))
    with pytest.raises(InputError, match="2 of 2 embeddings of texts are not finite"):
        embedder.embed_texts(["a", "b"])
    assert not list((tmp_path / "cache").rglob("*.npz"))


@pytest.mark.parametrize("batch_size", [7, 960, 1000])
def test_every_image_counts_once_whatever_the_batch(batch_size, tmp_path):
    images = unseen(tmp_path)
    batches = list(image_batches(images, SizedTransform(16), batch_size, workers=2))
    assert {batch.images.shape for batch in batches} == {(batch_size, 16, 16, 3)}
    seen = np.concatenate([batch.images[batch.is_real] for batch in batches])
    expected = np.stack([images[index] for index in range(len(images))])
    assert np.array_equal(seen, expected)


def test_small_batches_take_what_whole_ones_leave(tmp_path):
    images = unseen(tmp_path)
    batches = list(image_batches(images, SizedTransform(16), 400, 3, 960, 2, last_batch_size=50))
    assert [len(batch.images) for batch in batches] == [400, 400, 50, 50, 50, 50]
    assert [batch.is_real.sum() for batch in batches] == [400, 400, 50, 50, 50, 7]
    seen = np.concatenate([batch.images[batch.is_real] for batch in batches])
    assert np.array_equal(seen, np.stack([images[index] for index in range(3, 960)]))
    # As many rows as a whole one has: one batch rather than eight.
    assert batch_ranges(0, 351, 400, 50) == [(0, 400)]


@pytest.mark.parametrize(
    ("family", "end_id", "expected"),
    [("clip", None, 4), ("clip", 7, 6), ("mobileclip", None, 8), ("siglip", None, 8)],
)
def test_positions_that_no_embedding_depends_on(family, end_id, expected):
    config = TextConfig(8, 32, 16, layers=1, heads=2, family=family, end_id=end_id)
    tokens = np.array([[1, 31, 0, 0, 0, 7, 0, 0], [1, 2, 7, 31, 0, 0, 0, 0]], np.int32)
    assert needed_length(config, tokens) == expected
    tower = TextTransformer(config, 4)
    variables = tower.init(jax.random.key(0), jnp.array(tokens))
    whole = tower.apply(variables, jnp.array(tokens))
    np.testing.assert_allclose(
        tower.apply(variables, jnp.array(tokens[:, :expected])), whole, atol=1e-6
    )
    if expected < 8:  # and no fewer will do
        short = tower.apply(variables, jnp.array(tokens[:, : expected - 1]))
        assert np.abs(short - whole).max() > 1e-3


def test_texts_are_encoded_at_their_length(model, tmp_path, monkeypatch):
    config = dataclasses.replace(model.config.text, context_length=40)
    spec = model.spec._replace(model=dataclasses.replace(model.config, text=config))
    long = CLIPModel(spec, init_variables(jax.random.key(0), spec.model))
    lengths = []
    encode = flaxclip.benchmark.embeddings.encode_text
    monkeypatch.setattr(
        "flaxclip.benchmark.embeddings.encode_text",
        lambda variables, tokens, *rest: (
            lengths.append(tokens.shape[1]) or encode(variables, tokens, *rest)
        ),
    )
    texts = ["red square", "red square " * 12, "red square " * 30]
    for text, expected in zip(texts, (16, 32, 40), strict=True):
        ztxt = Embedder(long, 8, tmp_path).embed_texts([text]).z
        np.testing.assert_allclose(ztxt, long.encode_text([text]), atol=1e-6)
        assert lengths.pop() == expected


def test_embeddings_do_not_depend_on_batch_or_devices(model, tmp_path):
    images = unseen(tmp_path)
    all_devices = Embedder(model, 100, tmp_path).embed_images(images)
    one_by_one = np.concatenate([model.encode_image([images[i]]) for i in range(8)])
    assert all_devices.z.shape == (960, 16)
    np.testing.assert_allclose(all_devices.z[:8], one_by_one, atol=1e-6)


def test_texts_come_in_order_from_whole_and_small_batches(model, tmp_path):
    texts = [f"{color} {shape}" for color in ("red", "blue", "green") for shape in "abcdefgh"]
    for count in (1, 8, 9, 16, 21, 24):  # batches of 16, then of 8
        ztxt, cut = Embedder(model, 16, tmp_path).embed_texts(texts[:count])
        np.testing.assert_allclose(ztxt, model.encode_text(texts[:count]), atol=1e-6)
        assert cut == ()
        few = Embedder(model, 16, tmp_path).encode_few_texts(texts[:count])
        np.testing.assert_allclose(few, ztxt, atol=1e-6)


def test_texts_that_were_embedded_last_are_not_embedded_again(model, tmp_path, monkeypatch):
    texts = ["a red circle", "a blue ring", "a red circle", "a green star"]
    embedder = Embedder(model, 16, tmp_path)
    ztxt, _ = embedder.embed_texts(texts)
    alone = embedder.encode_few_texts(["a black cross"])
    monkeypatch.delattr("flaxclip.benchmark.embeddings.encode_text")
    few = embedder.encode_few_texts(["a green star", "a red circle"])
    np.testing.assert_array_equal(few, ztxt[[3, 0]])
    np.testing.assert_allclose(alone, model.encode_text(["a black cross"]), atol=1e-6)


def test_the_program_for_images_is_compiled_while_weights_are_hashed(model, tmp_path):
    compiled = []

    def listen(event, seconds, **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(seconds)

    embedder = Embedder(model, 40, tmp_path)
    hashed, embedder._digest = embedder._digest, concurrent.futures.Future()
    embedder.compile_ahead(960)
    embedder._digest = hashed
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        embedder.embed_images(unseen(tmp_path))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled == []
    # Hashed already, there is nothing to wait for.
    hashed.result()
    embedder.compile_ahead(960)


def test_embeddings_are_kept_chunk_by_chunk(model, tmp_path, monkeypatch):
    monkeypatch.setattr("flaxclip.benchmark.embeddings.CHUNK", 384)
    images = unseen(tmp_path)
    first = Embedder(model, 64, tmp_path)
    zimg = first.embed_images(images).z
    assert first.computed == 960
    kept = sorted(tmp_path.glob("*/*.npz"))
    assert [path.name for path in kept] == ["0.npz", "1.npz", "2.npz"]
    kept[1].unlink()
    second = Embedder(model, 64, tmp_path)
    np.testing.assert_array_equal(second.embed_images(images).z, zimg)
    assert second.computed == 384


def test_damaged_embeddings_are_refused_by_name(tmp_path):
    path = tmp_path / "set" / "0.npz"
    assert load_embedded(path) is None
    save_embedded(path, Embedded(np.eye(3, dtype=np.float32), ("one", "two")))
    assert load_embedded(path).remarks == ("one", "two")
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"no arrays"):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"0\.npz are damaged: .*\ndelete the file"):
            load_embedded(path)


def test_an_unreadable_image_stays_in_the_denominator(model, tmp_path):
    class Broken:
        identity = "broken"

        def __init__(self, images):
            self._images, self.name = images, images.name

        def __len__(self):
            return 10

        def __getitem__(self, index):
            return b"broken" if index == 3 else self._images[index]

    for _ in range(2):  # not from disk: it might be readable by now
        embedder = Embedder(model, 64, tmp_path, max_unreadable=0.1)
        embedded = embedder.embed_images(Broken(unseen(tmp_path)))
        assert len(embedded.z) == embedder.computed == 10
        assert len(embedded.remarks) == 1
        assert embedded.remarks[0].startswith("scenes/unseen/3: ")
    with pytest.raises(InputError, match=r"1 of 10 images cannot be read\nscenes/unseen/3: "):
        Embedder(model, 64, tmp_path).embed_images(Broken(unseen(tmp_path)))
    embedder = Embedder(model, 64, tmp_path)
    for _ in range(2):  # the second time from memory
        assert len(embedder.embed_images(Broken(unseen(tmp_path)), limited=False).remarks) == 1
        assert embedder.computed == 10
    with pytest.raises(InputError, match="1 of 10 images cannot be read"):
        embedder.embed_images(Broken(unseen(tmp_path)))


def test_a_set_that_cannot_be_read_is_given_up_at_once(model, tmp_path, monkeypatch):
    monkeypatch.setattr("flaxclip.benchmark.embeddings.CHUNK", 16)

    class Gone:
        identity = "gone"

        def __len__(self):
            return 10**9

        def __getitem__(self, index):
            raise UnreadableExampleError("Stale file handle")

        def name(self, index):
            return f"{index}.jpg"

    with pytest.raises(InputError) as refused:
        Embedder(model, 16, tmp_path, max_unreadable=1e-8).embed_images(Gone())
    assert str(refused.value).splitlines() == [
        "16 of the first 16 of 1,000,000,000 images cannot be read",
        *(f"{index}.jpg: Stale file handle" for index in range(5)),
        "and 11 more",
        "at most 1e-06% may count as black: give them back, fix them or take them out of the set, "
        "or raise --max-unreadable",
    ]


def test_a_class_is_the_renormalised_mean_of_its_prompts(model, tmp_path):
    templates, names = ("a {}", "the {} there"), ("red star", ("blue ring", "blue circle"))
    classifier, cut = task_classifier(Embedder(model, 8, tmp_path), names, templates)
    for row, synonyms in zip(classifier, (("red star",), names[1]), strict=True):
        prompts = [template.format(name) for name in synonyms for template in templates]
        mean = np.asarray(model.encode_text(prompts)).mean(axis=0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-6)
    assert cut == ()
    long = ("{} " + "long " * 30,)
    assert len(task_classifier(Embedder(model, 8, tmp_path), names, long)[1]) == 3


def test_the_notebook_face(model):
    images = [PIL.Image.fromarray(ScenesSource("seen", 40)[i].image) for i in range(3)]
    zimg = model.encode_image(images)
    np.testing.assert_allclose(np.linalg.norm(zimg, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(zimg, model.encode_image(model.preprocess(images)))
    probabilities = model.classify(images, ["red circle", "blue star"])
    assert probabilities.shape == (3, 2)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert model.tokenize(["a cat"]).shape == (1, 20)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(model.params))
    assert "ViT-B-32" in flaxclip.available_models()


@pytest.fixture(scope="module")
def measured(finished_run, tmp_path_factory):
    """A folder with the results of a run's own tasks."""
    folder = tmp_path_factory.mktemp("measured")
    result = run_cli(
        "flaxclip.benchmark", str(finished_run), "--out", "results", "--cache", "cache", cwd=folder
    )
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


def test_the_command_line_measures_the_tasks_of_the_training_data(measured):
    folder, output = measured
    for task in ("scenes-seen", "scenes-unseen", "scenes-shift"):
        assert task in output
        result = json.loads((folder / "results" / f"{task}.json").read_text())
        top1, top5 = result["scores"]["top1"], result["scores"]["top5"]
        assert result["checkpoint"]["step"] == 8
        assert 0 <= top1["low"] <= top1["value"] <= top1["high"] <= top5["high"] <= 1
        assert top1["chance"] == 1 / len(result["class_names"])
        assert result["prompt_set"] == "clip_benchmark"
        for image in ("predictions", "similarities"):
            with PIL.Image.open(folder / f"results/{task}-{image}.png") as drawn:
                assert drawn.width > 300
        first = result["mistakes"][0]
        assert first["class"] != first["prediction"]
        with PIL.Image.open(folder / "results" / first["image"]) as kept:
            assert kept.width == 96


def test_a_killed_suite_goes_on_where_it_was(finished_run, measured, tmp_path):
    arguments = [sys.executable, "-m", "flaxclip.benchmark", str(finished_run), "--out", "results"]
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "XLA_FLAGS": ONE_DEVICE}
    process = subprocess.Popen([*arguments, "--cache", "cache"], cwd=tmp_path, env=environment)
    first = tmp_path / "results" / "scenes-seen.json"
    while not first.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed_at = first.stat().st_mtime_ns
    result = run_cli("flaxclip.benchmark", *arguments[3:], "--cache", "cache", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert first.stat().st_mtime_ns == killed_at
    assert "measured before, kept" in result.stdout
    for task in ("scenes-seen", "scenes-unseen", "scenes-shift"):
        result = json.loads((tmp_path / "results" / f"{task}.json").read_text())
        assert result == json.loads((measured[0] / "results" / f"{task}.json").read_text())


def test_retrieval_of_pairs_of_ones_own(retrieved):
    result = json.loads((retrieved / "results" / "retrieval.json").read_text())
    assert result["examples"] == 21
    assert result["checkpoint"]["step"] == 4
    assert result["scores"]["image_to_text_recall@5"]["chance"] == pytest.approx(5 / 21)
    assert len(result["retrieved"][0]["captions"]) == 5
    assert len(result["unreadable"]) == result["unreadable_images"] == 1


def measure(finished_run, *arguments):
    """Like the command line, in this process."""
    return run(tyro.cli(Command, args=[str(finished_run), *arguments, "--cache", "cache"]))


def test_a_task_fails_alone_whose_images_cannot_be_read(
    finished_run,
    tmp_path,
    monkeypatch,
    capsys,
):
    monkeypatch.chdir(tmp_path)
    broken = [{"png": b"no image", "cls": b"0"}, *labelled(9)]
    for name, examples, train in (
        ("good", labelled(9), labelled(30)),
        ("classes", broken, labelled(30)),
        ("taught", labelled(9), broken),
    ):
        write_wds(tmp_path / name, examples, shards=1)
        write_wds(tmp_path / name, train, shards=1, split="train")
    captioned = [{"png": r["png"], "txt": b"%d" % i} for i, r in enumerate(broken)]
    write_wds(tmp_path / "captioned", captioned, shards=1)
    (tmp_path / "data/sugar_crepe/val2017").mkdir(parents=True)
    (tmp_path / "data/sugar_crepe/val2017/7.png").write_bytes(png(7)[:40])
    item = {"filename": "7.png", "caption": "a dog", "negative_caption": "a cat"}
    (tmp_path / "data/sugar_crepe/swap_obj.json").write_text(json.dumps({"0": item}))
    (tmp_path / "data/winogavil").mkdir()
    columns = {"cue": ["owl"], "candidates": [["a", "b"]], "associations": [["b"]],
               "candidate_images": [[{"bytes": png(1)}, {"bytes": b"no image"}]]}  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "data/winogavil/test.parquet")

    tasks = ("wds:classes", "wds-retrieval:captioned", "sugarcrepe_swap_obj", "winogavil",
             "wds:taught", "wds:good")  # fmt: skip
    said = refused(lambda: measure(finished_run, "--tasks", *tasks, "--out", "out"), capsys)
    for task, count, of, first in (
        ("classes", 1, 10, "0.tar/s0000000: not a JPEG"),
        ("captioned", 1, 10, "0.tar/s0000000: not a JPEG"),
        ("sugarcrepe_swap_obj", 1, 1, "val2017/7.png: not a JPEG"),
        ("winogavil", 1, 2, "item 0, image 1: not a JPEG"),
    ):
        assert re.search(f" {task}: {count} of {of} images cannot be read\n  {first}", said), said
        assert not (tmp_path / f"out/{task}.json").exists()
    for task in ("good", "taught"):
        assert (tmp_path / f"out/{task}.json").exists()

    probe = ("--methods", "linear-probe", "--tasks", "wds:taught", "wds:good", "--out", "probes")
    said = refused(lambda: measure(finished_run, *probe), capsys)
    assert "taught: 1 of 10 images cannot be read" in said
    assert (tmp_path / "probes/good.linear-probe.json").exists()
    assert len(measure(finished_run, *probe, "--max-unreadable", "0.1").results) == 2
    result = json.loads((tmp_path / "probes/taught.linear-probe.json").read_text())
    assert result["unreadable"][0].startswith("training split, 0.tar/s0000000: not a JPEG")


def test_the_number_of_unreadable_images_stands_beside_scores(
    finished_run,
    tmp_path,
    monkeypatch,
    capsys,
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "index"))
    rows = [(f"{i:03}.png", f"shade {i}") for i in range(120)]
    for i, (name, _) in enumerate(rows[1:], 1):
        (tmp_path / name).write_bytes(png(i))
    (tmp_path / "pairs.csv").write_text("image,caption\n" + "".join(f"{a},{b}\n" for a, b in rows))
    arguments = ("--tasks", "retrieval:pairs.csv", "--out", "out")
    (result,) = measure(finished_run, *arguments).results
    assert (len(result.unreadable), result.examples) == (1, 120)
    said = capsys.readouterr().out
    assert re.search(r"retrieval, n = 120 +1 unreadable", said)
    assert "counted as black, because unreadable: pairs.csv/0: " in said
    write_report([tmp_path / "out"], tmp_path / "page.html")
    assert {
        row["unreadable"]
        for row in csv.DictReader((tmp_path / "page.csv").read_text().splitlines())
    } == {"1"}
    assert re.search(r"\| retrieval, zero-shot .* \| 1 \|\n", (tmp_path / "page.md").read_text())
    assert json.loads((tmp_path / "page.json").read_text())[0]["unreadable_images"] == 1
    page = (tmp_path / "page.html").read_text()
    assert "1 image unreadable</span>" in page  # below the score of the summary
    assert "120 examples,\n1 image unreadable." in page

    (tmp_path / rows[0][0]).write_bytes(png(0))
    capsys.readouterr()
    assert measure(finished_run, *arguments).results[0].unreadable == ()
    assert "measured before, kept" not in capsys.readouterr().out
    measure(finished_run, *arguments)
    assert "measured before, kept" in capsys.readouterr().out


def test_what_is_left_out_of_a_set_is_said_and_kept(finished_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("cat/a.png", "dog/b.png", "cat/._a.png", "__MACOSX/cat/._a.png"):
        (tmp_path / "pets" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pets" / name).write_bytes(png(len(name)))
    for arguments in (("--tasks", "folder:pets"), ("--images", "pets")):
        (result,) = measure(finished_run, *arguments, "--out", "out").results
        assert result.examples == 2
        assert result.details["left_out"] == {"leftovers_of_other_programs": 2}
        assert "left out of the set: 2 leftovers of other programs" in capsys.readouterr().out
    (tmp_path / "pets/cat/.ipynb_checkpoints").mkdir()
    (tmp_path / "pets/cat/c: d.png").write_bytes(b"no image")
    labels = ("--images", "pets/cat", "--labels", "cat, black", "dog", "--out", "out")
    said = refused(lambda: measure(finished_run, *labels), capsys)
    assert "1 of 2 images cannot be read" in said
    assert "left out: 1 leftovers of other programs" in said
    rows = list(csv.reader((tmp_path / "out/predictions.csv").read_text().splitlines()))
    assert rows[0] == ["image", "prediction", "cat, black", "dog"]
    assert [row[:2] for row in rows[2:]] == [["c: d.png", "unreadable"]]
    assert "lost their end" not in said
    labels = ("--images", "pets/dog", "--labels", "cat " * 40, "[dog]", "--out", "out")
    measure(finished_run, *labels)
    said = capsys.readouterr().out
    assert "1 prompts were too long for the model and lost their end: 'a photo of a cat" in said
    assert "[dog]" in said


def test_own_sets_and_the_rest_of_a_suite_run(finished_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_wds(tmp_path / "data/wds_stl10", labelled(8, 4), names=("cat", "dog", "owl", "eel"))
    write_wds(tmp_path / "data/wds_stl10", labelled(40, 4), names=("cat", "dog", "owl", "eel"),
              split="train")  # fmt: skip
    write_wds(tmp_path / "data/wds_mnist", labelled(8, 4), names=("one", "two"))
    arguments = (
        "--tasks", "mnist", "stl10", "imagenet", "--methods", "zero-shot", "linear-probe", "knn",
        "--dtype", "bfloat16", "--out", "results",
    )  # fmt: skip
    said = refused(lambda: measure(finished_run, *arguments), capsys)
    assert "mnist: label 2 of image 1 is out of range" in said
    assert "imagenet: left out: no folder data/wds_imagenet1k: " in said
    assert "hf download" in (tmp_path / "results/missing.txt").read_text()
    result = json.loads((tmp_path / "results/stl10.json").read_text())
    assert "8 images here, 8,000 where published" in result["notes"][0]
    assert 0 < result["cosine_distance_from_float32"]["max"] < 0.1
    probe = json.loads((tmp_path / "results/stl10.linear-probe.json").read_text())
    assert probe["train_examples"] == 40
    assert probe["scores"]["top1"]["chance"] == 0.25


def test_a_folder_of_ones_own_images(finished_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for shade in range(3):
            (tmp_path / f"photos/{name}/{shade}.png").write_bytes(png(shade))
    measure(finished_run, "--out", "results", "--images", "photos")
    result = json.loads((tmp_path / "results/images-photos.json").read_text())
    assert result["class_names"] == ["cat", "dog"]
    (tmp_path / "photos/cat/broken.jpg").write_bytes(b"no image")
    measure(
        finished_run, "--out", "results", "--images", "photos/cat", "--labels", "cat, dog",
        "--max-unreadable", "0.25",
    )  # fmt: skip
    rows = (tmp_path / "results/predictions.csv").read_text().splitlines()
    assert rows[0] == "image,prediction,cat,dog"
    assert rows[4].startswith("broken.jpg,unreadable,")
    assert "unreadable: broken.jpg: not a JPEG" in capsys.readouterr().out


def test_watching_measures_every_step_once_and_survives_deletions(finished_run):
    calls = []

    def measure(step):
        calls.append(step)
        if step == 4:  # as if the run had deleted it: not one of those that are there
            (finished_run / "checkpoints/4").rename(finished_run / "gone")
            raise FileNotFoundError("checkpoints/4")

    try:
        watch(str(finished_run), measure, lambda: calls.append("curves"), poll=0.01)
    finally:
        (finished_run / "gone").rename(finished_run / "checkpoints/4")
    assert calls == [4, 8, "curves"]


@pytest.mark.parametrize("then", ["is gone", "stays"])
def test_a_checkpoint_may_lose_files_before_it_is_gone(finished_run, tmp_path, monkeypatch, then):
    checkpoints = tmp_path / "run/checkpoints"
    shutil.copytree(finished_run, tmp_path / "run")

    def measure(step):
        if step == 4:
            raise FileNotFoundError("a file of step 4")

    def sleep(seconds):
        if then == "is gone":
            shutil.rmtree(checkpoints / "4")

    clock = types.SimpleNamespace(sleep=sleep)
    monkeypatch.setattr("flaxclip.checkpoint.watch.time", clock)
    refused = pytest.raises(FileNotFoundError, match="a file of step 4")
    with refused if then == "stays" else contextlib.nullcontext():
        watch(str(tmp_path / "run"), measure, lambda: None)


def test_watching_goes_on_with_other_tasks_where_one_fails(finished_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_wds(tmp_path / "bad", [{"png": b"no image", "cls": b"0"}, *labelled(4)])
    write_wds(tmp_path / "good", labelled(5))
    arguments = ("--watch", "--tasks", "wds:bad", "wds:good", "--out", "out", "--cache", "cache")
    with pytest.raises(InputError, match=r"tasks failed at steps 4, 8; .*\nbad: 1 of 5 images"):
        follow(tyro.cli(Command, args=[str(finished_run), *arguments]))
    assert sorted(path.parent.name for path in (tmp_path / "out").glob("*/good.json")) == ["4", "8"]
    assert not list((tmp_path / "out").glob("*/bad.json"))


def test_watching_draws_curves(watched, finished_run):
    page = (watched / "report.html").read_text()
    assert f'aria-label="Scores of {finished_run} against training step"' in page
    for step in (4, 8):
        assert f"{finished_run.name} step {step}" in page
    for scalar in ("loss", "logit scale", "learning rate", "pairs a second"):
        assert f'aria-label="{scalar} against training step"' in page
    # Self-contained: nothing is fetched.
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    rows = list(csv.DictReader((watched / "report.csv").read_text().splitlines()))
    assert {row["step"] for row in rows} == {"4", "8"}
    result = json.loads((watched / "8/scenes-unseen.json").read_text())
    (top1,) = (row for row in rows if row["step"] == "8" and row["score"] == "top1")
    assert float(top1["value"]) == result["scores"]["top1"]["value"]
    assert "| scenes-unseen, zero-shot | top1 |" in (watched / "report.md").read_text()
    exported = json.loads(
        (watched / f"report.clip_benchmark/scenes-unseen_{finished_run.parent.name}_"
         f"{finished_run.name}_step_8_flaxclip_en_zeroshot_classification.json").read_text()
    )  # fmt: skip
    assert exported["metrics"]["acc1"] == result["scores"]["top1"]["value"]
    (events,) = (watched / "tensorboard").glob("*.step-8")
    assert b"scenes-unseen/top1" in events.read_bytes()
    assert b"scenes-unseen/predictions" in events.read_bytes()


def test_a_page_of_a_run_without_results(finished_run, tmp_path):
    (tmp_path / "run").mkdir()
    text = (finished_run / "metrics.jsonl").read_text()
    diverged = json.dumps(json.loads(text.splitlines()[-1]) | {"step": 9, "loss": "nan"})
    (tmp_path / "run/metrics.jsonl").write_text(f'{text}{diverged}\n{{"step": 1')
    write_report([tmp_path], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert 'aria-label="loss against training step"' in page
    (tmp_path / "run/metrics.jsonl").write_text(f"loss 3\n{text}")
    with pytest.raises(InputError, match=r"metrics.jsonl, line 1 is damaged"):
        write_report([tmp_path], tmp_path / "page.html")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no results in"):
        write_report([tmp_path / "empty"], tmp_path / "page.html")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "no checkpoint at"),
        (("RUN", "--tasks", "scenes-unsen"), "unknown task 'scenes-unsen': perhaps scenes-unseen"),
        (("RUN", "--tasks", "imagenet"), "is not on this machine"),
        (("RUN/checkpoints/5",), "has no checkpoint of step 5"),
        (("RUN", "--out", "file/results"), "cannot write results"),
        (("RUN", "--out", "/proc/self/task"), "cannot write results into /proc/self/task"),
        (("RUN", "--images", "file"), "is no folder"),
        (("RUN", "--max-unreadable", "1.5"), "--max-unreadable is 1.5"),
        (("RUN", "--images", "empty", "--labels", "cat,cat"), "two classes are named 'cat'"),
        (("RUN", "--tasks", "wds:lacking"), "1.tar is missing: nshards.txt says 2"),
        (("RUN", "--tasks", "wds:other_words"), "label 2 of image 1 is out of range"),
    ],
)
def test_bad_input_is_a_message_and_exit_code_2(
    finished_run,
    tmp_path,
    monkeypatch,
    capsys,
    arguments,
    message,
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (write_wds(tmp_path / "lacking", labelled()) / "test/1.tar").unlink()
    write_wds(tmp_path / "other_words", labelled(), names=("cat", "dog"))
    arguments = [argument.replace("RUN", str(finished_run)) for argument in arguments]
    said = refused(lambda: run(tyro.cli(Command, args=arguments)), capsys)
    assert message in said
    assert "Traceback" not in said
    assert not list(tmp_path.rglob("*.json"))
