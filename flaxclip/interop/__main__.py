"""Convert other libraries' weights to flaxclip, and flaxclip's to theirs.

    python -m flaxclip.interop info ViT-B-32.pt
    python -m flaxclip.interop convert hf://google/siglip-base-patch16-224 runs/siglip --to flaxclip
    python -m flaxclip.interop convert runs/mine exported --to huggingface

With `--debug`, an error includes its traceback.
"""

import dataclasses
import shutil
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro

from flaxclip.api import read_model
from flaxclip.checkpoint.layout import save_variables
from flaxclip.data.tokenizers.text_cleaning import cleaning_of
from flaxclip.errors import InputError, exit_on_input_error
from flaxclip.interop.archives.state_dicts import WhichWeights
from flaxclip.interop.export import export, new_folder
from flaxclip.models.clip import CLIPConfig, abstract_variables
from flaxclip.models.modified_resnet import ResNetConfig
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.variants import VARIANTS, ModelSpec
from flaxclip.models.vision_transformer import ViTConfig
from flaxclip.weights import Weights, open_weights

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
class Convert:
    """Write a model in another format."""

    src: Source
    """Workdir, step, file of weights, directory of open_clip or transformers, or a URL."""
    dst: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """Folder to write."""
    to: Literal["flaxclip", "open_clip", "huggingface"]
    """Format to write. flaxclip: a workdir that flaxclip.load and the benchmark read."""
    model: str | None = None
    """Architecture, as for --model of training, if the file does not say."""
    tokenizer: str | None = None
    """File of SigLIP's or LiT's vocabulary, if it is not beside the weights."""
    weights: WhichWeights | None = None
    """The choice between weights and their average in a checkpoint. If None, the average."""
    overwrite: bool = False
    """Replace DST if it is a folder with a model."""


def main() -> None:
    """The command line."""
    with exit_on_input_error("flaxclip.interop"):
        command = tyro.extras.subcommand_cli_from_dict(
            {"info": Info, "convert": Convert},
            prog="python -m flaxclip.interop",
            description=__doc__,
        )
        (info if isinstance(command, Info) else convert)(command)


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


def _open(command: Info | Convert) -> Weights:
    weights = open_weights(command.src, command.model, command.weights)
    if weights.notice:
        print(weights.notice)
    return weights


def _describe(spec: ModelSpec) -> dict[str, str]:
    def shape(tower: ViTConfig | ResNetConfig | TextConfig) -> str:
        if isinstance(tower, ResNetConfig):
            return f"ResNet, blocks {'-'.join(map(str, tower.layers))}, width {tower.width}"
        return (
            f"{tower.layers} layers, width {tower.width}, {tower.heads} heads, "
            f"{tower.activation}, family {tower.family}"
        )

    config, preprocess, tokenizer = spec
    vision, text = config.vision, config.text
    parameters = jax.tree.leaves(abstract_variables(config)["params"])
    names = [name for name, known in VARIANTS.items() if _towers(known.model) == _towers(config)]
    cleaning = cleaning_of(tokenizer.name, tokenizer.cleaning)
    bias = "no" if config.init_logit_bias is None else "a"
    return {
        "architecture": ", ".join(names) or "none that has a name here",
        "parameters": f"{sum(leaf.size for leaf in parameters):,}",
        "images": f"{vision.image_size} px in patches of {vision.patch_size}; {shape(vision)}",
        "texts": f"{text.context_length} tokens of {text.vocab_size:,}; {shape(text)}",
        "embedding": f"{config.embed_dim} dimensions, {bias} logit bias",
        "preprocessing": f"{preprocess.resize}, {preprocess.interpolation}, "
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
    if "://" not in command.src:
        src, dst = Path(command.src).expanduser().resolve(), command.dst.resolve()
        if dst == src or dst in src.parents:
            raise InputError(f"{command.dst} holds the model itself\nname another folder")
    weights = _open(command)
    model = read_model(weights, command.tokenizer)
    differences = []
    if command.to != "flaxclip":
        differences = export(
            model.spec, model.variables, command.dst, command.to, command.overwrite
        )
    else:
        with new_folder(command.dst, command.overwrite) as folder:
            tokenizer = model.spec.tokenizer
            if tokenizer.file is not None:
                name = Path(tokenizer.file).name
                shutil.copyfile(tokenizer.file, folder / name)
                tokenizer = dataclasses.replace(tokenizer, file=name)
            config = model.spec._replace(tokenizer=tokenizer)._asdict()
            save_variables(folder, config | {"compute": model.compute}, model.variables)
    print(f"{command.dst}: {command.to}, from {weights.kind}")
    if differences:
        print("its files cannot say how this model prepares", *differences, sep="\n  ")


if __name__ == "__main__":
    main()
