"""Embed a corpus: unit embeddings of its images, and of its captions with --texts.

    python -m flaxclip.benchmark embed runs/mine 'shards/{00000..00099}.tar' embeddings --texts
    python -m flaxclip.benchmark embed hf://ORGANISATION/REPOSITORY photos embeddings
    python -m flaxclip.benchmark search embeddings "a red bicycle"

The folder is laid out as clip-retrieval does. An embedding that was killed goes on when it is
started again; hosts of one job divide the shards, and write into a folder that they share.
"""

import csv
import dataclasses
import io
import itertools
from collections.abc import Callable, Sequence
from typing import Annotated

import jax
import tyro

from flaxclip.api import read_model
from flaxclip.benchmark.checkpoint import find_checkpoint
from flaxclip.benchmark.compare.comparison import count_of
from flaxclip.benchmark.embed.embed_corpus import embed_corpus, shards_of_host
from flaxclip.benchmark.embed.layout import (
    EmbeddingFolder,
    Layout,
    Manifest,
    Precision,
    begin_folder,
)
from flaxclip.benchmark.embed.pairs import ImagesAlone, corpus_digest, open_pairs
from flaxclip.benchmark.embeddings import MAX_UNREADABLE, Embedder, check_share
from flaxclip.compile_cache import keep_compiled_programs
from flaxclip.data.sources.captions import CaptionConfig
from flaxclip.data.sources.corpus import CorpusConfig
from flaxclip.data.sources.left_out import describe_counts
from flaxclip.data.storage.files import cache_folder
from flaxclip.errors import InputError
from flaxclip.hosts.connections import join_hosts
from flaxclip.interop.archives.state_dicts import WhichWeights
from flaxclip.malloc import share_one_heap
from flaxclip.storage import replace_text

UNREADABLE = "unreadable.csv"
_NAMED = 10
_Word = Annotated[str, tyro.conf.Positional]


@dataclasses.dataclass(frozen=True)
class Command:
    """Embed a corpus."""

    checkpoint: Annotated[_Word, tyro.conf.arg(metavar="CHECKPOINT")]
    """As for measuring."""
    source: Annotated[_Word, tyro.conf.arg(metavar="SOURCE")]
    """What `--data.path` of training takes: tars, ArrayRecord, tables, `tfds:NAME`, a folder, on
    disk or as a URL; files may be a pattern. A folder of images may be without captions."""
    out: Annotated[_Word, tyro.conf.arg(metavar="OUT")]
    """Folder for the embeddings, on disk or as a URL."""
    texts: bool = False
    """Embed captions too; of several of an image, the first."""
    layout: Layout = "clip-retrieval"
    """`.npy` shards with Parquet beside them, as clip-retrieval has them; or Parquet alone."""
    precision: Precision = "float16"
    """Of the embeddings on disk."""
    shard_size: int = 65_536
    """Examples of a shard, rounded up to whole batches: what a killed run loses at most."""
    batch_size: int = 256
    """Examples at once on this host."""
    max_unreadable: float = MAX_UNREADABLE
    """Share of the examples that may be unreadable; these have no row, and are named in
    unreadable.csv. With more, it stops."""
    image_key: str | None = None
    """Column of a table, or feature of TFDS, that holds the images."""
    caption_keys: tuple[str, ...] = ()
    """Fields that captions are taken from. If None, the usual ones."""
    split: str = "train"
    """Split of a TFDS data set."""
    index: str | None = None
    """Index of tars that flaxclip.data.index has made, where it is not beside them."""
    max_patches: int | None = None
    """Of a model that takes images at their own aspect ratio, the most patches of an image. If
    None, what its preprocessing says."""
    model: str | None = None
    """Architecture of others' weights, where their file does not tell."""
    tokenizer: str | None = None
    """File of SigLIP's or LiT's vocabulary, where it does not lie beside the weights."""
    weights: WhichWeights | None = None
    """Of a checkpoint with weights and their average (EMA). If None, the average."""


def embed_command(arguments: Sequence[str]) -> None:
    """The command line.

    Raises:
        InputError: see `run`.
    """
    program = "python -m flaxclip.benchmark embed"
    command = tyro.cli(Command, prog=program, args=arguments, description=__doc__)
    share_one_heap()
    join_hosts()
    keep_compiled_programs()
    run(command)


