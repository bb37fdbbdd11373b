"""Convert any corpus to ArrayRecord shards: filtered, deduplicated, split, with a datasheet.

    python -m flaxclip.data.prepare 'shards/*.tar' prepared
    python -m flaxclip.data.prepare 'shards/*.tar' prepared --resize 384 --min-side 64 --min-words 3
    python -m flaxclip.data.prepare 'shards/*.tar' prepared --score-key similarity --min-score 0.28
    python -m flaxclip.data.prepare 'shards/*.tar' prepared --teacher CHECKPOINT --crops 10
    python -m flaxclip.data.prepare 'gs://in/*.tar' gs://out/prepared -- --runner=DataflowRunner ...

Options after `--` go to Apache Beam; without a --runner it runs here, in --workers processes.

DST gets `train-00000-of-00012.array_record` and so on, `validation-…` with --validation,
`datasheet.json`, the same for people in `datasheet.html`, and `dropped.jsonl`, which names every
example that was left out, with the reason. The output is the same, byte for byte, with any number
of workers. Killed, and started again, it goes on; finished, it does nothing.
"""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import tyro
from etils import epath

from flaxclip.data.images.train_transform import AugmentConfig
from flaxclip.data.on_beam import check_workers, importing_beam, split_beam_options
from flaxclip.data.prepare.datasheet import (
    DroppedSummary,
    as_json,
    draw_samples,
    make_datasheet,
    render_page,
)
from flaxclip.data.prepare.encoding import ImageEncoding
from flaxclip.data.prepare.filters import PairFilters
from flaxclip.data.prepare.folder import DATASHEET, DROPPED, PreparationFolder
from flaxclip.data.prepare.publish import claim, name_shards, publish
from flaxclip.data.prepare.scan import SCENE_SIZE, Recipe, plan_shards
from flaxclip.data.prepare.terminal import print_datasheet, progress
from flaxclip.data.prepare.write_shards import cannot_write
from flaxclip.data.reinforced.reinforce import Reinforcing
from flaxclip.data.sources.captions import CaptionConfig
from flaxclip.data.sources.corpus import CorpusConfig, open_corpus
from flaxclip.errors import InputError, exit_on_input_error
from flaxclip.exit_codes import exit_with_code
from flaxclip.teachers.encoder import open_encoder

PAGE = "datasheet.html"
_SMALL = 5_000  # examples


@dataclasses.dataclass(frozen=True)
class Command:
    """Convert a corpus to ArrayRecord shards. Options of Apache Beam follow after `--`."""

    src: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """Same as --data.path of training: shards, tables, a folder, tfds:NAME, scenes."""
    dst: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """Folder to write, new or empty."""
    shard_mb: float = 256
    """Target size of a shard, in millions of bytes."""
    validation: float = 0.0
    """Share of the pairs for shards of their own, chosen by the hash of the image."""
    deduplicate: Literal["pair", "image", "none"] = "pair"
    """Keep only the first of the examples with the same image and captions, or the same image, byte
    for byte."""
    filters: Annotated[PairFilters, tyro.conf.arg(name="")] = PairFilters()
    encoding: Annotated[ImageEncoding, tyro.conf.arg(name="")] = ImageEncoding()
    image_key: str | None = None
    """Column of a table, or feature of TFDS, that holds the images. If None, the usual one."""
    split: str = "train"
    """Split of a TFDS data set."""
    captions: CaptionConfig = CaptionConfig()
    """Fields that filters, duplicates and statistics take as captions. All fields are stored."""
    allow_empty_shards: bool = False
    """Go on where shards have no examples."""
    workers: int | None = None
    """Processes, if Beam runs on this machine. If None, as many as there are cores, but one for a
    corpus that is read before they have started."""
    teacher: tuple[str, ...] = ()
    """Weights of better models, each anything that `flaxclip.load` takes. What they make of each
    example is stored with it, for training with --data.teacher-vectors: embeddings of --crops crops
    and of its captions. If empty, nothing is."""
    teacher_model: tuple[str, ...] = ()
    """Architecture of each teacher, as for --model of training, if weights do not say it."""
    crops: int | None = None
    """Crops of each image whose embeddings are stored. If None, 10."""
    most_captions: Annotated[int | None, tyro.conf.arg(name="captions", metavar="INT")] = None
    """Captions of each example whose embeddings are stored at most: the first ones of
    --captions.keys, which may be real and synthetic ones. If None, all."""
    vectors: Literal["bfloat16", "int8"] = "bfloat16"
    """Numbers of embeddings: 2 bytes each; or 1 byte each, and 4 for the scale of an embedding."""
    augment: AugmentConfig = AugmentConfig()
    """Choice of the crops, as --data.augment of training, which has no say in them."""
    crop_seed: int = 0
    """Seed of the crops."""
    teacher_batch_size: int = 64
    """Crops, or captions, that a teacher is asked for at once."""
    overwrite: bool = False
    """Replace the output of an earlier preparation in DST, once the new one is finished."""

    def __post_init__(self) -> None:
        if self.shard_mb <= 0:
            raise InputError(f"--shard-mb is {self.shard_mb}\nit must be above 0")
        if not 0 <= self.validation < 1:
            raise InputError(
                f"--validation is {self.validation}\nit is a share: 0 or more, below 1"
            )
        check_workers(self.workers)
        if self.teacher_model and len(self.teacher_model) != len(self.teacher):
            raise InputError(
                f"--teacher-model has {len(self.teacher_model)} values, and --teacher "
                f"{len(self.teacher)}\ngive one for each teacher, in their order, or none"
            )
        if not self.teacher and (self.crops, self.most_captions) != (None, None):
            raise InputError(
                "--crops and --captions are numbers of embeddings, and no teacher makes any\n"
                "name its weights with --teacher"
            )


