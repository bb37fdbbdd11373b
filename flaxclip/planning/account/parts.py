"""The part of a training step that an operation belongs to, by the name that JAX gave it.

A name is a path of Linen modules and JAX's transformations, such as

    jit(train_step)/transpose(jvp(CLIP))/CLIP.encode_image/vision/transformer/while/body/
        .../checkpoint/rematted_computation/blocks/attention/qkv/dot_general
"""

import dataclasses
import re
from typing import Literal

from flaxclip.teachers.lesson import SCOPE

Tower = Literal["image", "text"]
Phase = Literal["forward", "recomputed", "backward", "update"]
Part = Literal[
    "attention core", "projections", "MLP", "norms", "residual sums", "convolutions",
    "scan's stacks", "copies", "embeddings", "loss", "teachers", "accumulation", "optimizer",
    "collectives", "other",
]  # fmt: skip
"""Work of one kind.

- attention core: all between the projections to queries, keys and values, and that of its result.
- scan's stacks: what a loop over blocks keeps for the backward pass, written and read, the blocks'
  parameters cut out of their stack, and their gradients put together.
- copies: copies, changes of layout and conversions by themselves, wherever they are.
- embeddings: pixels, patches, tokens and positions on their way in; pooling, projection and
  normalisation on their way out.
- teachers: their forward passes, whatever the kind of work.
- accumulation: gradients of the parts of a batch, summed.
"""

_INPUTS: dict[str, Tower] = {"batch.images": "image", "batch.tokens": "text"}


@dataclasses.dataclass(frozen=True)
class Place:
    """A part of the step, in a tower and in a phase of the step."""

    part: Part
    phase: Phase
    tower: Tower | None = None
    """None for work that belongs to neither or both."""


def find_place(name: str) -> Place | None:
    """The place of an operation by its name, or that of a parameter such as
    `state.params['text']['projection']['kernel']`; None for a name that says nothing.

    An operation that stands for several, `a/b;c/d`, is where the first one is.
    """
    path = next((path.split("/") for path in name.split(";") if "/" in path), None)
    if path is not None:
        if SCOPE in path:
            return Place("teachers", "forward", _tower(path))
        return Place(_part(path), _phase(path), _tower(path))
    if name.startswith("state.params["):
        path = re.findall(r"\['(\w+)'\]", name.replace("\\", ""))
        # Parameters are converted, or moved to where they are multiplied.
        return Place(_part(path), "forward", _tower(path))
    if name.startswith(("teachers[", "batch.teacher_views[")):
        return Place("teachers", "forward")
    if name.startswith("state."):
        return Place("optimizer", "update")
    if name in _INPUTS:
        return Place("embeddings", "forward", _INPUTS[name])
    return None


def _tower(path: list[str]) -> Tower | None:
    if "CLIP.encode_image" in path or path[0] == "vision":
        return "image"
    if "CLIP.encode_text" in path or path[0] == "text":
        return "text"
    return None


def _phase(path: list[str]) -> Phase:
    if "rematted_computation" in path:
        return "recomputed"
    differentiated = [index for index, step in enumerate(path) if "jvp(" in step]
    if not differentiated:
        return "forward" if _tower(path) or "blocks" in path else "update"
    if path[differentiated[0]].startswith("transpose("):
        return "backward"
    # Within a loop over the parts of a batch: the towers' second pass over a part.
    return "recomputed" if "while" in path[: differentiated[0]] else "forward"


def _part(path: list[str]) -> Part:
    def within(*modules: str) -> bool:
        return any(module in path for module in modules)

    if _tower(path) is None and "blocks" not in path:
        if any("jvp()" in step for step in path):
            return "loss"
        return "accumulation" if "while" in path else "optimizer"
    if within("pool"):
        return "embeddings"
    # ln_1, ln_pre, ln within a block's parts, bn
    if any(re.fullmatch(r"ln(_\w+)?|bn", step) for step in path):
        return "norms"
    if within("blocks"):
        if within("attention"):
            return "projections" if within("qkv", "out") else "attention core"
        return "MLP" if within("mlp") else "residual sums"
    if within("transformer"):
        return "scan's stacks"
    if within("conv", "depthwise"):
        return "convolutions"
    if any(re.fullmatch(r"stage\d+", step) for step in path):
        if within("mlp"):
            return "MLP"
        return "residual sums" if within("downsample", "first", "rest") else "scan's stacks"
    return "embeddings"
