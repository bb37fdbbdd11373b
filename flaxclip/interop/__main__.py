"""Convert other libraries' weights to flaxclip, and flaxclip's to theirs.

    python -m flaxclip.interop info ViT-B-32.pt
    python -m flaxclip.interop convert hf://google/siglip-base-patch16-224 runs/siglip --to flaxclip
    python -m flaxclip.interop convert runs/mine exported --to huggingface
    python -m flaxclip.interop mix runs/before runs/tuned --weight 0.5 --out runs/between
    python -m flaxclip.interop export runs/mine graphs --to onnx

With `--debug`, an error includes its traceback.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from flaxclip.api import CLIPModel, read_model
from flaxclip.checkpoint.layout import save_variables
from flaxclip.data.tokenizers.text_cleaning import cleaning_of
from flaxclip.errors import InputError, exit_on_input_error
from flaxclip.interop.archives.state_dicts import WhichWeights
from flaxclip.interop.export import copy_tokenizer, export, new_folder
from flaxclip.interop.graphs.write_graphs import GraphFormat, write_graphs
from flaxclip.interop.peft.write_adapter import write_adapter
from flaxclip.mixing import mix, shares_of
from flaxclip.models.clip import CLIPConfig, abstract_variables
from flaxclip.models.spec import ModelSpec
from flaxclip.models.trunks.fastvit import FastViTConfig
from flaxclip.models.trunks.fastvit_merging import merge_tower
from flaxclip.models.variants import VARIANTS
from flaxclip.weights import Weights, open_weights, read_pairs

Source = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]


@dataclasses.dataclass(frozen=True)
class Info:
    """Print the description of a model, without reading its numbers."""

    src: Source
    """Workdir, step, file of weights, directory of open_clip or transformers, or a URL."""
    model: str | None = None
    """Architecture, as for --model of training, if the file does not say."""
    weights: WhichWeights | None = None
    """The choice between weights and their average in a checkpoint. If None, the average."""


@dataclasses.dataclass(frozen=True)
class Mix:
    """Write the model between others: WiSE-FT of two, or a soup, the mean of several."""

    src: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """Two models or more, each as for `convert`, of one architecture, preprocessing and
    tokenizer."""
    out: Path
    """Folder to write: a workdir that flaxclip.load and the benchmark read."""
    weight: float | None = None
    """The second model's share of two; the first has the rest. If None, all have the same."""
    weights: WhichWeights | None = None
    """The choice between weights and their average in a checkpoint. If None, the average."""
    overwrite: bool = False
    """Replace OUT if it is a folder with a model."""


@dataclasses.dataclass(frozen=True)
class Export:
    """Write both towers as programs that take a batch of any size and need no Python."""

    src: Source
    """Workdir, step, file of weights, directory of open_clip or transformers, or a URL."""
    dst: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """Folder to write."""
    to: GraphFormat
    """onnx: image.onnx, text.onnx, compared with onnxruntime. stablehlo: for
    jax.export.deserialize, on CPU, GPU and TPU."""
    int8_weights: bool = False
    """ONNX with its large kernels in 8 bits: a quarter of the size; the loss is measured."""
    model: str | None = None
    """Architecture, as for --model of training, if the file does not say."""
    tokenizer: str | None = None
    """File of SigLIP's or LiT's vocabulary, if it is not beside the weights."""
    weights: WhichWeights | None = None
    """The choice between weights and their average in a checkpoint. If None, the average."""
    overwrite: bool = False
    """Replace DST if it is a folder with a model."""


@dataclasses.dataclass(frozen=True)
class Convert:
    """Write a model in another format."""

    src: Source
    """Workdir, step, file of weights, directory of open_clip or transformers, or a URL."""
    dst: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """Folder to write."""
    to: Literal["flaxclip", "open_clip", "huggingface", "peft"]
    """Format to write. flaxclip: a workdir that flaxclip.load and the benchmark read. peft: what a
    run with --lora has learned, beside the weights that it began with."""
    model: str | None = None
    """Architecture, as for --model of training, if the file does not say."""
    tokenizer: str | None = None
    """File of SigLIP's or LiT's vocabulary, if it is not beside the weights."""
    weights: WhichWeights | None = None
    """The choice between weights and their average in a checkpoint. If None, the average."""
    merge_branches: bool = False
    """Write one convolution for each sum of branches of a FastViT (MobileCLIP), which computes the
    same faster. Only to flaxclip."""
    overwrite: bool = False
    """Replace DST if it is a folder with a model."""