def main() -> None:
    """The command line."""
    args, beam_options = split_beam_options(sys.argv[1:])
    with exit_on_input_error("flaxclip.data.prepare"), exit_with_code("flaxclip.data.prepare"):
        command = tyro.cli(
            Command,
            args=args,
            prog="python -m flaxclip.data.prepare",
            description=__doc__,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
        prepare(command, beam_options)


def prepare(command: Command, beam_options: Sequence[str] = ()) -> dict[str, Any]:
    """Prepare a corpus, or resume its preparation; returns its datasheet.

    Raises:
        InputError: a corpus that cannot be opened, options that contradict each other, nothing left
            to write, or a folder that cannot be written or may not be overwritten.
    """
    with importing_beam(": Beam holds Pillow, pyarrow and protobuf back"):
        from flaxclip.data.prepare import beam
    recipe = Recipe(
        CorpusConfig(
            (command.src,),
            command.image_key,
            command.split,
            command.captions,
            command.allow_empty_shards,
        ),
        command.filters,
        command.encoding,
        command.deduplicate,
        command.validation,
        command.shard_mb,
        _reinforcing(command),
    )
    source = open_corpus(recipe.corpus, SCENE_SIZE)
    examples = len(source)
    plan = {
        "format": 1,
        "records": examples,
        "first": source.name(0),
        "last": source.name(examples - 1),
        "recipe": json.loads(json.dumps(dataclasses.asdict(recipe))),
    }
    # A teacher uses all cores, or the accelerator, by itself.
    usual = 1 if command.teacher or examples <= _SMALL else os.cpu_count() or 1
    workers = command.workers or usual
    folder = PreparationFolder(command.dst, examples)
    runner = beam.Runner(tuple(beam_options), workers)
    dst = epath.Path(command.dst)
    with claim(folder, plan, command.overwrite) as finished:
        if finished:
            print(f"{dst}: prepared already, nothing to do")
            return json.loads((dst / DATASHEET).read_text())
        with progress("scanning", folder.ranges, lambda: folder.ranges - len(folder.unscanned())):
            beam.scan(recipe, folder, runner)
        shards = plan_shards(folder.read_sizes(), examples, recipe)
        begin, before = time.monotonic(), folder.encoded()

        def crops_per_second() -> str:
            crops = folder.encoded() - before
            return f", {crops / (time.monotonic() - begin):,.0f} crops/s" if crops else ""

        with progress(
            "writing", sum(shards.values()), lambda: len(folder.written()), crops_per_second
        ):
            beam.write(recipe, folder, shards, runner)
        sheet = _finish(folder, plan, recipe, shards)
    print_datasheet(sheet, dst, dst / PAGE, recipe)
    return sheet


def _reinforcing(command: Command) -> Reinforcing | None:
    """What is stored of teachers, which are opened to see that they are whole.

    Raises:
        InputError: a teacher cannot be used, or a number is not positive.
    """
    if not command.teacher:
        return None
    crops = 10 if command.crops is None else command.crops
    how = Reinforcing(
        *((), crops, command.most_captions, command.vectors, command.augment),
        *(command.crop_seed, command.teacher_batch_size),
    )  # numbers are checked before weights are read
    models = command.teacher_model or (None,) * len(command.teacher)
    encoders = tuple(map(open_encoder, command.teacher, models))
    return dataclasses.replace(how, encoders=encoders)


def _finish(
    folder: PreparationFolder, plan: dict[str, Any], recipe: Recipe, shards: dict[str, int]
) -> dict[str, Any]:
    """Name the shards, and write the files that describe them.

    Raises:
        InputError: nothing is left of the corpus.
    """
    dropped, listing = DroppedSummary(), folder.work / DROPPED
    try:
        with listing.open("wb") as file:
            for one in folder.read_dropped(shards):
                dropped.add(one)
                line = json.dumps(one._asdict(), ensure_ascii=False) + "\n"
                file.write(line.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise cannot_write(listing, error) from None
    named = name_shards(folder, shards)
    if not named:
        counts = (f"{count:,} {reason}" for reason, count in dropped.counts.items())
        first = dropped.unreadable[:1]
        folder.work.rmtree()
        raise InputError(
            "\n".join(
                [
                    f"nothing is left of {plan['records']:,} examples: {', '.join(counts)}",
                    *(f"the first unreadable one: {d.record}: {d.detail}" for d in first),
                    "loosen the filters, or name another field with --captions.keys",
                ]
            )
        )
    splits = {split: [(name, report) for _, name, report in part] for split, part in named.items()}
    sheet = make_datasheet(plan, splits, dropped, (DROPPED, PAGE))
    moves = [(path, name) for part in named.values() for path, name, _ in part]
    # Those that were moved before a restart are where they belong.
    places = (path if path.exists() else epath.Path(folder.dst) / name for path, name in moves)
    page = render_page(sheet, draw_samples(places, recipe))
    publish(
        folder,
        [*moves, (listing, DROPPED)],
        {PAGE: page.encode("utf-8", "backslashreplace"), DATASHEET: as_json(sheet)},
    )
    return sheet


if __name__ == "__main__":
    main()
