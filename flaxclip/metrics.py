"""Metrics of a run: metric files, throughput, model FLOPs utilisation."""

import contextlib
import importlib.util
import json
import math
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import image as image_summary

from flaxclip.chips import find_chip
from flaxclip.errors import InputError
from flaxclip.storage import METRICS_FILE, is_remote, replace_text

_COPY_SECONDS = 60.0


class Throughput:
    """Rates between two reports of a training loop."""

    def __init__(self, step: int, devices: Sequence[jax.Device]):
        self._step = step
        chip = find_chip(devices[0].device_kind)
        self._peak = None if chip is None else chip.peak_flops * len(devices)
        self._start = time.perf_counter()
        self._waited = 0.0

    def waited_for_data(self, seconds: float) -> None:
        """Count time in which the loop waited because no batch was ready."""
        self._waited += seconds

    def lap(self, step: int, pairs: int, flops: float) -> dict[str, float | None]:
        """Rates since the last lap; by now `step` updates are done, those since of so many `pairs`
        and model `flops`.

        `mfu` is model FLOPs utilisation (Chowdhery et al. 2022, appendix B): FLOPs of the
        mathematics, recomputation not counted, over the chips' peak; None where that is unknown.
        """
        now = time.perf_counter()
        seconds, steps = now - self._start, step - self._step
        flops_per_second = flops / seconds
        rates = {
            "images_per_second": pairs / seconds,
            "step_seconds": seconds / steps,
            "tflops_per_second": flops_per_second / 1e12,
            "mfu": None if self._peak is None else flops_per_second / self._peak,
            "data_wait": self._waited / seconds,
        }
        self._start, self._step, self._waited = now, step, 0.0
        return rates


class MetricWriter:
    """Scalars to `metrics.jsonl`; scalars and images to TensorBoard, and to W&B on request.

    Writes on process 0 alone. A failed write, e.g. on a full disk, is reported through `warn` once
    and never stops training: lines wait until there is room, TensorBoard's are lost. In object
    storage, where files cannot be appended to, both are copied from a local folder every minute.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        start_step: int = 0,
        wandb_project: str | None = None,
        config: Mapping[str, Any] | None = None,
        warn: Callable[[str], None] = print,
    ):
        """Open the metric files, and delete lines that a killed run wrote after `start_step`.

        Those steps are about to be reported again. W&B keeps the first report of a step, and shows
        `config` beside the run.
        """
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        self._warn, self._warned = warn, False
        self._workdir = self._folder = epath.Path(workdir)
        self._copied_at = time.monotonic()
        if is_remote(workdir):
            self._folder = epath.Path(tempfile.mkdtemp(prefix="flaxclip-metrics-"))
            if (self._workdir / METRICS_FILE).exists():
                (self._workdir / METRICS_FILE).copy(self._folder / METRICS_FILE)
        _drop_lines_after(self._folder / METRICS_FILE, start_step)
        # Unbuffered, so that it is known how much of a line there was room for.
        self._file = open(self._folder / METRICS_FILE, "ab", buffering=0)  # noqa: SIM115
        self._unwritten = b""
        self._events: RecordWriter | None = None
        self._purge_step = start_step + 1
        self._wandb = None
        if wandb_project is not None:
            self._wandb = _open_wandb(self._workdir, wandb_project, config)

    def write(self, step: int, scalars: Mapping[str, float | None]) -> None:
        """Write one line; a scalar that is None (unknown) is null in it, and omitted elsewhere."""
        if not self._writes:
            return
        # JSON has no NaN: a diverged loss is written as its name, and stays readable by any tool.
        line = {name: _finite(value) for name, value in scalars.items()}
        text = json.dumps({"step": step, "time": time.time(), **line}) + "\n"
        self._unwritten += text.encode()
        known = {name: value for name, value in scalars.items() if value is not None}
        values = [Summary.Value(tag=name, simple_value=value) for name, value in known.items()]
        self._write_files(step, [Summary(value=[value]) for value in values])
        if self._wandb is not None:
            self._wandb.log(known, step=step)

    def write_images(self, step: int, images: Mapping[str, UInt8[np.ndarray, "h w 3"]]) -> None:
        """Write the images of `step`, by name."""
        if not self._writes:
            return
        self._write_files(
            step,
            [image_summary(name, x, dataformats="HWC") for name, x in images.items()],
        )
        if self._wandb is not None:
            import wandb

            shown = {name: wandb.Image(image) for name, image in images.items()}
            self._wandb.log(shown, step=step)

    def close(self) -> None:
        """Flush and close the files."""
        if not self._writes:
            return
        try:
            self._write_lines()
            self._copy_to_remote()
        except OSError as error:
            self._warn(f"the last metrics cannot be written: {error.strerror or error}")
        self._file.close()
        self._close_events()
        if self._wandb is not None:
            self._wandb.finish()

    def _write_files(self, step: int, summaries: Sequence[Summary]) -> None:
        try:
            self._write_lines()
            self._write_events(step, summaries)
            if time.monotonic() - self._copied_at > _COPY_SECONDS:
                self._copy_to_remote()
        except OSError as error:
            # A file that ends within an event cannot be read on: begin another.
            self._close_events()
            if not self._warned:
                self._warn(f"metrics of step {step} cannot be written: {error.strerror or error}")
            self._warned = True
        else:
            self._warned = False

    def _write_lines(self) -> None:
        while self._unwritten:
            self._unwritten = self._unwritten[self._file.write(self._unwritten) :]

    def _write_events(self, step: int, summaries: Sequence[Summary]) -> None:
        """Write immediately: tensorboardX's own thread would end at the first error, unnoticed."""
        now = time.time()
        events = []
        if self._events is None:
            folder = self._folder / "tensorboard"
            folder.mkdir(exist_ok=True)
            # The last number, since another file of the same second would overwrite this one.
            name = f"events.out.tfevents.{int(now)}.{socket.gethostname()}"
            # Not tensorboardX's EventsWriter, which does not close a file that it cannot flush.
            self._events = RecordWriter(str(folder / f"{name}.{time.monotonic_ns():020}"))
            start = SessionLog(status=SessionLog.START)
            events = [
                Event(wall_time=now, file_version="brain.Event:2"),
                Event(step=self._purge_step, session_log=start),
            ]
        events += [Event(step=step, wall_time=now, summary=summary) for summary in summaries]
        for event in events:
            self._events.write(event.SerializeToString())
        self._events.flush()
        self._purge_step = step + 1

    def _close_events(self) -> None:
        if self._events is not None:
            # What is not flushed yet has been reported as lost.
            with contextlib.suppress(OSError):
                self._events.close()
            self._events = None

    def _copy_to_remote(self) -> None:
        self._copied_at = time.monotonic()
        if self._folder != self._workdir:
            for path in [self._folder / METRICS_FILE, *(self._folder / "tensorboard").glob("*")]:
                target = self._workdir / path.relative_to(self._folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.copy(target, overwrite=True)


def check_wandb(project: str | None) -> None:
    """Raise `InputError` if W&B is requested and not installed."""
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
    return wandb.init(
        project=project,
        name=folder.name,
        id=id_file.read_text(),
        resume="allow",
        dir=None if is_remote(folder) else str(folder),
        config=dict(config or {}),
    )


def _drop_lines_after(path: epath.Path, step: int) -> None:
    if not path.exists():
        return
    lines = path.read_text().splitlines(keepends=True)
    # The last line of a killed run may be cut off.
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    if len(kept) < len(lines):
        replace_text(path, "".join(kept))


def _finite(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else str(value)
