"""Scores and images of checkpoints where TensorBoard shows them as curves."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
from tensorboardX import SummaryWriter

from flaxclip.benchmark.results import Record


def write_events(folder: Path, step: int, records: Sequence[Record], results: Path) -> None:
    """Add scores, grids of predictions and similarity matrices of `step`; `results` holds those."""
    writer = SummaryWriter(str(folder), filename_suffix=f".step-{step}")
    for record in records:
        name = record.task
        if record.method != "zero-shot":
            name = f"{name}.{record.method}"
        for score, found in record.scores.items():
            writer.add_scalar(f"{name}/{score}", found.value, step)
        for image in ("predictions", "similarities"):
            path = results / f"{name}-{image}.png"
            if path.is_file():
                pixels = np.asarray(PIL.Image.open(path).convert("RGB"))
                writer.add_image(f"{name}/{image}", pixels, step, dataformats="HWC")
    writer.close()
