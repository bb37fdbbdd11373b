"""A table of names, read in both directions: a peer's tensors <-> our variables."""

import itertools
import math
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax.traverse_util import flatten_dict, unflatten_dict

from flaxclip.errors import InputError
from flaxclip.interop.archives.stored_tensor import StoredTensor
from flaxclip.interop.relayout import empty_aligned, fill
from flaxclip.models.clip import CLIPConfig
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.vision_transformer import ViTConfig

Axes = Mapping[str, int | Sequence[str | int]]
"""Length of each axis, or the labels along it if it stands for several names."""

Tensors = Mapping[str, np.ndarray | StoredTensor]


# What bitsandbytes, GPTQ, AWQ and compressed-tensors put beside a weight that is an integer
# or a float of 8 bits, which is nothing without them.
_SCALES = re.compile(
    r"\.((weight|input|output)_(scale(_inv)?|zero_point)|scales?|zero_points?|SCB|absmax|quant_map|"
    r"quant_state\..*|qweight|qzeros|g_idx)$"
)


class Rule(NamedTuple):
    """Some of our variables and the tensors that they are built from."""

    ours: str
    """Path in our tree, `params` or `batch_stats` first."""
    theirs: str
    """Tensor name. In both, `{axis}` stands for many names, stacked along the axis so named."""
    axes: str
    """einops: axes of one of their tensors -> axes of one of our variables."""


