"""What a run reports of itself: metric files, throughput, model FLOPs utilisation."""

import importlib.util
import json
import math
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8
from tensorboardX import SummaryWriter

from flaxclip.chips import find_chip
from flaxclip.errors import InputError

METRICS_FILE = "metrics.jsonl"


class Throughput:
    """Rates between two reports of a training loop."""

    def __init__(self, step: int, batch_size: int, step_flops: int, devices: Sequence[jax.Device]):
        self._step = step
        self._batch_size = batch_size
        self._step_flops = step_flops
        chip = find_chip(devices[0].device_kind)
        self._peak = None if chip is None else chip.peak_flops * len(devices)
        self._start = time.perf_counter()
        self._waited = 0.0

    def waited_for_data(self, seconds: float) -> None:
        """The loop stood still that long because no batch was ready."""
        self._waited += seconds

    def lap(self, step: int) -> dict[str, float | None]:
        """Rates since the last lap, at the end of which `step` updates were done.

        `mfu` is model FLOPs utilisation (Chowdhery et al. 2022, appendix B): FLOPs of the
        mathematics, recomputation not counted, over the chips' peak; None where that is unknown.
        """
        now = time.perf_counter()
        seconds, steps = now - self._start, step - self._step
        flops_per_second = steps * self._step_flops / seconds
        rates = {
            "images_per_second": steps * self._batch_size / seconds,
            "step_seconds": seconds / steps,
            "tflops_per_second": flops_per_second / 1e12,
            "mfu": None if self._peak is None else flops_per_second / self._peak,
            "data_wait": self._waited / seconds,
        }
        self._start, self._step, self._waited = now, step, 0.0
        return rates


class MetricWriter:
    """Scalars into `metrics.jsonl`; they and pictures for TensorBoard, and for W&B on request.

    On process 0 alone; on the others it does nothing.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        start_step: int = 0,
        wandb_project: str | None = None,
        config: Mapping[str, Any] | None = None,
    ):
        """What a killed run has reported of steps after `start_step`, which come again, goes.

        W&B keeps the first report of a step. `config` is what it shows beside the run.
        """
        self._jsonl: TextIO | None = None
        self._wandb = None
        if jax.process_index() == 0:
            folder = epath.Path(workdir)
            _drop_lines_after(folder / METRICS_FILE, start_step)
            self._jsonl = (folder / METRICS_FILE).open("a")
            self._tensorboard = SummaryWriter(
                str(folder / "tensorboard"),
                purge_step=start_step + 1,
                # Its files are named by the second, and a start in the same one would overwrite.
                filename_suffix=f".{start_step}",
            )
            if wandb_project is not None:
                self._wandb = _open_wandb(folder, wandb_project, config)

    def write(self, step: int, scalars: Mapping[str, float | None]) -> None:
        """One line; a scalar that is None (not known) is null there and nowhere else."""
        if self._jsonl is None:
            return
        # JSON has no NaN: a diverged loss is written as its name, and stays readable by any tool.
        line = {name: _finite(value) for name, value in scalars.items()}
        self._jsonl.write(json.dumps({"step": step, "time": time.time(), **line}) + "\n")
        self._jsonl.flush()
        known = {name: value for name, value in scalars.items() if value is not None}
        for name, value in known.items():
            self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(known, step=step)

    def write_pictures(self, step: int, pictures: Mapping[str, UInt8[np.ndarray, "h w 3"]]) -> None:
        """Pictures of `step`, by name."""
        if self._jsonl is None:
            return
        for name, picture in pictures.items():
            self._tensorboard.add_image(name, picture, step, dataformats="HWC")
        if self._wandb is not None:
            import wandb

            shown = {name: wandb.Image(picture) for name, picture in pictures.items()}
            self._wandb.log(shown, step=step)

    def close(self) -> None:
        """Flush and close all of them."""
        if self._jsonl is not None:
            self._jsonl.close()
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def check_wandb(project: str | None) -> None:
    """Raise `InputError` where W&B is asked for and not installed."""
    if project is not None and importlib.util.find_spec("wandb") is None:
        raise InputError(
            f"--wandb {project}: Weights & Biases is not installed\n"
            "pip install 'flaxclip[wandb]', or leave it out: metrics.jsonl and tensorboard/ have "
            "the same scalars"
        )


def _open_wandb(folder: epath.Path, project: str, config: Mapping[str, Any] | None) -> Any:
    """The W&B run of the workdir: a resumed run goes on in the one that it began."""
    import wandb

    id_file = folder / "wandb_id"
    if not id_file.exists():
        id_file.write_text(uuid.uuid4().hex[:8])
    is_local = "://" not in str(folder)
    return wandb.init(
        project=project,
        name=folder.name,
        id=id_file.read_text(),
        resume="allow",
        dir=str(folder) if is_local else None,
        config=dict(config or {}),
    )


def _drop_lines_after(path: epath.Path, step: int) -> None:
    if not path.exists():
        return
    lines = path.read_text().splitlines(keepends=True)
    # The last line of a killed run may be cut off.
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    if len(kept) < len(lines):
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text("".join(kept))
        unfinished.replace(path)


def _finite(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else str(value)
