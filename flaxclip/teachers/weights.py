"""The teachers that run beside a student: their files, their numbers on the mesh, their hashes.

Their parameters are divided over the mesh like the student's, so a teacher that is larger than a
device is divided over fsdp. They are only read: no update changes them, and no checkpoint holds
them, but for a hash (`Teachers.record`).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from flaxclip.checkpoint.checksum import sha256_of_checksums, tree_checksums
from flaxclip.config import TrainConfig
from flaxclip.errors import InputError
from flaxclip.models.clip import (
    CLIPConfig,
    abstract_variables,
    check_tensor_divides,
    logical_axes,
)
from flaxclip.models.cost import model_cost
from flaxclip.models.spec import ModelSpec
from flaxclip.models.variants import VARIANTS
from flaxclip.sharding import mesh_shardings
from flaxclip.weights import Weights, open_weights

Variables = dict[str, Any]


def open_teachers(config: TrainConfig) -> tuple[Weights, ...]:
    """Open the teachers that `config` names; their numbers are read later.

    Raises:
        InputError: a teacher is not there, not whole, of no architecture that we have; or its
            embeddings cannot be regressed on, being of another width than the student's.
    """
    teachers = []
    for path, model in zip(config.teacher, _models(config), strict=True):
        try:
            weights = open_weights(path, model)
            check_tensor_divides(weights.spec.model, config.mesh.tensor)
        except InputError as error:
            raise InputError(f"teacher {path}: {error}") from None
        ours, theirs = config.model.embed_dim, weights.spec.model.embed_dim
        if config.teacher_regression and ours != theirs:
            raise InputError(
                f"teacher {path} embeds in {theirs} dimensions, and the student in {ours}\n"
                "the distance of --teacher-regression needs the same number: choose another "
                "--model.embed-dim, or leave it out"
            )
        teachers.append(weights)
    _KNOWN[config.teacher, config.teacher_model] = tuple(teacher.spec for teacher in teachers)
    return tuple(teachers)


# Of the teachers that this process has opened, or has been told the architecture of.
_KNOWN: dict[tuple[tuple[str, ...], tuple[str | None, ...]], tuple[ModelSpec, ...]] = {}


def teacher_specs(config: TrainConfig) -> tuple[ModelSpec, ...]:
    """The models of the teachers: of those last opened, or else by `teacher_model`, or else of
    their files, of which no more is read. So a run with named architectures is planned without
    them.

    Raises:
        InputError: as `open_teachers`, or no architecture has such a name.
    """
    key = config.teacher, config.teacher_model
    if key not in _KNOWN:
        if config.teacher and None not in _models(config):
            _KNOWN[key] = tuple(_named(model) for model in _models(config) if model is not None)
        else:
            _KNOWN[key] = tuple(teacher.spec for teacher in open_teachers(config))
    return _KNOWN[key]


def _models(config: TrainConfig) -> tuple[str | None, ...]:
    return config.teacher_model or (None,) * len(config.teacher)


def _named(model: str) -> ModelSpec:
    if (name := model.replace("/", "-")) not in VARIANTS:
        raise InputError(f"unknown model {model!r} in teacher_model\nknown: {', '.join(VARIANTS)}")
    return VARIANTS[name]


class Teachers(NamedTuple):
    """Teachers whose numbers are on the mesh."""

    variables: tuple[Variables, ...]
    """`CLIP.apply`'s, kernels in bfloat16, in which they are multiplied; all else in float32."""
    record: list[dict[str, Any]]
    """Name, format and hash of each, for the run record."""


def load_teachers(weights: Sequence[Weights], config: TrainConfig, mesh: Mesh) -> Teachers:
    """Read the teachers onto the mesh. Must be called on every host.

    The hash is that of the numbers in float32, whatever file they are in and however divided.

    Raises:
        InputError: a teacher is damaged.
    """
    variables, records = [], []
    for path, teacher in zip(config.teacher, weights, strict=True):
        model = teacher.spec.model
        shardings = flatten_dict(variable_shardings(model, mesh), sep="/")
        flat: dict[str, Array] = {}
        checksums: dict[str, int] = {}
        try:
            for name, value in teacher.read(unflatten_dict(shardings, sep="/")):
                array = _on_mesh(value, shardings[name])
                checksums |= tree_checksums({name: array})
                flat[name] = array.astype(_stored_type(name))
        except InputError as error:
            raise InputError(f"teacher {path}: {error}") from None
        check_finite(path, flat)
        variables.append(unflatten_dict(flat, sep="/"))
        records.append(
            {
                "path": path,
                "format": teacher.kind,
                "arrays": len(flat),
                "sha256_of_checksums": sha256_of_checksums(checksums),
            }
        )
    return Teachers(tuple(variables), records)


