"""Every experiment, resolved: a changed hyper-parameter or default is a line in a diff.

python -m tests.test_experiments        writes tests/golden/experiments/ anew
"""

import ast
import shlex
from pathlib import Path

import pytest

from flaxclip.config_json import to_json
from flaxclip.run.command_line import TrainCommand, parse
from flaxclip.run.experiment import load_experiment

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden" / "experiments"
EXPERIMENTS = sorted(path.stem for path in (ROOT / "experiments").glob("[!_]*.py"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_is_what_was_recorded(name):
    recorded = (GOLDEN / f"{name}.json").read_text()
    assert to_json(load_experiment(name)) == recorded, "if meant: python -m tests.test_experiments"


def test_nothing_is_recorded_that_is_not_there():
    assert sorted(path.stem for path in GOLDEN.glob("*.json")) == EXPERIMENTS


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_command_in_the_docstring_runs_the_experiment(name):
    docstring = ast.get_docstring(ast.parse((ROOT / "experiments" / f"{name}.py").read_text()))
    commands = [
        line
        for line in docstring.replace("\\\n", " ").splitlines()
        if line.startswith("    python -m flaxclip.train")
    ]
    assert commands
    for command in commands:
        words = shlex.split(command)[3:]
        experiment = words[0] if words else "quickstart"
        assert Path(experiment).stem == name
        config = parse(TrainCommand, words, "flaxclip.train", None).config
        assert config.model == load_experiment(name).model or "--model" in command


@pytest.mark.parametrize("name", sorted(set(EXPERIMENTS) - {"quickstart", "clipart"}))
def test_a_recipe_says_what_it_costs_and_what_to_expect(name):
    docstring = ast.get_docstring(ast.parse((ROOT / "experiments" / f"{name}.py").read_text()))
    for words in ("Expect ", f"flaxclip.plan {name} --topology ", " GiB of ", "chip-hours"):
        assert words in docstring, words


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for path in GOLDEN.glob("*.json"):
        path.unlink()
    for name in EXPERIMENTS:
        (GOLDEN / f"{name}.json").write_text(to_json(load_experiment(name)))
