"""The notebooks, run from top to bottom on a CPU, each in an empty folder.

    pip install -e '.[test,notebooks]' && python -m pytest -o addopts=-ra tests/notebooks

Their figures are written to $NOTEBOOK_FIGURES, if that is set, to be looked at.
"""

import base64
import io
import os
import re
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import PIL.Image
import pytest

FOLDER = Path(__file__).parents[2] / "experiments" / "notebooks"


def run(name, folder):
    """The notebook with its outputs, on the devices that there are: not on tests' virtual ones."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=900, resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env={name: x for name, x in os.environ.items() if name != "XLA_FLAGS"})
    return notebook


def text_of(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "".join(output.get("text", "") for output in outputs if output.output_type == "stream")


def figures_of(notebook, name):
    figures = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if png := output.get("data", {}).get("image/png"):
                figures.append(PIL.Image.open(io.BytesIO(base64.b64decode(png))))
    if folder := os.environ.get("NOTEBOOK_FIGURES"):
        for number, figure in enumerate(figures):
            figure.save(Path(folder) / f"{name}-{number}.png")
    for figure in figures:
        assert np.asarray(figure.convert("L")).std() > 10  # something is drawn
    return figures


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart")
    return folder, run("quickstart", folder)


def test_quickstart_names_what_it_has_never_seen(quickstart):
    _, notebook = quickstart
    text = text_of(notebook)
    (named,) = re.findall(r"(\d+)% of 24 images are named right", text)
    assert int(named) >= 70  # chance is 4
    assert len(figures_of(notebook, "quickstart")) == 3


def test_zero_shot_with_the_model_of_the_quickstart(quickstart, tmp_path, monkeypatch):
    folder, _ = quickstart
    monkeypatch.setenv("CHECKPOINT", str(folder / "runs" / "notebook"))
    notebook = run("zero_shot", tmp_path)
    assert "48 images" in text_of(notebook)
    assert len(figures_of(notebook, "zero_shot")) == 4


def test_train_on_tpu_where_there_is_none(tmp_path):
    notebook = run("train_on_tpu", tmp_path)
    text = text_of(notebook)
    assert "2 x cpu" in text
    assert "ViT-B-16" in text
    assert "this run is finished" in text
    assert "scenes-unseen" in text
    assert "Traceback" not in text
    assert len(figures_of(notebook, "train_on_tpu")) == 1
