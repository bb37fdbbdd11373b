"""What a folder of embeddings holds, and how a shard of it is written whole or not at all.

    OUT/embeddings.json                      what was embedded, by what: `Manifest`
    OUT/img_emb/img_emb_00.npy               [rows, d], unit length
    OUT/text_emb/text_emb_00.npy             the same of captions
    OUT/metadata/metadata_00.parquet         id, image_path, caption: a row for each of theirs

which is the layout of clip-retrieval (rom1504/clip-retrieval, clip_inference/writer.py), so that
its index and its service take it; or, with the layout `parquet`,

    OUT/embeddings/embeddings_00.parquet     id, image_path, caption, image_embedding, ...

`id` is an example's place in the corpus. The Parquet file is written last, and says that its shard
is there. Free of JAX.
"""

import dataclasses
import io
import json
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath
from jaxtyping import Float, Int

from flaxclip.errors import InputError
from flaxclip.storage import is_remote, whole_file

Layout = Literal["clip-retrieval", "parquet"]
Precision = Literal["float16", "float32"]
FORMAT = 1
MANIFEST = "embeddings.json"
_UNREADABLE = b"flaxclip_unreadable"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What was embedded, by what, and how it lies on disk."""

    checkpoint: str
    step: int | None
    weights: str | None
    model: str | None
    tokenizer: str | None
    """These find the checkpoint again, for texts to search by."""
    parameters_sha256: str
    preprocessing: str
    source: str
    source_sha256: str
    """Differs where a file of the corpus has changed."""
    examples: int
    shard_size: int
    layout: Layout
    precision: Precision
    texts: bool
    """Whether captions are embedded too."""
    embed_dim: int
    max_patches: int | None = None
    """Asked for, of images at their own aspect ratio; an image to search by has as many."""

    @property
    def shards(self) -> int:
        """How many there are once all is embedded."""
        return -(-self.examples // self.shard_size)

    def rows(self, shard: int) -> range:
        """The examples of a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.examples))


class Shard(NamedTuple):
    """Embeddings of some examples; those that cannot be read have no row."""

    ids: Int[np.ndarray, " rows"]
    names: list[str]
    captions: list[str] | None
    zimg: Float[np.ndarray, "rows d"]
    ztxt: Float[np.ndarray, "rows d"] | None
    unreadable: list[str]
    """Name and reason of each of these."""


