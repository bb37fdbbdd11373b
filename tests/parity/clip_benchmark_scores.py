"""The same weights on the same data through CLIP_benchmark and through us: a table of both scores.

    python tests/parity/clip_benchmark_scores.py runs/clipart --data data \
        --classification wds_fashion_mnist wds_tuxpaint --retrieval wds_clipart_captions \
        --languages crossmodal3600:de xtd10:jp imagenet:it babel-imagenet-prompts:sw \
        --peer-python peers/bin/python

`--peer-python` is the interpreter of an environment of its own (`pip install clip-benchmark
open_clip_torch requests "numpy<2.4"`; with 2.4 its accuracy of classification is a TypeError).
`experiments/corpora/make_benchmark_sets.py` makes the data. Float32 on both sides. Ends with exit
code 1 where a score differs in its fourth decimal.

`--languages` are tasks of ours, laid out as `flaxclip/benchmark/suites/README.md` says; ImageNet is
`wds_imagenet1k`. CLIP_benchmark would download the captions of all but Crossmodal-3600: it is given
a list of those that are here, in its own form. Its Babel-ImageNet is torchvision's ImageNet, which
is laid out here from `wds_imagenet1k`: there must be as many images of every class. The names and
prompts are those of its wheel: copy `babel_imagenet.json` and `nllb_dist13b_prompts.json` to
`babel-imagenet`.

Where two classes share a name, as 39 of ImageNet's do in Italian, they are as similar to an image:
CLIP_benchmark's top-1 takes what `torch.topk` puts first, its own recall per class what `argmax`
does, and ours the lower class. The two may then differ by such images.
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from flaxclip.benchmark.datasets import Labelled
from flaxclip.benchmark.readers import open_test
from flaxclip.benchmark.tasks import find_tasks

CLASSIFICATION = {"acc1": "top1", "acc5": "top5", "mean_per_class_recall": "mean_per_class"}
RETRIEVAL = {
    f"{theirs}_retrieval_recall@{k}": f"{ours}_recall@{k}"
    for theirs, ours in (("image", "text_to_image"), ("text", "image_to_text"))
    for k in (1, 5, 10)
}


@dataclasses.dataclass(frozen=True)
class Command:
    """Compare scores with CLIP_benchmark's."""

    checkpoint: Annotated[str, tyro.conf.Positional]
    data: Path
    classification: tuple[str, ...] = ()
    retrieval: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    peer_python: Path = Path(sys.executable)
    batch_size: int = 250


def main(command: Command) -> int:
    """The exit code."""
    table = Table("set", "score", "CLIP_benchmark", "flaxclip", "difference")
    differ = False
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "exported"
        _run(sys.executable, "-m", "flaxclip.interop", "convert", command.checkpoint, exported,
             "--to", "open_clip")  # fmt: skip
        sets = [(name, "wds", CLASSIFICATION) for name in command.classification]
        sets += [(name, "wds-retrieval", RETRIEVAL) for name in command.retrieval]
        for name, reader, scores in sets:
            theirs = _theirs(command, exported, name, reader, Path(folder) / f"{name}.json")
            ours = _ours(command, name, reader, Path(folder) / "ours")
            for their_name, our_name in scores.items():
                if our_name not in ours:
                    continue
                differ |= _add(table, name, our_name, theirs[their_name], ours[our_name]["value"])
        for asked in command.languages:
            task, language = asked.split(":")
            compare, scores = LANGUAGES.get(task, (_captions, RETRIEVAL))
            theirs, ours = compare(command, exported, task, language, Path(folder))
            for their_name, our_name in scores.items():
                differ |= _add(table, asked, our_name, theirs[their_name], ours[our_name])
    Console().print(table)
    return int(differ)


def _add(table: Table, name: str, score: str, theirs: float, ours: float) -> bool:
    """A row; whether the two differ."""
    table.add_row(name, score, f"{theirs:.4f}", f"{ours:.4f}", f"{ours - theirs:+.1e}")
    # Half a unit of the fourth decimal, and what a division of counts may add.
    return abs(theirs - ours) > 0.5e-4 + 1e-9


def _captions(
    command: Command, exported: Path, task: str, language: str, folder: Path
) -> tuple[dict[str, float], dict[str, float]]:
    root = folder / "root"
    root.mkdir(exist_ok=True)
    if task == "crossmodal3600":
        (root / "xm3600").unlink(missing_ok=True)
        (root / "xm3600").symlink_to((command.data / task).resolve())
    else:
        _list_captions(command.data / task, root, task, language)
    theirs = _evaluate(
        command, exported, folder / "theirs.json", "zeroshot_retrieval", task, root,
        "--language", language,
    )  # fmt: skip
    ours = _measure(command, f"{task}:{language}", folder / "ours")
    found = json.loads((ours / f"{task}-{language}.json").read_text())
    return theirs, found["languages"][language]