def main() -> None:
    """The command line."""
    with exit_on_input_error("flaxclip.interop"):
        command = tyro.extras.subcommand_cli_from_dict(
            {"info": Info, "convert": Convert, "mix": Mix, "export": Export},
            prog="python -m flaxclip.interop",
            description=__doc__,
        )
        match command:
            case Info():
                info(command)
            case Mix():
                mix_models(command)
            case Export():
                export_graphs(command)
            case _:
                convert(command)


def info(command: Info) -> None:
    """Print format, architecture, preprocessing and tokenizer of a model.

    Raises:
        InputError: it is none that we can read.
    """
    weights = _open(command)
    lines = {"format": f"{weights.kind}; {weights.stored}", **_describe(weights.spec)}
    if weights.file:
        lines["file"] = weights.file
    for name, text in lines.items():
        print(f"{name:13} {text}")


def _open(command: Info | Convert | Export) -> Weights:
    return _opened(command.src, command.model, command.weights)


def _opened(src: str, model: str | None, which: WhichWeights | None) -> Weights:
    weights = open_weights(src, model, which)
    if weights.notice:
        print(weights.notice)
    return weights


def _describe(spec: ModelSpec) -> dict[str, str]:
    config, preprocess, tokenizer = spec
    vision, text = config.vision, config.text
    parameters = jax.tree.leaves(abstract_variables(config)["params"])
    names = [name for name, known in VARIANTS.items() if _towers(known.model) == _towers(config)]
    cleaning = cleaning_of(tokenizer.name, tokenizer.cleaning)
    bias = "no" if config.init_logit_bias is None else "a"
    resize: str = preprocess.resize
    if resize == "native":
        resize += f" aspect ratio, at most {preprocess.max_patches or vision.grid**2} patches"
    return {
        "architecture": ", ".join(names) or "none that has a name here",
        "parameters": f"{sum(leaf.size for leaf in parameters):,}",
        "images": f"{vision.image_size} px in patches of {vision.patch_size}; {vision.describe()}",
        "texts": f"{text.context_length} tokens of {text.vocab_size:,}; {text.describe()}",
        "embedding": f"{config.embed_dim} dimensions, {bias} logit bias",
        "preprocessing": f"{resize}, {preprocess.interpolation}, "
        f"mean {preprocess.mean}, deviation {preprocess.std}, "
        f"transparency {preprocess.transparency}, crop rounded {preprocess.crop_rounding}",
        "tokenizer": tokenizer.name
        + (f", vocabulary in {tokenizer.file}" if tokenizer.file else "")
        + (f", texts cleaned by {cleaning}" if cleaning else ""),
    }


def _towers(config: CLIPConfig) -> tuple[object, ...]:
    return config.vision, config.text, config.embed_dim


def convert(command: Convert) -> None:
    """Write the model, whole or not at all.

    Raises:
        InputError: it cannot be read, the other format cannot hold it, or DST is not free.
    """
    _check_elsewhere(command.src, command.dst)
    weights = _open(command)
    if command.to == "peft":
        _convert_to_peft(command, weights)
        return
    model = read_model(weights, command.tokenizer)
    if command.merge_branches:
        model = _with_merged_branches(model, command.to)
    differences = []
    if command.to != "flaxclip":
        differences = export(
            model.spec, model.variables, command.dst, command.to, command.overwrite
        )
    else:
        _write_workdir(command.dst, command.overwrite, weights, model.spec, model.variables)
    print(f"{command.dst}: {command.to}, from {weights.kind}")
    if differences:
        print("its files cannot say how this model prepares", *differences, sep="\n  ")