def run(command: Command) -> EmbeddingFolder:
    """Embed what is not there yet.

    Raises:
        InputError: no such checkpoint or corpus, patches are asked of a model of squares, captions
            are asked for and there are none, too many examples are unreadable, or the folder holds
            other embeddings or cannot be written.
    """
    for name in ("shard_size", "batch_size"):
        if getattr(command, name) < 1:
            raise InputError(f"{name} is {getattr(command, name)}\nit must be at least 1")
    check_share(command.max_unreadable)
    checkpoint = find_checkpoint(
        command.checkpoint, command.model, command.weights, command.max_patches
    )
    model = read_model(checkpoint.weights, command.tokenizer)
    captions = CaptionConfig(keys=command.caption_keys)
    corpus = CorpusConfig((command.source,), command.image_key, command.split, captions,
                          index=command.index)  # fmt: skip
    source = open_pairs(corpus, model.transform.size)
    if command.texts and isinstance(source, ImagesAlone):
        raise InputError(f"--texts, but the images of {command.source} have no captions")
    # Only batches of it are asked for: nothing is kept apart from what is written.
    embedder = Embedder(model, command.batch_size, cache_folder("embeddings"))
    round_ = embedder.batch_size
    manifest = Manifest(
        checkpoint=str(checkpoint.weights.workdir or checkpoint.asked),
        step=checkpoint.weights.step,
        weights=command.weights,
        model=command.model,
        tokenizer=command.tokenizer,
        parameters_sha256=embedder.checkpoint,
        preprocessing=repr(model.transform),
        source=command.source,
        source_sha256=corpus_digest(source),
        examples=len(source),
        shard_size=-(-command.shard_size // round_) * round_,
        layout=command.layout,
        precision=command.precision,
        texts=command.texts,
        embed_dim=model.config.embed_dim,
        max_patches=command.max_patches,
    )
    folder = begin_folder(command.out, manifest)
    hosts, host = jax.process_count(), jax.process_index()
    mine = shards_of_host(manifest.shards, hosts, host)
    pending = [shard for shard in mine if not folder.has(shard)]
    place = f"host {host} of {hosts}: " if hosts > 1 else ""

    def say(line: str) -> None:
        print(f"{place}{line}", flush=True)

    examples = sum(len(manifest.rows(shard)) for shard in mine)
    there = [shard for shard in mine if shard not in pending]
    read_before = sum(len(manifest.rows(shard)) for shard in there)
    broken_before = sum(len(folder.unreadable(shard)) for shard in there)

    def check(broken: int, read: int) -> None:
        broken, read = broken + broken_before, read + read_before
        if broken > command.max_unreadable * examples:
            raise InputError(
                f"{broken:,} of the first {read:,} examples cannot be read\n"
                f"{_first_lines(folder, mine)}\n"
                f"at most {100 * command.max_unreadable:g}% of {examples:,} may be: fix them, or "
                "raise --max-unreadable; shards that are whole stay"
            )

    kept = f", of which {len(there):,} are there already" if there else ""
    if checkpoint.weights.notice:
        say(checkpoint.weights.notice)
    say(f"{count_of(manifest.examples, 'example')} in {count_of(manifest.shards, 'shard')}{kept}")
    cut = embed_corpus(embedder, source, folder, pending, say, check)
    if cut:
        say(f"{cut:,} captions were too long for the model and lost their end")
    if left_out := getattr(source, "left_out", None):
        say(f"left out of the corpus: {describe_counts(left_out)}")
    _summarise(folder, mine, host, say)
    return folder


def _summarise(folder: EmbeddingFolder, mine: range, host: int, say: Callable[[str], None]) -> None:
    """Name what cannot be read."""
    unreadable = [line for shard in mine for line in folder.unreadable(shard)]
    name = UNREADABLE if host == 0 else f"unreadable-{host}.csv"
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([["example"], *([line] for line in unreadable)])
    replace_text(folder.path / name, out.getvalue())
    rows = sum(len(folder.manifest.rows(shard)) for shard in mine) - len(unreadable)
    for line in unreadable[:_NAMED]:
        say(f"unreadable: {line}")
    more = f", all named in {folder.path / name}" if unreadable else ""
    say(f"{rows:,} embeddings, {len(unreadable):,} unreadable{more}: {folder.path}")


def _first_lines(folder: EmbeddingFolder, mine: range) -> str:
    lines = (line for shard in mine if folder.has(shard) for line in folder.unreadable(shard))
    return "\n".join(itertools.islice(lines, _NAMED))