class EmbeddingFolder:
    """A folder of embeddings; it may be in object storage."""

    def __init__(self, path: epath.PathLike, manifest: Manifest):
        self.path = epath.Path(path)
        self.manifest = manifest

    def has(self, shard: int) -> bool:
        """True if the shard is there."""
        return self._table_path(shard).exists()

    def missing(self) -> list[int]:
        """Shards that are not there."""
        return [shard for shard in range(self.manifest.shards) if not self.has(shard)]

    def write(self, number: int, shard: Shard) -> None:
        """Write a shard, its table last.

        Raises:
            InputError: it cannot be written.
        """
        precision, columns = self.manifest.precision, {"id": pa.array(shard.ids)}
        columns |= {"image_path": pa.array(shard.names, pa.string())}
        if shard.captions is not None:
            columns["caption"] = pa.array(shard.captions, pa.string())
        arrays = {"image": shard.zimg} | ({} if shard.ztxt is None else {"text": shard.ztxt})
        try:
            for kind, z in arrays.items():
                z = z.astype(precision)
                if self.manifest.layout == "parquet":
                    flat = pa.array(z.ravel())
                    width = self.manifest.embed_dim
                    columns[f"{kind}_embedding"] = pa.FixedSizeListArray.from_arrays(flat, width)
                else:
                    file = io.BytesIO()
                    np.save(file, z)
                    _write_whole(self._array_path(kind, number), file.getvalue())
            table = pa.table(columns)
            said = json.dumps(shard.unreadable, ensure_ascii=False).encode()
            buffer = io.BytesIO()
            pq.write_table(table.replace_schema_metadata({_UNREADABLE: said}), buffer)
            _write_whole(self._table_path(number), buffer.getvalue())
        except OSError as error:
            raise InputError(
                f"cannot write shard {number} into {self.path}: {error.strerror or error}\n"
                "shards that are whole stay: the same command goes on"
            ) from None

    def unreadable(self, shard: int) -> list[str]:
        """Name and reason of each example of a shard that cannot be read."""
        with self._table_path(shard).open("rb") as file:
            metadata = pq.read_schema(file).metadata or {}
        unreadable: list[str] = json.loads(metadata[_UNREADABLE])
        return unreadable

    def about(self, shard: int) -> pa.Table:
        """Of each row: `id`, `image_path` and, if there are captions, `caption`."""
        return self._table(shard, ["id", "image_path", "caption"])

    def _table(self, shard: int, columns: list[str]) -> pa.Table:
        with self._table_path(shard).open("rb") as file:
            there = pq.read_schema(file).names
            return pq.read_table(file, columns=[name for name in columns if name in there])

    def embeddings(self, kind: Literal["image", "text"], shard: int) -> np.ndarray:
        """[rows, d] of a shard; of local .npy files only what is used is read."""
        if self.manifest.layout == "parquet":
            column = f"{kind}_embedding"
            rows = self._table(shard, [column]).column(column).combine_chunks()
            flat = rows.values.to_numpy(zero_copy_only=False)
            return flat.reshape(-1, self.manifest.embed_dim)
        path = self._array_path(kind, shard)
        if is_remote(path):
            return np.load(io.BytesIO(path.read_bytes()))
        return np.load(path, mmap_mode="r")

    def _number(self, shard: int) -> str:
        # As many digits as clip-retrieval has, which sorts files by name.
        return str(shard).zfill(len(str(self.manifest.shards)))

    def _array_path(self, kind: str, shard: int) -> epath.Path:
        name = {"image": "img_emb", "text": "text_emb"}[kind]
        return self.path / name / f"{name}_{self._number(shard)}.npy"

    def _table_path(self, shard: int) -> epath.Path:
        name = "embeddings" if self.manifest.layout == "parquet" else "metadata"
        return self.path / name / f"{name}_{self._number(shard)}.parquet"


def begin_folder(path: epath.PathLike, manifest: Manifest) -> EmbeddingFolder:
    """A new folder; or one that an earlier run began with the same manifest.

    Raises:
        InputError: other embeddings are there, or it cannot be written.
    """
    folder = EmbeddingFolder(path, manifest)
    file = folder.path / MANIFEST
    if file.exists():
        there = dataclasses.asdict(open_folder(path).manifest)
        for field, value in dataclasses.asdict(manifest).items():
            if there[field] != value:
                raise InputError(
                    f"{path} holds other embeddings: {field} is {there[field]!r} there, "
                    f"{value!r} here\nname another folder, or delete this one"
                )
        return folder
    try:
        content: dict[str, Any] = dataclasses.asdict(manifest) | {"format": FORMAT}
        _write_whole(file, (json.dumps(content, indent=2) + "\n").encode())
    except OSError as error:
        raise InputError(
            f"cannot write into {path}: {error.strerror or error}\nname another folder"
        ) from None
    return folder


def open_folder(path: epath.PathLike) -> EmbeddingFolder:
    """A folder of embeddings.

    Raises:
        InputError: it is none, or of another version of this program.
    """
    file = epath.Path(path) / MANIFEST
    try:
        content = json.loads(file.read_text())
        if content.pop("format") != FORMAT:
            raise ValueError("it is of another format")
        return EmbeddingFolder(path, Manifest(**content))
    except FileNotFoundError:
        raise InputError(
            f"no {MANIFEST} in {path}\n"
            "name a folder that python -m flaxclip.benchmark embed has written"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is damaged: {error}\nembed the corpus anew") from None


def _write_whole(path: epath.Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        partial.write_bytes(data)