def _with_merged_branches(model: CLIPModel, to: str) -> CLIPModel:
    vision = model.config.vision
    if not isinstance(vision, FastViTConfig):
        raise InputError(
            f"--merge-branches is for FastViTs, and the image tower is of {vision.describe()}\n"
            "leave it out"
        )
    if to != "flaxclip":
        raise InputError(
            f"--merge-branches is for --to flaxclip, and not {to}, which builds no such models\n"
            "leave it out; there, timm.utils.reparameterize_model merges branches"
        )
    params, statistics = model.variables["params"], model.variables["batch_stats"]
    vision, *merged = merge_tower(vision, params["vision"], statistics["vision"])
    spec = model.spec._replace(model=dataclasses.replace(model.config, vision=vision))
    variables = {
        "params": params | {"vision": merged[0]},
        "batch_stats": statistics | {"vision": merged[1]},
    }
    return CLIPModel(spec, variables, model.compute)


def _check_elsewhere(src: str, dst: Path) -> None:
    if "://" not in src:
        folder = Path(src).expanduser().resolve()
        if dst.resolve() in (folder, *folder.parents):
            raise InputError(f"{dst} holds the model itself\nname another folder")


def _write_workdir(
    dst: Path, overwrite: bool, weights: Weights, spec: ModelSpec, variables: dict[str, Any]
) -> None:
    with new_folder(dst, overwrite) as folder:
        config = copy_tokenizer(spec, folder)._asdict()
        save_variables(folder, config | {"compute": weights.compute}, variables)


def _convert_to_peft(command: Convert, weights: Weights) -> None:
    """Write what a run has learned beside the weights that it began with."""
    trained = read_pairs(weights)
    record = trained.initial_weights
    if changed := [*record["resampled"], *record["initialized_at_random"]]:
        raise InputError(
            f"the run in {command.src} has changed its weights before it began: {changed[0]}\n"
            "an adapter beside those weights would be another model: convert it to huggingface or "
            "open_clip, which merges what it has learned"
        )
    if ", not '" in record["format"]:
        raise InputError(
            f"the run in {command.src} began with {record['path']} ({record['format']})\n"
            "an adapter names that file, and not which of its weights it is for: convert the run "
            "to open_clip, which merges what it has learned"
        )
    base = record["path"]
    if "://" not in base:
        base = str(Path(base).expanduser().resolve())
    write_adapter(
        trained.pairs, trained.lora, weights.spec.model, base, record["format"], command.dst,
        command.overwrite,
    )  # fmt: skip
    print(f"{command.dst}: peft, LoRA of rank {trained.lora.rank} for {base}")


def mix_models(command: Mix) -> None:
    """Write the model between others.

    Raises:
        InputError: they are not of one kind, one cannot be read, or OUT is not free.
    """
    shares = shares_of(len(command.src), command.weight)
    for src in command.src:
        _check_elsewhere(src, command.out)
    models = [_opened(src, None, command.weights) for src in command.src]
    variables = mix(command.src, models, shares)
    _write_workdir(command.out, command.overwrite, models[0], models[0].spec, variables)
    parts = " + ".join(f"{share:g} x {src}" for share, src in zip(shares, command.src, strict=True))
    scale = np.exp(variables["params"]["logit_scale"])
    print(f"{command.out}: flaxclip, {parts}, in float32")
    print(f"the logit scale, mixed in its logarithm, is {scale:.4g}")
    if "batch_stats" in variables:
        print("the statistics of batch norms are mixed too, and no longer those of its activations")


def export_graphs(command: Export) -> None:
    """Write both towers as programs.

    Raises:
        InputError: the model cannot be read or converted, or DST is not free.
    """
    _check_elsewhere(command.src, command.dst)
    model = read_model(_open(command), command.tokenizer)
    lines = write_graphs(
        model.spec, model.variables, command.dst, command.to, command.int8_weights,
        command.overwrite,
    )  # fmt: skip
    print(f"{command.dst}: {command.to}", *lines, sep="\n  ")


if __name__ == "__main__":
    main()
