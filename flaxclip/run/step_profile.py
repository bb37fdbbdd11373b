"""A trace of a few steps on host and devices, for XProf, TensorBoard, Perfetto.

Files are where TensorBoard's profile plugin looks for them:
    WORKDIR/tensorboard/plugins/profile/steps-A-B/hostN.xplane.pb
"""

import re
import shutil
import tempfile
from pathlib import Path

import jax
from etils import epath

from flaxclip.errors import InputError
from flaxclip.hosts.watchdog import Watchdog
from flaxclip.run.progress import ProgressReport
from flaxclip.train_state import TrainState

PROFILES = "tensorboard/plugins/profile"

_KINDS = ("xplane.pb", "trace.json.gz")  # for XProf; and for Perfetto, which opens it by itself


def parse_profile_steps(text: str | None, steps: int) -> range:
    """Parse `A:B`, the updates after step A up to step B, in a run of `steps`; None gives none.

    Raises:
        InputError: it is not of that form, has no steps in it, or ends beyond the run.
    """
    if text is None:
        return range(0)
    numbers = re.fullmatch(r"(\d+):(\d+)", text, re.ASCII)
    if numbers is None:
        raise InputError(
            f"profile_steps is {text!r}\n"
            "expected two steps, such as 10:13 for the three updates after step 10"
        )
    start, stop = map(int, numbers.groups())
    if start >= stop:
        raise InputError(
            f"profile_steps is {text}, in which there is no update\n"
            f"{start}:{start + 3} would be the three after step {start}"
        )
    if stop > steps:
        raise InputError(
            f"profile_steps is {text}, beyond the run's {steps} steps\n"
            "choose steps that the run has, or lengthen it"
        )
    return range(start, stop)


class StepProfile:
    """Context manager around the training loop; the loop reports each step that it has `reached`.

    Every host writes a file of its own. A failed write is reported, and never stops training. A run
    that stops or resumes within the steps profiles those that it runs.
    """

    def __init__(
        self,
        steps: range,
        start_step: int,
        workdir: epath.PathLike,
        progress: ProgressReport,
        watchdog: Watchdog,
    ):
        """`steps` are those to profile; the loop begins after `start_step`."""
        self._steps = steps
        self._workdir = epath.Path(workdir)
        self._progress = progress
        self._watchdog = watchdog
        self._began: int | None = None  # the step at which the trace under way began
        self._reached = start_step
        if steps and start_step >= steps.stop:
            progress.say(f"nothing is profiled: step {steps.stop} is done already")

    def __enter__(self) -> "StepProfile":
        return self

    def __exit__(self, *_: object) -> None:
        if self._began is not None:
            self._end()

    def reached(self, step: int, state: TrainState) -> None:
        """Begin or end the trace at this step, when `step` updates have been dispatched."""
        self._reached = step
        if self._began is None and step in self._steps:
            self._wait(state)
            # Not into the workdir: the profiler writes to disks alone, and under the machine's
            # name, which two hosts of a job that is tried out on one machine share.
            self._folder = tempfile.mkdtemp(prefix="flaxclip-profile-")
            jax.profiler.start_trace(self._folder)
            self._began = step
        elif self._began is not None and step >= self._steps.stop:
            self._wait(state)
            self._end()

    def _wait(self, state: TrainState) -> None:
        """Wait until all updates dispatched are done, so that a trace holds whole updates only."""
        self._watchdog.doing(f"waiting for the devices to finish step {self._reached}")
        jax.block_until_ready(state)

    def _end(self) -> None:
        self._watchdog.exempt("writing a profile")
        name = f"steps-{self._began}-{self._reached}"
        self._began = None
        folder = self._workdir / PROFILES / name
        try:
            jax.profiler.stop_trace()
            folder.mkdir(parents=True, exist_ok=True)
            for kind in _KINDS:
                for path in Path(self._folder).rglob(f"*.{kind}"):
                    target = folder / f"host{jax.process_index()}.{kind}"
                    epath.Path(path).copy(target, overwrite=True)
        except OSError as error:
            self._progress.warn(f"no profile in {folder}: {error.strerror or error}")
        else:
            self._progress.say(f"profile of {name}: {folder}")
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)