def _list_captions(data: Path, root: Path, task: str, language: str) -> None:
    """Images and captions of a set in the form of CLIP_benchmark's own lists."""
    name = f"test_1kcaptions_{language}.txt" if task == "xtd10" else f"{language}.txt"
    index = "filenames.txt" if task == "flickr30k-200" else "test_image_names.txt"
    captions, images = (
        next(data.rglob(file)).read_text(encoding="utf-8").splitlines() for file in (name, index)
    )
    content = {
        "image_paths": [str((data / "images" / image).resolve()) for image in images],
        "annotations": captions,
    }
    (root / f"{task.replace('k-', 'k_')}-{language}.json").write_text(json.dumps(content))


def _imagenet(
    command: Command, exported: Path, task: str, language: str, folder: Path
) -> tuple[dict[str, float], dict[str, float]]:
    # The words that lie beside the images go before those of a language, unless they are given.
    words = ("classnames", "zeroshot_classification_templates")
    names, templates = (f"{language}_{word}.json" for word in words)
    theirs = _evaluate(
        command, exported, folder / "theirs.json", "zeroshot_classification", "wds/imagenet1k",
        command.data / "wds_imagenet1k",
        "--custom_classname_file", names, "--custom_template_file", templates,
    )  # fmt: skip
    ours = _measure(command, f"{task}-{language}", folder / "ours")
    scores = json.loads((ours / f"{task}-{language}.json").read_text())["scores"]
    return theirs, {name: score["value"] for name, score in scores.items()}


def _babel_imagenet(
    command: Command, exported: Path, task: str, language: str, folder: Path
) -> tuple[dict[str, float], dict[str, float]]:
    root = folder / "imagenet"
    if not root.exists():
        _lay_out_imagenet(command.data / "wds_imagenet1k", root, command.peer_python)
    theirs = _evaluate(
        command, exported, folder / "theirs.json", "zeroshot_classification", "babel_imagenet",
        root, "--language", language,
    )  # fmt: skip
    ours = _measure(command, f"{task}:{language.upper()}", folder / "ours")
    found = json.loads((ours / f"{task}-{language.upper()}.json").read_text())
    return theirs, found["languages"][language.upper()]


def _lay_out_imagenet(data: Path, root: Path, peer_python: Path) -> None:
    """Images of a webdataset as torchvision's ImageNet has them: a folder a class, in order."""
    _, images = open_test(find_tasks([f"wds:{data}"])[0], data.parent, 0)
    assert isinstance(images, Labelled)
    names = [f"{label:04}" for label in range(1000)]
    for name in names:
        (root / "val" / name).mkdir(parents=True)
    for number, label in enumerate(images.labels):
        (root / "val" / names[label] / f"{number:06}.png").write_bytes(images.images[number])
    meta = f"({{name: (name,) for name in {names}}}, [])"
    _run(peer_python, "-c", f"import torch; torch.save({meta}, {str(root / 'meta.bin')!r})")


def _theirs(
    command: Command, exported: Path, name: str, reader: str, out: Path
) -> dict[str, float]:
    task = "zeroshot_retrieval" if reader == "wds-retrieval" else "zeroshot_classification"
    dataset = f"wds/{name.removeprefix('wds_')}"
    return _evaluate(command, exported, out, task, dataset, command.data / name)


def _evaluate(
    command: Command, exported: Path, out: Path, task: str, dataset: str, root: Path, *more: str
) -> dict[str, float]:
    _run(
        command.peer_python, "-m", "clip_benchmark.cli", "eval",
        "--model", f"local-dir:{exported}", "--pretrained", "", "--no_amp", "--task", task,
        "--dataset", dataset, "--dataset_root", root,
        "--batch_size", str(command.batch_size), "--num_workers", "1",
        "--recall_k", "1", "5", "10", "--output", out, *more,
    )  # fmt: skip
    return json.loads(out.read_text())["metrics"]


def _ours(command: Command, name: str, reader: str, out: Path) -> dict[str, dict[str, float]]:
    _measure(command, f"{reader}:{command.data / name}", out)
    return json.loads((out / f"{name.removeprefix('wds_')}.json").read_text())["scores"]


def _measure(command: Command, task: str, out: Path) -> Path:
    _run(
        sys.executable, "-m", "flaxclip.benchmark", command.checkpoint, "--tasks", task,
        "--data", command.data, "--dtype", "float32",
        "--batch-size", str(command.batch_size), "--out", out, "--cache", out / "cache",
    )  # fmt: skip
    return out


def _run(*words: str | Path) -> None:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}\n{done.stdout}\n{done.stderr}")


LANGUAGES = {
    "imagenet": (_imagenet, CLASSIFICATION),
    "babel-imagenet-prompts": (_babel_imagenet, {"acc1": "top1"}),
}
"""Multilingual tasks that are not retrieval: how both are run, and their scores."""


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Command, description=__doc__)))
