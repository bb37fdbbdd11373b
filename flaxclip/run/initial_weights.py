"""Start a run from existing weights instead of random ones.

The models of the run and of the weights may differ in resolution and context length, for which
position embeddings are resampled, and in settings that change no number, such as the type of
activations.
"""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from flaxclip.checkpoint.checksum import sha256_of_checksums, tree_checksums
from flaxclip.config import TrainConfig
from flaxclip.data.tokenizers.text_cleaning import cleaning_of
from flaxclip.errors import InputError
from flaxclip.fine_tuning.lora import PAIR
from flaxclip.models.clip import CLIPConfig, abstract_variables, logical_axes
from flaxclip.models.spec import ModelSpec
from flaxclip.sharding import mesh_shardings
from flaxclip.train_state import TrainState
from flaxclip.weights import Weights, open_weights

# May differ in the run: position embeddings are resampled.
_RESAMPLED = {"vision.image_size": "vision", "text.context_length": "text"}
_FREE = ("vision.frozen_statistics",)
# May differ, and are reported: what the weights have learned also holds for images and texts that
# were prepared slightly differently.
_SAID = (
    "preprocess.resize", "preprocess.interpolation", "preprocess.transparency",
    "preprocess.crop_rounding", "preprocess.max_patches", "tokenizer.cleaning",
)  # fmt: skip


class InitialWeights(NamedTuple):
    """Weights that fit the run."""

    weights: Weights
    names: frozenset[str]
    """Names of the variables that are taken, `params/...` or `batch_stats/...`."""
    changes: dict[str, str]
    """Differences such as `vision.image_size`, `text.context_length`, `tokenizer.cleaning` ->
    `theirs -> ours`."""


def open_initial_weights(config: TrainConfig) -> InitialWeights:
    """Open the weights that `config.init_from` names; their numbers are read later.

    Raises:
        InputError: there is no such model, it is not whole, or not that of the run.
    """
    assert config.init_from is not None, "asked for only where it is"
    weights = open_weights(config.init_from, config.init_model, config.init_weights)
    shapes = _shapes(weights.spec.model)
    for pattern in config.init_only:
        _check_pattern(pattern, shapes, config.init_from)
    names = [name for name in shapes if _is_taken(name, config.init_only)]
    changes = _check_fields(config, weights.spec, {_short(n).partition("/")[0] for n in names})
    resampled = {
        f"params/{_RESAMPLED[field]}/position_embedding" for field in changes if field in _RESAMPLED
    }
    expected = _shapes(config.model)
    for name in names:
        found, wanted = shapes[name], expected.get(name)
        if wanted is None or (found != wanted and name not in resampled):
            raise InputError(
                f"{_short(name)} in {config.init_from} has shape {list(found)}\n"
                + ("the run's model has no such parameter" if wanted is None else
                   f"expected {list(wanted)} by the run's model")
                + "\nchoose with --init-only which parameters to take, or another --model"
            )  # fmt: skip
    if config.adapters is not None:
        _check_base_of_pairs(expected.keys() - names)
    return InitialWeights(weights, frozenset(names), changes)


def _check_pattern(pattern: str, names: Iterable[str], path: str) -> None:
    """Raise InputError if a pattern takes nothing: what it is for would stay random."""
    try:
        found = any(_is_taken(name, [pattern]) for name in names)
    except re.error as error:
        raise InputError(
            f"init_only has the pattern {pattern!r}, which is no regular expression: {error}"
        ) from None
    if not found:
        raise InputError(
            f"init_only {pattern} is in no name in {path}\n"
            f"names are such as {', '.join(_short(name) for name in sorted(names)[:3])}"
        )


def _check_base_of_pairs(random: Iterable[str]) -> None:
    """Raise InputError if pairs would train beside random parameters of a tower, which stay so."""
    left = sorted(_short(n) for n in random if _short(n).startswith(("vision/", "text/")))
    if left:
        raise InputError(
            f"init_only leaves {len(left)} parameters at random, such as {left[0]}, and lora "
            "trains nothing but its pairs\n"
            "leave init_only out, or train these parameters without --lora"
        )


def _shapes(config: CLIPConfig) -> dict[str, tuple[int, ...]]:
    flat = flatten_dict(abstract_variables(config), sep="/")
    return {name: leaf.shape for name, leaf in flat.items()}


def _short(name: str) -> str:
    return name.partition("/")[2]


def _is_taken(name: str, patterns: Iterable[str]) -> bool:
    return not patterns or any(re.search(pattern, _short(name)) for pattern in patterns)


def _check_fields(config: TrainConfig, theirs: ModelSpec, towers: set[str]) -> dict[str, str]:
    """Fields that are resampled, or only reported; raises InputError if others differ."""
    old, new = _fields(theirs, towers), _fields(config.spec, towers)
    differing = {
        name: f"{old.get(name)!r} -> {new.get(name)!r}"
        for name in old | new
        if old.get(name) != new.get(name) and name not in _FREE
    }
    if refused := [
        f"{n}: {change}" for n, change in differing.items() if n not in (*_RESAMPLED, *_SAID)
    ]:
        raise InputError(
            "\n".join(
                [
                    f"the weights in {config.init_from} are of another model than the run's",
                    *refused,
                    "the resolution and the context length of given weights can be changed, and "
                    "nothing else: leave out --model, and --init-from brings its own",
                ]
            )
        )
    return differing


