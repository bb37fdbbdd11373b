"""Look at a corpus: counts of examples, sizes, lengths, broken ones, and some samples.

python -m flaxclip.data.inspect 'shards/*.tar'
python -m flaxclip.data.inspect 'shards/*.tar' --sample 20000 --images samples
python -m flaxclip.data.inspect 'prepared/train-*.array_record' --json

Reads a sample, so that it takes seconds on a corpus of any size, and says which figures are exact
and which are estimates.
"""

import dataclasses
import io
import json
from pathlib import Path
from typing import Annotated

import numpy as np
import PIL.Image
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flaxclip.data.inspect.inspection import Inspection, Sample, inspect_source
from flaxclip.data.inspect.statistics import MEASURES, Distribution
from flaxclip.data.inspect.vectors import StoredVectors
from flaxclip.data.prepare.scan import SCENE_SIZE
from flaxclip.data.sources.captions import CaptionConfig
from flaxclip.data.sources.corpus import CorpusConfig, open_corpus
from flaxclip.data.sources.source import Source
from flaxclip.errors import InputError, exit_on_input_error
from flaxclip.exit_codes import exit_with_code

_SHOWN_BROKEN = 10


@dataclasses.dataclass(frozen=True)
class Command:
    """Look at a corpus."""

    src: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """Same as --data.path of training: shards, tables, a folder, tfds:NAME, scenes."""
    sample: int = 1000
    """Examples to read and decode. If 0, all."""
    samples: int = 10
    """Examples to show."""
    seed: int = 0
    """Seed of the choice of examples."""
    image_key: str | None = None
    """Column of a table, or feature of TFDS, that holds the images. If None, the usual one."""
    split: str = "train"
    """Split of a TFDS data set."""
    captions: CaptionConfig = CaptionConfig()
    """Fields that count as captions."""
    allow_empty_shards: bool = False
    """Go on where shards have no examples."""
    teacher_widths: tuple[int, ...] = (768, 768)
    """Numbers of each teacher's embedding in tars in the layout of DataCompDR, in their order."""
    images: Path | None = None
    """Folder, new or empty, to write the images of the examples shown to."""
    json: bool = False
    """Print JSON for programs instead of tables."""

    def __post_init__(self) -> None:
        for name in ("sample", "samples"):
            if getattr(self, name) < 0:
                raise InputError(f"--{name} is {getattr(self, name)}\nit must not be negative")


def main() -> None:
    """The command line."""
    with exit_on_input_error("flaxclip.data.inspect"), exit_with_code("flaxclip.data.inspect"):
        inspect(
            tyro.cli(
                Command,
                prog="python -m flaxclip.data.inspect",
                description=__doc__.replace("\npython", "\n\npython"),
                config=(tyro.conf.FlagCreatePairsOff,),
            )
        )


