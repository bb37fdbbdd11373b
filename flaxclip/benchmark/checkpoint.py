"""The checkpoint that is measured: found once, so that all that is said of it is of one step.

A run may save its next one at any moment: whoever looked for its latest twice could measure one
step and write another one's name beside the scores.
"""

import dataclasses
from pathlib import Path

from etils import epath

from flaxclip.benchmark.results import MeasuredCheckpoint
from flaxclip.benchmark.tasks import DataSource, Task, all_suites, find_tasks
from flaxclip.checkpoint.layout import load_config
from flaxclip.data.sources import scenes
from flaxclip.errors import InputError
from flaxclip.interop.archives.state_dicts import WhichWeights
from flaxclip.models.patches import beyond_learned
from flaxclip.weights import Weights, open_weights


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Weights, and what was asked for to find them."""

    asked: str
    which: WhichWeights | None
    weights: Weights
    max_patches: int | None = None

    def named(self) -> MeasuredCheckpoint:
        """What results say of it."""
        path = str(self.weights.workdir or self.asked)
        return MeasuredCheckpoint(
            path, self.weights.step, self.which, self.weights.kind, self.max_patches
        )

    def default_out(self) -> Path:
        """Beside what is measured; here, in a folder of its name, where that lies in a bucket.

        Weights that are asked for have a folder of their own, and so has a number of patches.
        """
        suffix = "" if self.which is None else f"-{self.which}"
        if self.max_patches is not None:
            suffix += f"-{self.max_patches}-patches"
        if self.weights.workdir is not None:
            folder = results_of_run(self.asked, self.weights.workdir)
            return folder / f"{self.weights.step}{suffix}"
        name = self.asked.rstrip("/").rpartition("/")[2]
        folder = Path() if "://" in self.asked else Path(self.asked).parent
        return folder / "benchmark" / f"{Path(name).stem}{suffix}"

    def default_tasks(self) -> list[Task]:
        """The tasks that go with the data that it was trained on.

        Raises:
            InputError: there are none.
        """
        from flaxclip.data.config import DataConfig  # slow to import, and needed for runs alone

        if self.weights.workdir is not None:
            data = load_config(self.weights.workdir).get("data", DataConfig)
            if data.path[0] in scenes.PATHS and not data.mixture:
                return find_tasks(["scenes" if data.path[0] == "scenes" else "scenes-wide"])
            if data.heldout:
                sources = (DataSource("pairs", "\n".join(data.heldout)),)
                metric = "text_to_image_recall@1"
                return [Task("retrieval", "held-out pairs", "retrieval", metric, sources)]
        raise InputError(
            "no task named, and the checkpoint's data has none of its own\n"
            f"name some with --tasks: {', '.join(all_suites())}, a task, "
            "or retrieval:SHARDS for image–caption pairs that were held out of training"
        )


def find_checkpoint(
    path: str, model: str | None, which: WhichWeights | None, max_patches: int | None = None
) -> Checkpoint:
    """What `path` holds; arguments are those of `open_weights`, and the most patches of an image.

    Raises:
        InputError: as `open_weights` raises it; or there are patches, and the model takes squares.
    """
    weights = open_weights(path, model, which)
    if max_patches is not None:
        try:
            spec = weights.spec.with_max_patches(max_patches)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        notices = weights.notice, beyond_learned(max_patches, spec.model.vision.grid)
        notice = "\n".join(filter(None, notices))
        weights = dataclasses.replace(weights, spec=spec, notice=notice)
    return Checkpoint(path, which, weights, max_patches)


def results_of_run(asked: str, workdir: epath.PathLike) -> Path:
    """The folder of all steps' results; here, where the run lies in a bucket."""
    if "://" in asked:
        return Path("benchmark") / str(workdir).rstrip("/").rpartition("/")[2]
    return Path(workdir) / "benchmark"