def _fields(spec: ModelSpec, towers: set[str]) -> dict[str, Any]:
    """Fields that the towers were trained with.

    With another activation or mean the weights would load without an error, and give poor results.
    """
    parts: dict[str, Any] = {}
    if "text" in towers:
        tokenizer = spec.tokenizer
        cleaning = tokenizer.cleaning or cleaning_of(tokenizer.name, None)
        # The same vocabulary may lie in another file.
        tokenizer = dataclasses.replace(tokenizer, cleaning=cleaning, file=None)
        parts |= {"text": spec.model.text, "tokenizer": tokenizer}
    if "vision" in towers:
        parts |= {"vision": spec.model.vision, "preprocess": spec.preprocess}
    flat = {}
    for name, part in parts.items():
        flat[name] = type(part).__name__
        for field in dataclasses.fields(part):
            flat[f"{name}.{field.name}"] = getattr(part, field.name)
    return flat


def start_from(
    initial: InitialWeights, config: TrainConfig, mesh: Mesh, state: TrainState
) -> tuple[TrainState, dict[str, Any]]:
    """Take the weights into a random `state`; returns the new state, and a record of them.

    Other parameters keep their random initialization; so does the optimizer, and an average starts
    from the weights. Must be called on every host.

    Raises:
        InputError: the weights are damaged.
    """
    weights, model = initial.weights, config.model
    flat = flatten_dict({"params": state.params, "batch_stats": state.batch_stats}, sep="/")
    for name, value in weights.read(_shardings(weights.spec.model, mesh)):
        if name in initial.names:
            value = resample_position_embedding(_short(name), value, weights.spec.model, model)
            flat[name] = _laid_out_like(flat[name], value)
    initialized = sorted(
        _short(name) for name in flat.keys() - initial.names if not name.endswith(PAIR)
    )
    checksums = tree_checksums({name: flat[name] for name in sorted(initial.names)})
    variables = unflatten_dict(flat, sep="/")
    params = variables["params"]
    state = state._replace(
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        ema=jax.tree.map(jnp.copy, params) if state.ema else {},
    )
    return state, {
        "path": config.init_from,
        "format": weights.kind,
        "arrays": len(initial.names),
        "sha256_of_checksums": sha256_of_checksums(checksums),
        "initialized_at_random": initialized,
        "resampled": {f: c for f, c in initial.changes.items() if f in _RESAMPLED},
        "changed": {f: c for f, c in initial.changes.items() if f in _SAID},
    }


def describe(record: dict[str, Any], notice: str = "") -> str:
    """A line on what `start_from` did, and another one with `notice`, if any."""
    parts = [f"started from {record['path']} ({record['format']}): {record['arrays']} arrays"]
    changes = record["resampled"] | record["changed"]
    parts += [f"{field} {change}" for field, change in changes.items()]
    if initialized := record["initialized_at_random"]:
        names = ", ".join(initialized[:4]) + (", ..." if len(initialized) > 4 else "")
        parts.append(f"{len(initialized)} initialized at random: {names}")
    return "\n".join(filter(None, ["; ".join(parts), notice]))


def _shardings(config: CLIPConfig, mesh: Mesh) -> dict[str, Any]:
    """Shardings of the variables of a model like `config`, as in training."""
    shapes = abstract_variables(config)
    replicated = NamedSharding(mesh, PartitionSpec())
    shardings = jax.tree.map(lambda _: replicated, shapes)
    return shardings | {"params": mesh_shardings(logical_axes(config), shapes["params"], mesh)}


def _laid_out_like(
    target: Float[Array, "..."], value: Float[Array | np.ndarray, "..."]
) -> Float[Array, "..."]:
    sharding = target.sharding
    if isinstance(value, jax.Array) and value.sharding.device_set == sharding.device_set:
        return jax.device_put(value, sharding)
    numbers = np.asarray(value)
    return jax.make_array_from_callback(numbers.shape, sharding, lambda index: numbers[index])


def resample_position_embedding(
    name: str, value: Float[Array | np.ndarray, "..."], old: CLIPConfig, new: CLIPConfig
) -> Float[Array | np.ndarray, "..."]:
    """The parameter `name` of a model like `old`, converted for one like `new`.

    Position embeddings are resized to the resolution and the context length of `new`; all others
    are unchanged.
    """
    if name == "vision/position_embedding" and new.vision.grid != old.vision.grid:
        return resize_grid(value, old.vision.grid, new.vision.grid)
    length = new.text.position_count
    if name == "text/position_embedding" and length != old.text.position_count:
        return resize_context(value, length)
    return value


def resize_grid(
    embedding: Float[Array | np.ndarray, "positions w"], old_grid: int, new_grid: int
) -> Float[Array, "new_positions w"]:
    """Embeddings of `new_grid`² patches from those of `old_grid`²; earlier positions are kept.

    Bicubic with antialiasing: open_clip's `resize_pos_embed`.
    """
    others = embedding.shape[0] - old_grid**2
    grid = rearrange(embedding[others:], "(h w) c -> h w c", h=old_grid)
    resized = jax.image.resize(grid, (new_grid, new_grid, grid.shape[-1]), "cubic")
    resized = rearrange(resized, "h w c -> (h w) c")
    return jnp.concatenate([embedding[:others], resized.astype(embedding.dtype)])


def resize_context(
    embedding: Float[Array | np.ndarray, "positions w"], length: int
) -> Float[Array, "length w"]:
    """Embeddings of `length` tokens, by linear interpolation: open_clip's `resize_text_pos_embed`.

    All positions move, so a causal tower should be trained further after this.
    """
    shape = (length, embedding.shape[-1])
    resized = jax.image.resize(embedding, shape, "linear", antialias=False)
    return resized.astype(embedding.dtype)