def inspect(command: Command) -> None:
    """Print the results of inspecting a corpus.

    Raises:
        InputError: it cannot be opened, or the folder for images cannot be written.
    """
    if command.images is not None:
        _make_folder(command.images)
    source = open_corpus(
        CorpusConfig(
            (command.src,),
            command.image_key,
            command.split,
            command.captions,
            command.allow_empty_shards,
            teacher_widths=command.teacher_widths,
        ),
        SCENE_SIZE,
    )
    sample = command.sample or len(source)
    inspection = inspect_source(source, sample, command.samples, command.seed)
    images: list[Path | None] = [None] * len(inspection.samples)
    if command.images is not None:
        images = [
            _write_image(command.images, number, shown)
            for number, shown in enumerate(inspection.samples, 1)
        ]
    if command.json:
        report = {**inspection.to_json(), "left_out": _left_out(source)}
        for shown, image in zip(report["samples"], images, strict=True):
            shown["image"] = image and str(image)
        print(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        _print(command.src, inspection, _left_out(source), images)


def _left_out(source: Source) -> dict[str, int]:
    """Counts of things in the shards or the folder that are no pairs, if the source counts them."""
    empty = getattr(source, "empty_shards", 0)
    return ({"empty_shards": empty} if empty else {}) | dict(getattr(source, "left_out", {}))


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise InputError(f"{folder} is not empty\nname a new folder with --images")
    except OSError as error:
        raise InputError(f"cannot write images into {folder}: {error.strerror}") from None


def _write_image(folder: Path, number: int, shown: Sample) -> Path:
    """Write the image as it is stored; returns its path."""
    image, extension = shown.pair.image, shown.facts.image_format.lower().replace("jpeg", "jpg")
    if isinstance(image, np.ndarray):
        file = io.BytesIO()
        PIL.Image.fromarray(image).save(file, "PNG")
        image, extension = file.getvalue(), "png"
    path = folder / f"{number:02}.{extension}"
    try:
        path.write_bytes(image)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None
    return path


def _print(
    src: str, inspection: Inspection, left_out: dict[str, int], images: list[Path | None]
) -> None:
    console = Console()
    console.print(_counts(src, inspection, left_out))
    if inspection.statistics.pairs:
        console.print(_sizes(inspection))
    for name, found in inspection.broken[:_SHOWN_BROKEN]:
        console.print(Text(f"broken: {name}: {found}"), soft_wrap=True)
    if len(inspection.broken) > _SHOWN_BROKEN:
        console.print(f"and {len(inspection.broken) - _SHOWN_BROKEN:,} more: see --json")
    if inspection.samples:
        console.print(_samples(inspection, images))


def _counts(src: str, inspection: Inspection, left_out: dict[str, int]) -> Table:
    table = Table(box=SIMPLE_HEAD, show_header=False, title=Text(src), title_justify="left")
    table.add_column(no_wrap=True)
    table.add_row("examples", f"{inspection.examples:,}", "exact")
    for name, count in left_out.items():
        table.add_row(f"left out: {name.replace('_', ' ')}", f"{count:,}", "exact")
    low, high = inspection.broken_interval
    share = len(inspection.broken) / inspection.read
    if inspection.is_exact:
        table.add_row("broken", f"{len(inspection.broken):,}", f"exact: {share:.2%}")
    else:
        estimate = f"{low:.2%} to {high:.2%}"
        of_all = f"{low * inspection.examples:,.0f} to {high * inspection.examples:,.0f} of all"
        found = f"{len(inspection.broken):,} of {inspection.read:,} read"
        table.add_row("broken", estimate, f"95% interval: {of_all} ({found})")
    for kind, count in inspection.statistics.formats.most_common():
        share = count / inspection.statistics.pairs
        table.add_row(f"images: {kind}", f"{share:.1%}", _certainty(inspection))
    if inspection.vectors is not None:
        _add_vectors(table, inspection.vectors, _certainty(inspection))
    return table


def _add_vectors(table: Table, vectors: StoredVectors, certainty: str) -> None:
    """Rows on what is stored of teachers."""
    table.add_section()
    for number, (one, count) in enumerate(vectors.teachers.most_common(), 1):
        of = f"{count:,} of the {vectors.crops.count + vectors.without:,} read have it"
        how = f"{one.numbers}, factor {one.factor:.4g}; {of}"
        table.add_row(f"vectors: teacher {number}", str(one.teacher), how)
    for name in ("crops", "captions", "bytes"):
        counts: Distribution = getattr(vectors, name)
        ends = f"{counts.smallest:,}"
        if counts.largest != counts.smallest:
            ends += f" to {counts.largest:,}, mean {counts.mean:,.1f}"
        table.add_row(f"vectors: {name} an example", ends, certainty)
    if vectors.without:
        table.add_row("vectors: without any", f"{vectors.without:,}", certainty)
    if vectors.beyond_image:
        found = f"{vectors.beyond_image:,}"
        table.add_row("vectors: of crops beyond the image", found, certainty)


def _certainty(inspection: Inspection) -> str:
    return "exact" if inspection.is_exact else f"estimated from {inspection.statistics.pairs:,}"


def _sizes(inspection: Inspection) -> Table:
    columns = ("smallest", "5%", "median", "mean", "95%", "largest")
    table = Table(box=SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    table.title = (
        f"exact: all {inspection.examples:,} examples read"
        if inspection.is_exact
        else f"estimated from {inspection.statistics.pairs:,} of {inspection.examples:,} examples; "
        "smallest and largest are of these alone"
    )
    for name, title in MEASURES.items():
        d = inspection.statistics.distributions[name]
        mean = f"{d.mean:,.0f}" if d.mean >= 100 else f"{d.mean:.1f}"
        low, middle, high = (f"{d.quantile(share):,}" for share in (0.05, 0.5, 0.95))
        table.add_row(title, f"{d.smallest:,}", low, middle, mean, high, f"{d.largest:,}")
    return table


def _samples(inspection: Inspection, images: list[Path | None]) -> Table:
    table = Table("example", "image", "captions", box=SIMPLE_HEAD, title_justify="left")
    table.title = "samples"
    for shown, image in zip(inspection.samples, images, strict=True):
        facts = shown.facts
        size = f"{facts.image_format} {facts.width} × {facts.height}, {facts.image_bytes:,} B"
        lines = [size] if image is None else [size, str(image)]
        table.add_row(
            Text(shown.name, overflow="fold"), Text("\n".join(lines)), Text(_shortened(shown))
        )
    return table


def _shortened(shown: Sample) -> str:
    captions = shown.pair.captions
    lines = [caption if len(caption) <= 200 else f"{caption[:199]}…" for caption in captions[:3]]
    return "\n".join(lines + ([f"and {len(captions) - 3} more"] if len(captions) > 3 else []))


if __name__ == "__main__":
    main()