def check_finite(path: str, arrays: dict[str, Array]) -> None:
    """Raise `InputError` if there are numbers in a teacher's arrays from which nothing follows."""
    finite = jax.device_get(_are_finite(arrays))
    if broken := [name for name, is_finite in finite.items() if not is_finite]:
        raise InputError(
            f"teacher {path}: {len(broken)} of its {len(arrays)} arrays hold numbers that are "
            f"not finite, the first {min(broken)}\n"
            "nothing can be learned from it: name weights that are whole"
        )


@jax.jit
def _are_finite(arrays: dict[str, Array]) -> dict[str, Array]:
    return {name: jnp.isfinite(array).all() for name, array in arrays.items()}


def _stored_type(name: str) -> jnp.dtype:
    return jnp.dtype(jnp.bfloat16 if name.endswith("/kernel") else jnp.float32)


def variable_shardings(model: CLIPConfig, mesh: Mesh) -> Variables:
    """Shardings of a model's variables, as in training."""
    shapes = abstract_variables(model)
    replicated = NamedSharding(mesh, PartitionSpec())
    shardings = jax.tree.map(lambda _: replicated, shapes)
    return shardings | {"params": mesh_shardings(logical_axes(model), shapes["params"], mesh)}


def abstract_teacher(model: CLIPConfig, mesh: Mesh) -> Variables:
    """Shapes, types and shardings of a teacher's variables, without reading them."""
    shapes = flatten_dict(abstract_variables(model), sep="/")
    shardings = flatten_dict(variable_shardings(model, mesh), sep="/")
    abstract = {
        name: jax.ShapeDtypeStruct(leaf.shape, _stored_type(name), sharding=shardings[name])
        for name, leaf in shapes.items()
    }
    return unflatten_dict(abstract, sep="/")


def _on_mesh(value: Any, sharding: NamedSharding) -> Array:
    if isinstance(value, jax.Array) and value.sharding.device_set == sharding.device_set:
        return jax.device_put(value, sharding)
    numbers = jax.device_get(value)
    return jax.make_array_from_callback(numbers.shape, sharding, lambda index: numbers[index])


def teacher_flops(config: TrainConfig) -> int:
    """FLOPs of the teachers' forward passes in one update."""
    specs = teacher_specs(config)
    return config.batch_size * sum(model_cost(spec.model).forward_flops for spec in specs)


def describe_teachers(config: TrainConfig, all_flops: int) -> str | None:
    """A line on the teachers of a run whose updates take `all_flops`; None if it has none."""
    if not config.teacher:
        return None
    sizes = ", ".join(
        f"{path} ({model_cost(spec.model).parameters / 1e6:.1f} M parameters, "
        f"{spec.model.vision.image_size} px)"
        for path, spec in zip(config.teacher, teacher_specs(config), strict=True)
    )
    return f"{sizes}; {teacher_flops(config) / all_flops:.0%} of a step's FLOPs"


def check_same_teachers(
    ours: Sequence[dict[str, Any]],
    theirs: Sequence[dict[str, Any]] | None,
    step: int,
    may_change: Sequence[str] = (),
) -> None:
    """Raise `InputError` unless the teachers are those of the run up to `step`, bit for bit.

    `ours` and `theirs` are records (`Teachers.record`). The same weights may lie elsewhere; with
    "teacher" in `may_change` they may be others.
    """
    if "teacher" in may_change:
        return
    theirs = theirs or []
    differing = [
        f"teacher[{number}].{field}: {one.get(field)} -> {other.get(field)}"
        for number, (one, other) in enumerate(zip(theirs, ours, strict=False))
        for field in ("arrays", "sha256_of_checksums")
        if one.get(field) != other.get(field)
    ]
    if len(ours) != len(theirs):
        differing.insert(0, f"teachers: {len(theirs)} -> {len(ours)}")
    if differing:
        raise InputError(
            "\n".join(
                [
                    f"the teachers are not those that this run has learned from up to step {step}",
                    *differing,
                    "give back the weights as they were, or go on with --resume-with-changes "
                    "teacher",
                ]
            )
        )
