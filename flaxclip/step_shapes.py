"""The shapes that the steps of a run have: one, or, at native aspect ratio, one for each length.

A program is compiled for a shape. Steps of all shapes have as many patches as `data.token_budget`
allows, so that those of short images have more pairs.
"""

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

from jax.sharding import Mesh

from flaxclip.data.sequence_lengths import LengthSchedule, schedule_lengths
from flaxclip.errors import InputError
from flaxclip.models.patches import beyond_learned
from flaxclip.models.vision_transformer import ViTConfig
from flaxclip.sharding import check_batch_divides, count_shards

if TYPE_CHECKING:
    from flaxclip.config import TrainConfig

_OF_LENGTHS = ("batch_divisor", "scale_loss_by_pairs")  # have no effect on squares


class StepShape(NamedTuple):
    """The shape of a step's batch."""

    pairs: int
    """Over all devices."""
    patches: int | None = None
    """Places for patches in each image. If None, images are squares of pixels."""

    def __str__(self) -> str:
        length = "" if self.patches is None else f"{self.patches:,} patches: "
        return f"{length}{self.pairs:,} pairs"


def length_schedule(config: "TrainConfig") -> LengthSchedule | None:
    """The length of each step of the run; None if its images are squares.

    Raises:
        InputError: the budget has no room for the longest images.
    """
    if config.preprocess.resize != "native":
        return None
    square = config.model.vision.grid**2
    by_batch = f"batch_size {config.batch_size:,}, with the {square:,} patches of a square each,"
    return schedule_lengths(
        config.data.sequence_lengths or (config.preprocess.max_patches or square,),
        token_budget(config),
        config.batch_divisor,
        config.seed,
        "data.token_budget" if config.data.token_budget else by_batch,
    )


def token_budget(config: "TrainConfig") -> int:
    """Patches of a step, over all devices, at native aspect ratio."""
    return config.data.token_budget or config.batch_size * config.model.vision.grid**2


def step_shapes(config: "TrainConfig") -> tuple[StepShape, ...]:
    """All shapes that steps of the run have, equally often."""
    schedule = length_schedule(config)
    if schedule is None:
        return (StepShape(config.batch_size),)
    return tuple(map(StepShape, schedule.pairs, schedule.lengths))


def mean_pairs(config: "TrainConfig") -> float:
    """Pairs of a step, on average over the shapes."""
    shapes = step_shapes(config)
    return sum(shape.pairs for shape in shapes) / len(shapes)


def usual_pairs(config: "TrainConfig") -> int:
    """Pairs of a step as the order of the data counts them: all, or about the mean."""
    schedule = length_schedule(config)
    return config.batch_size if schedule is None else schedule.usual_pairs


def pairs_until(config: "TrainConfig", step: int) -> int:
    """Pairs that the run has seen after its first `step` updates."""
    schedule = length_schedule(config)
    return step * config.batch_size if schedule is None else schedule.at(step).first


def loss_factor(config: "TrainConfig", pairs: int) -> float:
    """What the loss of a step of so many pairs is multiplied with: see `scale_loss_by_pairs`."""
    ratio = pairs / config.batch_size
    return {"none": 1.0, "sqrt": ratio**0.5, "linear": ratio}[config.scale_loss_by_pairs]


def check_native_aspect(config: "TrainConfig") -> None:
    """Raise `InputError` if something in `config` does not go with the aspect ratio of its images:
    with the native one, or with squares.
    """
    if config.batch_divisor < 1:
        raise InputError(f"batch_divisor is {config.batch_divisor}\nit must be at least 1")
    if config.preprocess.resize != "native":
        for name in ("sequence_lengths", "token_budget"):
            value = getattr(config.data, name)
            if value:
                shown = " ".join(map(str, value)) if isinstance(value, tuple) else f"{value:,}"
                raise InputError(
                    f"data.{name} is {shown}, and preprocess.resize {config.preprocess.resize}\n"
                    "only images at their own aspect ratio have several lengths: add "
                    "--preprocess.resize native, or leave it out"
                )
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            if field.name in _OF_LENGTHS and value != field.default:
                raise InputError(
                    f"{field.name} is {value}, and all steps have {config.batch_size} pairs\n"
                    "leave it out, or add --preprocess.resize native"
                )
        return
    vision = config.model.vision
    if not isinstance(vision, ViTConfig):
        raise InputError(
            f'preprocess.resize is native, and the image tower is of family "{vision.family}"\n'
            "only a vision transformer takes images at their own aspect ratio: choose one, or "
            "--preprocess.resize shortest or squash"
        )
    vision.check_patches()
    if config.patch_dropout:
        raise InputError(
            f"patch_dropout is {config.patch_dropout}, and preprocess.resize native\n"
            "shorter images do the same: leave it out, and give --data.sequence-lengths smaller "
            "ones"
        )
    if config.teacher or config.data.teacher_vectors:
        raise InputError(
            f"{'teacher' if config.teacher else 'data.teacher_vectors'} is set, and "
            "preprocess.resize native\nteachers see squares, of which a student at native aspect "
            "ratio sees no crop: choose --preprocess.resize shortest or squash, or no teachers"
        )
    length_schedule(config)  # raises where there is none


def check_steps_divide(config: "TrainConfig", mesh: Mesh) -> None:
    """Raise `InputError` unless every device gets equally many pairs, in every part of every step.

    `mesh` is the run's.
    """
    schedule = length_schedule(config)
    if schedule is None:
        check_batch_divides(config.batch_size, mesh, config.accumulate)
        return
    unit = count_shards("batch", mesh) * config.accumulate
    for shape in step_shapes(config):
        if shape.pairs % unit:
            raise InputError(
                f"steps of {shape}, which do not divide evenly among {unit // config.accumulate} "
                f"devices in {config.accumulate} parts (accumulate)\n"
                f"the pairs of a step are a multiple of batch_divisor, which is "
                f"{config.batch_divisor}: --batch-divisor {unit}, from the start of the run, "
                "makes them fit this mesh"
            )


def longer_than_learned(config: "TrainConfig") -> str | None:
    """What to warn of, if images have more patches than published models have been trained on."""
    schedule = length_schedule(config)
    if schedule is None:
        return None
    return beyond_learned(schedule.lengths[-1], config.model.vision.grid)
