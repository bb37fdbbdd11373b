"""The same weights on the same data through CLIP_benchmark and through us: a table of both scores.

    python tests/parity/clip_benchmark_scores.py runs/clipart --data data \
        --classification wds_fashion_mnist wds_tuxpaint --retrieval wds_clipart_captions \
        --peer-python peers/bin/python

`--peer-python` is the interpreter of an environment of its own (`pip install clip-benchmark
open_clip_torch requests`). `experiments/corpora/make_benchmark_sets.py` makes the data. Float32 on
both sides. Ends with exit code 1 where a score differs in its fourth decimal.
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
                pair = theirs[their_name], ours[our_name]["value"]
                # Half a unit of the fourth decimal, and what a division of counts may add.
                differ |= abs(pair[0] - pair[1]) > 0.5e-4 + 1e-9
                table.add_row(name, our_name, *(f"{value:.4f}" for value in pair),
                              f"{pair[1] - pair[0]:+.1e}")  # fmt: skip
    Console().print(table)
    return int(differ)


def _theirs(
    command: Command, exported: Path, name: str, reader: str, out: Path
) -> dict[str, float]:
    task = "zeroshot_retrieval" if reader == "wds-retrieval" else "zeroshot_classification"
    _run(
        command.peer_python, "-m", "clip_benchmark.cli", "eval",
        "--model", f"local-dir:{exported}", "--pretrained", "", "--no_amp", "--task", task,
        "--dataset", f"wds/{name.removeprefix('wds_')}", "--dataset_root", command.data / name,
        "--batch_size", str(command.batch_size), "--num_workers", "1",
        "--recall_k", "1", "5", "10", "--output", out,
    )  # fmt: skip
    return json.loads(out.read_text())["metrics"]


def _ours(command: Command, name: str, reader: str, out: Path) -> dict[str, dict[str, float]]:
    _run(
        sys.executable, "-m", "flaxclip.benchmark", command.checkpoint,
        "--tasks", f"{reader}:{command.data / name}", "--dtype", "float32",
        "--batch-size", str(command.batch_size), "--out", out, "--cache", out / "cache",
    )  # fmt: skip
    return json.loads((out / f"{name.removeprefix('wds_')}.json").read_text())["scores"]


def _run(*words: str | Path) -> None:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}\n{done.stdout}\n{done.stderr}")


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Command, description=__doc__)))