class Binding(NamedTuple):
    """A rule for a model of known size."""

    rule: Rule
    axes: Axes

    def our_names(self) -> list[str]:
        """Paths of the variables that are stacked, first placeholder slowest."""
        return self._names(self.rule.ours)

    def their_names(self) -> list[str]:
        """The tensors that are stacked, first placeholder slowest."""
        return self._names(self.rule.theirs)

    def our_shape(self) -> tuple[int, ...]:
        return self._shape(self.rule.axes.split("->")[1])

    def their_shape(self) -> tuple[int, ...]:
        return self._shape(self.rule.axes.split("->")[0])

    def places(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """Room for our variables, stacked along the first axis, and in it that of each of their
        tensors: arrays with one axis for each name in the rule's axes, in their order.
        """
        theirs, ours = (re.findall(r"[a-z_]\w*", axes) for axes in self._patterns())
        room = empty_aligned((len(self.our_names()), *self.our_shape()))
        apart = room.reshape([self._size(axis) for axis in ours])
        apart = apart.transpose([ours.index(axis) for axis in theirs])
        labels = len(_placeholders(self.rule.theirs))
        return room, [apart[*index, ...] for index in np.ndindex(apart.shape[:labels])]

    def to_theirs(self, variables: list[np.ndarray]) -> np.ndarray:
        """Their tensors, stacked along the first axis, from our variables."""
        theirs, ours = self._patterns()
        return rearrange(variables, f"{ours} -> {theirs}", **self._used_sizes())

    def _names(self, template: str) -> list[str]:
        placeholders = _placeholders(template)
        labels: list[Any] = [self.axes[axis] for axis in placeholders]
        return [
            template.format(**dict(zip(placeholders, index, strict=True)))
            for index in itertools.product(*labels)
        ]

    def _patterns(self) -> tuple[str, str]:
        theirs, ours = self.rule.axes.split("->")
        return (
            f"({' '.join(_placeholders(self.rule.theirs))}) {theirs}",
            f"({' '.join(_placeholders(self.rule.ours))}) {ours}",
        )

    def _size(self, axis: str) -> int:
        if axis.isdecimal():
            return int(axis)
        size = self.axes[axis]
        return size if isinstance(size, int) else len(size)

    def _used_sizes(self) -> dict[str, int]:
        used = " ".join(self._patterns())
        return {axis: self._size(axis) for axis in set(re.findall(r"[a-z_]\w*", used))}

    def _shape(self, axes: str) -> tuple[int, ...]:
        groups = re.findall(r"\([^)]*\)|\w+", axes)
        return tuple(math.prod(self._size(axis) for axis in re.findall(r"\w+", g)) for g in groups)


def _placeholders(template: str) -> list[str]:
    return re.findall(r"{(\w+)}", template)


class NameTable:
    """Every variable of a model and every tensor that it is saved as by a peer."""

    def __init__(self, peer: str, bindings: Iterable[Binding], counters: str | None = None):
        """`peer` names whose tensors they are. `counters` matches names of theirs that hold counts
        which nothing reads: they are dropped, and not written.
        """
        self.peer = peer
        self.bindings = list(bindings)
        self._counters = counters

    def their_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of theirs."""
        return {name: b.their_shape() for b in self.bindings for name in b.their_names()}

    def check(self, tensors: Tensors) -> None:
        """Check that `tensors` are exactly those of this model; reads no numbers.

        Raises:
            InputError: a tensor is missing, unknown, of another shape than the model's, or does
                not hold floating-point numbers.
        """
        tensors = {
            name: tensor
            for name, tensor in tensors.items()
            if not (self._counters and re.search(self._counters, name) and _counts(name, tensor))
        }
        shapes = self.their_shapes()
        if scales := sorted(n for n in tensors.keys() - shapes.keys() if _SCALES.search(n)):
            raise InputError(
                f"tensor {scales[0]} belongs to quantised weights\n"
                "expected floating-point weights; quantised files cannot be read"
            )
        self._check_names("tensor", tensors, shapes)
        for name, shape in shapes.items():
            tensor = tensors[name]
            _check_shape("tensor", name, tensor.shape, shape)
            if not jnp.issubdtype(tensor.dtype, jnp.floating):
                raise InputError(
                    f"tensor {name} is of type {tensor.dtype}\n"
                    "expected floating-point weights; quantised files cannot be read"
                )

    def to_ours(self, tensors: Tensors) -> Iterator[tuple[str, np.ndarray]]:
        """Path and numbers of our variables, float32, one after the other; layers are stacked.

        Raises as `check` does, before the first is read; every tensor is read once.
        """
        self.check(tensors)
        return self._read(tensors)

    def _read(self, tensors: Tensors) -> Iterator[tuple[str, np.ndarray]]:
        def put(name: str, place: np.ndarray) -> None:
            fill(place, tensors[name])

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
            for binding in self.bindings:
                room, places = binding.places()
                deque(threads.map(put, binding.their_names(), places), maxlen=0)
                for number, name in enumerate(binding.our_names()):
                    yield name, room[number, ...]  # a scalar is an array, too

    def to_theirs(self, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The inverse of `to_ours`: their state dict, float32, from our nested variables.

        Raises:
            InputError: `variables` are not those of this model.
        """
        flat = flatten_dict(variables, sep="/")
        self._check_names(
            "parameter", flat, [name for b in self.bindings for name in b.our_names()]
        )
        tensors = {}
        for binding in self.bindings:
            arrays = [np.asarray(flat[name], np.float32) for name in binding.our_names()]
            for name, array in zip(binding.our_names(), arrays, strict=True):
                _check_shape("parameter", name, array.shape, binding.our_shape())
            stacked = binding.to_theirs(arrays)
            for name, tensor in zip(binding.their_names(), stacked, strict=True):
                tensors[name] = np.array(tensor, order="C")  # as writers of files need it
        return tensors

    def _check_names(self, what: str, found: Iterable[str], expected: Iterable[str]) -> None:
        found, expected = set(found), set(expected)
        missing, extra = sorted(expected - found), sorted(found - expected)
        if missing or extra:
            problems = [
                f"{len(names)} {what}{'s' if len(names) > 1 else ''} {problem}: "
                + ", ".join(names[:5] + ["..."] * (len(names) > 5))
                for problem, names in (("missing", missing), ("unknown", extra))
                if names
            ]
            raise InputError(
                "; ".join(problems)
                + f"\nexpected the {len(expected)} {what}s of {self.peer} of this architecture: "
                "check the number of layers, and that the file holds the whole model"
            )


def bind(rules: Iterable[Rule], axes: Axes) -> list[Binding]:
    """The rules for a tower whose axes have these lengths and labels."""
    return [Binding(rule, axes) for rule in rules]


def prefixed(rules: Iterable[Rule], ours: str, theirs: str) -> list[Rule]:
    """The rules for a part of a model under `ours` in our tree and `theirs` in their names."""
    return [Rule(ours + rule.ours, theirs + rule.theirs, rule.axes) for rule in rules]


def axes_of(shapes: Mapping[str, tuple[int, ...]], name: str, rank: int) -> tuple[int, ...]:
    """Lengths of the axes of a tensor, from which an architecture is derived.

    Raises:
        InputError: there is no such tensor, or it has another number of axes, or no numbers.
    """
    shape = shapes.get(name, ())
    if len(shape) != rank or 0 in shape:
        found = f"of shape {list(shape)}" if name in shapes else "missing"
        raise InputError(f"tensor {name} is {found}\nexpected {rank} axes, none of them empty")
    return shape


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The nested variables of paths such as `params/vision/ln_post/scale`."""
    return unflatten_dict(flat, sep="/")


def text_axes(config: CLIPConfig) -> Axes:
    """Lengths and labels of all axes that the text tower's tensors have."""
    text = config.text
    return _transformer_axes(text, config.embed_dim) | {
        "vocab": text.vocab_size,
        "position": text.position_count,
        "segment": text.traits.segments,
        "hidden": (text.width + config.embed_dim) // 2,
    }


def vision_axes(config: CLIPConfig) -> Axes:
    """Lengths and labels of all axes that a vision transformer's tensors have."""
    vision = config.vision
    assert isinstance(vision, ViTConfig), "ResNets have tables of their own"
    return _transformer_axes(vision, config.embed_dim) | {
        "rgb": 3,
        "p": vision.patch_size,
        "q": vision.patch_size,
        "position": vision.grid**2 + vision.class_tokens,
        "grid_y": vision.grid,
        "grid_x": vision.grid,
    }


def _transformer_axes(tower: ViTConfig | TextConfig, embed_dim: int) -> dict[str, Any]:
    return {
        "layer": range(tower.layers),
        "qkv": ("q", "k", "v"),
        "part": ("query", "key", "value"),
        "kv": ("key", "value"),
        "w": tower.width,
        "head": tower.heads,
        "k": tower.width // tower.heads,
        "mlp": tower.mlp_width,
        "embed": embed_dim,
    }


def _check_shape(what: str, name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise InputError(
            f"{what} {name} has shape {list(found)}\n"
            f"expected {list(expected)} by the model's configuration: is it that of these weights?"
        )


def _counts(name: str, tensor: np.ndarray | StoredTensor) -> bool:
    """True for a single count, and for counts 0, 1, 2, ...; raises InputError for others."""
    size = math.prod(tensor.shape)
    if tensor.shape == () or (
        size < 2**20 and np.array_equal(np.ravel(np.asarray(tensor)), np.arange(size))
    ):
        return True
    raise InputError(
        f"tensor {name} does not count 0, 1, 2, ...\npositions in another order are not supported"
    )
