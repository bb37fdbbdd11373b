"""Search embeddings by text or by image.

    python -m flaxclip.benchmark search embeddings "a red bicycle"
    python -m flaxclip.benchmark search embeddings --image bicycle.jpg --count 50
    python -m flaxclip.benchmark search embeddings "a red bicycle" --faiss

Exact, shard by shard, so that memory does not grow with the corpus; or with --faiss in an index of
neighbours' lists that is made at the first search (`pip install 'flaxclip[faiss]'`).
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import tyro
from jaxtyping import Float, Int
from rich.box import SIMPLE_HEAD
from rich.table import Table

from flaxclip.api import CLIPModel, read_model
from flaxclip.benchmark.checkpoint import find_checkpoint
from flaxclip.benchmark.embed.layout import EmbeddingFolder, open_folder
from flaxclip.benchmark.kept_embeddings import model_digest
from flaxclip.benchmark.results import print_whole
from flaxclip.data.sources.source import UnreadableExampleError
from flaxclip.errors import InputError
from flaxclip.storage import whole_file

ROWS_AT_ONCE = 65_536
_INDEX = "{}.faiss"
Kind = Literal["image", "text"]


@dataclasses.dataclass(frozen=True)
class Command:
    """Search embeddings."""

    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """A folder that `embed` has written."""
    text: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="TEXT")] = None
    """What to search for."""
    image: Path | None = None
    """What to search for, instead of a text."""
    count: int = 10
    """How many to show."""
    over: Kind = "image"
    """Embeddings to search: of images, or of captions."""
    faiss: bool = False
    """Search an index of FAISS, which finds most of the nearest, faster."""
    checkpoint: str | None = None
    """The checkpoint that embedded it, where it is not at its old place."""


class Hits(NamedTuple):
    """The most similar rows, best first."""

    similarities: Float[np.ndarray, " hits"]
    rows: Int[np.ndarray, "hits 2"]
    """Shard, and row in it."""


def search_command(arguments: Sequence[str]) -> None:
    """The command line.

    Raises:
        InputError: see `run`.
    """
    program = "python -m flaxclip.benchmark search"
    run(tyro.cli(Command, prog=program, args=arguments, description=__doc__))


def run(command: Command) -> list[dict[str, Any]]:
    """Print the most similar examples, and return them: similarity, id, image_path, caption.

    Raises:
        InputError: there are no such embeddings, some are missing, the checkpoint is another one,
            or it is not said what to search for, or how many.
    """
    if (command.text is None) == (command.image is None):
        raise InputError("say what to search for: a text, or an image with --image")
    if command.text is not None and not command.text.strip():
        raise InputError("the text to search for is empty\nsay what the images should show")
    if command.count < 1:
        raise InputError(f"--count is {command.count}\nit must be at least 1")
    folder = open_folder(command.folder)
    if missing := folder.missing():
        raise InputError(
            f"{len(missing):,} of {folder.manifest.shards:,} shards of {command.folder} are "
            "missing\nembed the corpus to its end: the same command goes on"
        )
    if command.over == "text" and not folder.manifest.texts:
        raise InputError(f"{command.folder} has no embeddings of captions\nembed them with --texts")
    query = _encode(_model_of(folder, command.checkpoint), command)
    search = search_faiss if command.faiss else search_exact
    found = describe(folder, search(folder, command.over, query, command.count))
    table = Table("similarity", "id", "image", "caption", box=SIMPLE_HEAD)
    for row in found:
        table.add_row(f"{row['similarity']:.3f}", str(row["id"]), row["image_path"],
                      row.get("caption", ""))  # fmt: skip
    print_whole(table)
    return found


def _model_of(folder: EmbeddingFolder, asked: str | None) -> CLIPModel:
    manifest, path = folder.manifest, asked or folder.manifest.checkpoint
    if asked is None and manifest.step is not None:
        path = f"{manifest.checkpoint}/checkpoints/{manifest.step}"
    weights: Any = manifest.weights
    found = find_checkpoint(path, manifest.model, weights, manifest.max_patches)
    model = read_model(found.weights, manifest.tokenizer)
    if model_digest(model) != manifest.parameters_sha256:
        raise InputError(
            f"{path} is not the checkpoint that made {folder.path}\n"
            "name that one with --checkpoint: similarities of two models mean nothing"
        )
    return model


def _encode(model: CLIPModel, command: Command) -> Float[np.ndarray, " d"]:
    if command.text is not None:
        if model.tokenizer.encode([command.text])[1].any():
            print("the text is too long for the model and lost its end")
        return np.asarray(model.encode_text([command.text], 1))[0]
    assert command.image is not None, "one of the two is there"
    try:
        return np.asarray(model.encode_image([command.image.read_bytes()], 1))[0]
    except OSError as error:
        raise InputError(f"cannot read {command.image}: {error.strerror}") from None
    except UnreadableExampleError as error:
        raise InputError(f"{command.image}: {error}") from None


def search_exact(
    folder: EmbeddingFolder, kind: Kind, query: Float[np.ndarray, " d"], count: int
) -> Hits:
    """The `count` rows of the highest cosine; of equals the first."""
    best, places = np.zeros(0, np.float32), np.zeros((0, 2), np.int64)
    for shard in range(folder.manifest.shards):
        z = folder.embeddings(kind, shard)
        for first in range(0, len(z), ROWS_AT_ONCE):
            similar = np.asarray(z[first : first + ROWS_AT_ONCE], np.float32) @ query
            rows = np.arange(first, first + len(similar))
            best = np.concatenate([best, similar])
            places = np.concatenate([places, np.stack([np.full(len(rows), shard), rows], axis=1)])
            order = np.argsort(-best, kind="stable")[:count]
            best, places = best[order], places[order]
    return Hits(best, places)


def search_faiss(
    folder: EmbeddingFolder, kind: Kind, query: Float[np.ndarray, " d"], count: int
) -> Hits:
    """The same by FAISS, whose index is kept in the folder.

    Raises:
        InputError: FAISS is not installed, or the folder is not on disk.
    """
    try:
        import faiss
    except ImportError:
        raise InputError(
            "--faiss needs FAISS\npip install 'flaxclip[faiss]', or search without it"
        ) from None
    counts = [len(folder.embeddings(kind, shard)) for shard in range(folder.manifest.shards)]
    path = folder.path / _INDEX.format(kind)
    if "://" in str(path):
        raise InputError(f"{folder.path} is not on disk\ncopy it, or search without --faiss")
    if path.exists():
        index = faiss.read_index(str(path))
    else:
        index = _build(faiss, folder, kind, sum(counts))
        with whole_file(path) as partial:
            faiss.write_index(index, str(partial))
    similarities, numbers = index.search(query[None].astype(np.float32), count)
    is_there = numbers[0] >= 0
    ends = np.cumsum(counts)
    shards = np.searchsorted(ends, numbers[0][is_there], side="right")
    rows = numbers[0][is_there] - (ends - counts)[shards]
    return Hits(similarities[0][is_there], np.stack([shards, rows], axis=1))


def _build(faiss: Any, folder: EmbeddingFolder, kind: Kind, rows: int) -> Any:
    """Lists of neighbours, the root of the number of rows; a tenth of them is searched."""
    lists = int(np.sqrt(rows))
    width = folder.manifest.embed_dim
    description = "Flat" if rows < 10_000 else f"IVF{lists},SQfp16"
    index = faiss.index_factory(width, description, faiss.METRIC_INNER_PRODUCT)
    shards = range(folder.manifest.shards)
    if not index.is_trained:
        wanted = 64 * lists
        every = max(rows // wanted, 1)
        sample = [np.asarray(folder.embeddings(kind, shard)[::every], np.float32)
                  for shard in shards]  # fmt: skip
        index.train(np.concatenate(sample))
        faiss.extract_index_ivf(index).nprobe = max(lists // 10, 1)
    for shard in shards:
        index.add(np.asarray(folder.embeddings(kind, shard), np.float32))
    return index


def describe(folder: EmbeddingFolder, hits: Hits) -> list[dict[str, Any]]:
    """What is kept of each hit: similarity, id, image_path and, if there is one, caption."""
    tables: dict[int, Any] = {}
    found = []
    for similarity, (shard, row) in zip(hits.similarities, hits.rows.tolist(), strict=True):
        if shard not in tables:
            tables[shard] = folder.about(shard)
        found.append({"similarity": float(similarity)} | tables[shard].slice(row, 1).to_pylist()[0])
    return found
