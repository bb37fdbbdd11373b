r"""Small evaluation sets in every layout that the benchmark reads, of the built-in scenes.

    python experiments/corpora/make_small_sets.py --out sets

writes the same labelled images as

    sets/wds_scenes      CLIP_benchmark's webdatasets, as its repositories on the Hub
    sets/scenes          Parquet, as `push_to_hub` of Hugging Face datasets writes it
    sets/scenes_tfds     TFRecord, as tensorflow-datasets prepares it; `--tfds-format array_record`
    sets/scenes_folder   a folder a class

so that `--tasks wds:sets/wds_scenes parquet:sets/scenes folder:sets/scenes_folder` and, with
`--data sets`, `tfds:scenes_tfds` give one score. Nothing is downloaded.
"""

import io
import itertools
import json
import struct
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import PIL.Image
import pyarrow as pa
import pyarrow.parquet
import tyro

from flaxclip.data.sources.scenes import PROMPT_TEMPLATES, ScenesSource
from flaxclip.data.sources.tf_records import checksum

TfdsFormat = Literal["tfrecord", "array_record"]
PARTS = 3
"""Files of a split."""


class Example(NamedTuple):
    """A labelled image."""

    image: bytes
    """PNG."""
    label: int


def make_small_sets(
    out: Path, images: int = 240, side: int = 32, tfds_format: TfdsFormat = "tfrecord"
) -> None:
    """Write the sets.

    Args:
        out: folder of data sets to write into.
        images: in the test split; half as many are in the training split.
        side: of the images, in pixels.
        tfds_format: of the files of tensorflow-datasets.
    """
    for split, source, count in (("test", "seen", images), ("train", "train", images // 2)):
        scenes = ScenesSource(source, side)
        examples = [
            Example(_png(scenes[index].image), scenes.label(index)) for index in range(count)
        ]
        names = [" ".join(words) for words in scenes.classes]
        write_wds(out / "wds_scenes", split, examples, names)
        write_parquet(out / "scenes", split, examples, names)
        write_tfds(out / "scenes_tfds" / "1.0.0", split, examples, names, tfds_format)
        write_folder(out / "scenes_folder", split, examples, names)
    print(f"{out}: {images:,} test images in four layouts")


def write_wds(root: Path, split: str, examples: Sequence[Example], names: Sequence[str]) -> None:
    """`SPLIT/N.tar`, `SPLIT/nshards.txt`, and the words."""
    (root / split).mkdir(parents=True, exist_ok=True)
    for part, numbers in enumerate(_parts(len(examples))):
        with tarfile.open(root / split / f"{part}.tar", "w") as tar:
            for number in numbers:
                example = examples[number]
                for suffix, data in (("png", example.image), ("cls", b"%d" % example.label)):
                    info = tarfile.TarInfo(f"s{number:07}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    (root / split / "nshards.txt").write_text(f"{PARTS}\n")
    (root / "classnames.txt").write_text("".join(f"{name}\n" for name in names))
    templates = [f"{template.format('{c}')}\n" for template in PROMPT_TEMPLATES]
    (root / "zeroshot_classification_templates.txt").write_text("".join(templates))


def write_parquet(
    root: Path, split: str, examples: Sequence[Example], names: Sequence[str]
) -> None:
    """`data/SPLIT-0000N-of-0000M.parquet` with the features in the metadata."""
    (root / "data").mkdir(parents=True, exist_ok=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features = {
        "image": {"_type": "Image"},
        "label": {"names": list(names), "_type": "ClassLabel"},
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    for part, numbers in enumerate(_parts(len(examples))):
        images = [{"bytes": examples[n].image, "path": f"{n}.png"} for n in numbers]
        columns = {
            "image": pa.array(images, kind),
            "label": pa.array([examples[n].label for n in numbers], pa.int64()),
        }
        path = root / "data" / f"{split}-{part:05}-of-{PARTS:05}.parquet"
        pyarrow.parquet.write_table(pa.table(columns).replace_schema_metadata(metadata), path)


def write_tfds(
    folder: Path,
    split: str,
    examples: Sequence[Example],
    names: Sequence[str],
    file_format: TfdsFormat,
) -> None:
    """What `tfds build` leaves: features, an account of the splits, and files of examples."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter

    folder.mkdir(parents=True, exist_ok=True)
    tfds.features.FeaturesDict(
        {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=list(names))}
    ).save_config(str(folder))
    name, lengths = folder.parent.name, []
    for part, numbers in enumerate(_parts(len(examples))):
        path = folder / f"{name}-{split}.{file_format}-{part:05}-of-{PARTS:05}"
        records = [_tf_example(examples[number]) for number in numbers]
        lengths.append(str(len(records)))
        if file_format == "array_record":
            writer = ArrayRecordWriter(str(path), "group_size:1")
            for record in records:
                writer.write(record)
            writer.close()
        else:
            path.write_bytes(b"".join(_framed(record) for record in records))
    account = folder / "dataset_info.json"
    info = json.loads(account.read_text()) if account.exists() else {"splits": []}
    info |= {"name": name, "version": folder.name, "fileFormat": file_format}
    info["splits"].append({
        "name": split, "shardLengths": lengths, "numBytes": "0",
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    })  # fmt: skip
    account.write_text(json.dumps(info, indent=1))


def write_folder(root: Path, split: str, examples: Sequence[Example], names: Sequence[str]) -> None:
    """`SPLIT/CLASS/N.png`; the classes' order is that of their names."""
    for number, example in enumerate(examples):
        folder = root / split / names[example.label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:05}.png").write_bytes(example.image)


def _parts(count: int) -> Iterator[range]:
    """The numbers in each of `PARTS` files."""
    bounds = [count * part // PARTS for part in range(PARTS + 1)]
    return itertools.starmap(range, itertools.pairwise(bounds))


def _png(image: object) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def _tf_example(example: Example) -> bytes:
    from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

    image = tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=[example.image]))
    label = tf_feature_pb2.Feature(int64_list=tf_feature_pb2.Int64List(value=[example.label]))
    features = tf_feature_pb2.Features(feature={"image": image, "label": label})
    return tf_example_pb2.Example(features=features).SerializeToString()


def _framed(record: bytes) -> bytes:
    """A record as TFRecord files have it."""
    head = struct.pack("<Q", len(record))
    return b"".join(
        (head, struct.pack("<I", checksum(head)), record, struct.pack("<I", checksum(record)))
    )


if __name__ == "__main__":
    tyro.cli(make_small_sets)
