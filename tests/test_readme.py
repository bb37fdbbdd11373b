"""What the README says can be typed, can be typed; the rest of it is checked where it can be."""

import configparser
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

import flaxclip.benchmark.command
import flaxclip.benchmark.compare.command
import flaxclip.benchmark.embed.command
import flaxclip.benchmark.embed.search
import flaxclip.benchmark.report.report
import flaxclip.benchmark.sets.listing
import flaxclip.interop.__main__
from flaxclip import plan
from flaxclip.data.index import __main__ as index
from flaxclip.data.inspect import __main__ as inspect
from flaxclip.data.prepare import __main__ as prepare
from flaxclip.run.command_line import TrainCommand, parse
from tests.helpers.readme import TEXT, blocks

ROOT = Path(__file__).parents[1]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
EXTRAS = set(SETUP["options.extras_require"])


def commands() -> list[str]:
    lines = "\n".join(blocks("bash") + blocks("sh")).replace("\\\n", " ").splitlines()
    return [command.strip() for line in lines if line for command in line.split(" && ")]


def test_every_block_is_of_a_kind_that_is_checked():
    found = re.findall(r"(?m)^```(\w*)$", TEXT)
    assert set(found[::2]) == {"bash", "sh", "python", "bibtex"}
    assert set(found[1::2]) == {""}


def check_train(words):
    parse(TrainCommand, words, "flaxclip.train", None)


def check_interop(words):
    kinds = flaxclip.interop.__main__
    kind = {"info": kinds.Info, "convert": kinds.Convert, "mix": kinds.Mix, "export": kinds.Export}
    tyro.cli(kind[words[0]], args=words[1:])


def check_benchmark(words):
    kinds = {
        "report": flaxclip.benchmark.report.report.Command,
        "compare": flaxclip.benchmark.compare.command.Command,
        "embed": flaxclip.benchmark.embed.command.Command,
        "search": flaxclip.benchmark.embed.search.Command,
        "list": flaxclip.benchmark.sets.listing.Command,
    }
    if words[0] in kinds:
        tyro.cli(kinds[words[0]], args=words[1:])
    else:
        tyro.cli(flaxclip.benchmark.command.Command, args=words)


MODULES = {
    "flaxclip.train": check_train,
    "flaxclip.plan": lambda words: parse(plan.Command, words, "flaxclip.plan", None),
    "flaxclip.interop": check_interop,
    "flaxclip.benchmark": check_benchmark,
    "flaxclip.data.index": lambda words: tyro.cli(index.Command, args=words),
    "flaxclip.data.prepare": lambda words: tyro.cli(prepare.Command, args=words),
    "flaxclip.data.inspect": lambda words: tyro.cli(inspect.Command, args=words),
    "pytest": lambda words: None,
}


@pytest.mark.parametrize("command", commands())
def test_a_command_has_flags_and_files_that_there_are(command):
    words = shlex.split(command, comments=True)
    if words[:2] == ["python", "-m"]:
        MODULES[words[2]](words[3:])
    elif words[0] == "pip":
        for extra in re.findall(r"\[(.*?)\]", command):
            assert set(extra.split(",")) <= EXTRAS
    elif words[0] == "launch/tpu_vm.sh":
        dry_run = [ROOT / words[0], words[1], "--dry-run", *words[2:]]
        subprocess.run(dry_run, check=True, capture_output=True)
        check_train(words[words.index("--") + 1 :])
    elif words[:2] == ["python", "launch/local_cluster.py"]:
        assert (ROOT / words[1]).exists()
        MODULES[words[words.index("-m") + 1]](words[words.index("-m") + 2 :])
    elif words[0] == "sbatch":
        place = words.index("launch/slurm.sbatch")
        assert (ROOT / words[place]).exists()
        check_train(words[place + 1 :])
    elif words[0] == "kubectl":
        assert (ROOT / words[words.index("-f") + 1]).exists()
    else:
        assert words[0] in ("ruff", "lint-imports", ".ci/run")


def test_the_python_runs(finished_run, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(finished_run)
    (code,) = blocks("python")
    code += "\nassert zimg.shape == (4, 16) and ztxt.shape == (1, 16)"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_the_table_of_extras_has_all_of_them():
    table = TEXT.split("| extra | brings |")[1].split("\n\n")[0]
    named = set()
    for row in table.splitlines()[2:]:
        named |= set(re.findall(r"`(\w+)`", row.split("|")[1]))
    assert named == EXTRAS


def test_files_that_are_linked_are_there():
    for path in re.findall(r"\]\((?!http)(.*?)\)", TEXT):
        assert (ROOT / path).exists(), path


NOTEBOOKS = sorted((ROOT / "experiments" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_outputs_and_installs_first(path):
    notebook = json.loads(path.read_text())
    title, install = notebook["cells"][:2]
    assert f"experiments/notebooks/{path.name})" in "".join(title["source"])  # Colab's badge
    assert "%pip install" in "".join(install["source"])
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
    assert f"`{path.stem}`" in TEXT


def messages() -> list[str]:
    table = TEXT.split("| message | cure |")[1].split("\n\n")[0]
    cells = [row.split("|")[1] for row in table.splitlines()[2:]]
    return [text for cell in cells for text in re.findall(r"`(.*?)`", cell)]


@pytest.mark.parametrize("message", messages())
def test_messages_of_the_table_are_those_of_the_code(message):
    code = "\n".join(path.read_text() for path in (ROOT / "flaxclip").rglob("*.py"))
    # A message is broken over several literals, and names what it is about.
    code = re.sub(r'"\s*\n\s*f?"', "", code)
    code = re.sub(r"\{[^{}]*\}", "…", code)
    for part in re.split(r"…|\bN\b|\d+", message):
        assert part.strip() in code, part
