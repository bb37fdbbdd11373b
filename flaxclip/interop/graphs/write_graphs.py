"""Write both towers as ONNX or StableHLO, and compare what they compute with the model."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Float

from flaxclip.config_json import run_to_json
from flaxclip.errors import InputError
from flaxclip.interop.export import copy_tokenizer, new_folder
from flaxclip.interop.graphs.towers import Tower, towers
from flaxclip.models.spec import ModelSpec

GraphFormat = Literal["onnx", "stablehlo"]

_INPUTS = {"image": "pixels", "text": "tokens"}
_COMPARED = 8  # random inputs
_TOLERANCE = 1e-4
"""Largest difference of an entry of a unit embedding that float32 explains."""
_ONE_FILE = 2**30
"""Bytes of constants that a file of ONNX may hold: protobuf ends at 2 GiB."""


def write_graphs(
    spec: ModelSpec,
    variables: Mapping[str, Any],
    folder: Path,
    to: GraphFormat,
    int8_weights: bool = False,
    overwrite: bool = False,
) -> list[str]:
    """Write `image` and `text` with that suffix, `config.json` and a vocabulary into `folder`.

    Each takes a batch of any size. Pixels come in as uint8, resized and cropped by `preprocess` in
    config.json; their normalisation is in the graph.

    Args:
        spec: the model.
        variables: its parameters, which become constants of the graphs.
        folder: is written whole or not at all.
        to: onnx: for onnxruntime and others. stablehlo: `jax.export.deserialize` reads it, for CPU,
            GPU and TPU.
        int8_weights: whether ONNX has its large kernels in 8 bits, one scale a channel.
        overwrite: whether the folder may exist.

    Returns:
        A line for each tower: how far its embeddings are from the model's.

    Raises:
        InputError: a package is missing, an operation cannot be converted, or the graph does not
            compute what the model does.
    """
    packages = ("onnx", "onnxruntime") if to == "onnx" else ("flatbuffers",)
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError:
            raise InputError(
                f"--to {to} needs the package {package}\npip install 'flaxclip[{to}]'"
            ) from None
    if int8_weights and to != "onnx":
        raise InputError("weights of 8 bits are of ONNX alone\nleave out --int8-weights")
    if spec.preprocess.resize == "native":
        raise InputError(
            "the graph of an image tower takes squares, and this model takes images at their own "
            "aspect ratio\nexport it for transformers: --to huggingface"
        )
    lines = []
    with new_folder(folder, overwrite) as unfinished:
        for tower in towers(spec, variables):
            path = unfinished / f"{tower.name}.{to}"
            if to == "onnx":
                _write_onnx(tower, path, spec, variables, int8_weights)
            else:
                _write_stablehlo(tower, path)
            lines.append(_compare(tower, path, spec, to, int8_weights))
        fields = copy_tokenizer(spec, unfinished)._asdict()
        (unfinished / "config.json").write_text(run_to_json(fields))
    return lines


def _write_stablehlo(tower: Tower, path: Path) -> None:
    exported = export.export(jax.jit(tower.encode), platforms=("cpu", "cuda", "tpu"))
    path.write_bytes(exported(tower.input).serialize())


def _write_onnx(
    tower: Tower, path: Path, spec: ModelSpec, variables: Mapping[str, Any], int8_weights: bool
) -> None:
    import onnx

    from flaxclip.interop.graphs.jaxpr_to_onnx import Converter

    model = Converter(int8_weights).model(tower.encode, tower.input, _INPUTS[tower.name])
    params = variables["params"]
    facts: dict[str, Any] = {
        name: float(params[name]) for name in ("logit_scale", "logit_bias") if name in params
    }
    if tower.name == "image":
        facts |= {"image_size": spec.model.vision.image_size, "resize": spec.preprocess.resize,
                  "interpolation": spec.preprocess.interpolation}  # fmt: skip
    else:
        facts |= {"context_length": spec.model.text.context_length,
                  "tokenizer": spec.tokenizer.name}  # fmt: skip
    onnx.helper.set_model_props(model, {name: str(value) for name, value in facts.items()})
    constants = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    beside: dict[str, Any] = {}
    if constants > _ONE_FILE:
        beside = {"save_as_external_data": True, "location": f"{path.name}.data"}
    onnx.save_model(model, path, **beside)


def _compare(tower: Tower, path: Path, spec: ModelSpec, to: GraphFormat, int8_weights: bool) -> str:
    """How far the embeddings of random inputs are from the model's."""
    rng = np.random.default_rng(0)
    most = 256 if tower.name == "image" else spec.model.text.vocab_size
    inputs = rng.integers(0, most, (_COMPARED, *tower.input.shape[1:])).astype(tower.input.dtype)
    expected = np.asarray(jax.jit(tower.encode)(jnp.asarray(inputs)))
    found = _run(path, to, inputs)
    largest = float(np.abs(found - expected).max())
    cosine = float((found * expected).sum(axis=1).min())
    line = (
        f"{path.name}: embeddings of {_COMPARED} random inputs differ by {largest:.1e} at most, "
        f"cosine at least {cosine:.5f}"
    )
    if not largest < _TOLERANCE and not int8_weights:
        raise InputError(f"{line}\nthe graph does not compute what the model does: not written")
    return line


def _run(path: Path, to: GraphFormat, inputs: np.ndarray) -> Float[np.ndarray, "b d"]:
    if to == "stablehlo":
        loaded = export.deserialize(bytearray(path.read_bytes()))
        return np.asarray(loaded.call(jnp.asarray(inputs)))
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (embeddings,) = session.run(None, {session.get_inputs()[0].name: inputs})
    return embeddings
