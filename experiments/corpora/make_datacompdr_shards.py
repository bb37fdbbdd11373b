"""Tars in the layout of DataCompDR, of images and teachers of your own.

    python experiments/corpora/make_datacompdr_shards.py 'shards/*.tar' --out reinforced \
        --teacher LARGE OTHER --crops 3
    python -m flaxclip.train ... --data.path 'reinforced/*.tar' --data.teacher-vectors True \
        --data.teacher-widths 768 512

Each example gets, beside its image and its caption, the files that `reinforced.datacompdr` tells
of: crops of 8% of the area or more with two operations of RandAugment each, at magnitude 9 of 30,
as theirs; the captions of `syn_text` in its JSON; and the teachers' vectors of all, joined in their
order, as `.npz`. They are named and ordered as `training/README.md` of apple/ml-mobileclip joins
images with the published files. With `--bfloat16`, which needs torch, vectors are `.pth.gz`.
"""

import dataclasses
import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from flaxclip.data.images.decode import UprightImage
from flaxclip.data.images.train_transform import (
    AugmentConfig,
    Crop,
    choose_crop,
    render_changed,
    view_of,
)
from flaxclip.data.reinforced.datacompdr import read_crop
from flaxclip.data.sources.corpus import CorpusConfig, open_corpus
from flaxclip.data.sources.source import Source
from flaxclip.teachers.encoder import TeacherEncoder, open_encoder

# torchvision's `RandAugment` at magnitude 9 of 31 bins, by the number of the operation there; those
# from 1 on that have a direction go both ways.
_MAGNITUDES = (
    0.0, 0.09, 0.09, 0.3 * 150 / 331 * 224, 0.3 * 150 / 331 * 224, 9.0, 0.27, 0.27, 0.27, 0.27, 7.0,
    178.5, 0.0, 0.0,
)  # fmt: skip
_SIGNED = range(1, 10)


@dataclasses.dataclass(frozen=True)
class Command:
    """What is written."""

    source: Annotated[str, tyro.conf.Positional]
    """Tars of img2dataset."""
    out: Path
    teacher: tuple[str, ...]
    """Checkpoints, anything that `flaxclip.load` takes."""
    crops: int = 30
    seed: int = 0
    bfloat16: bool = False
    per_shard: int = 10_000


def as_stored(image: bytes) -> UprightImage:
    """Crops of DataCompDR are of pixels as they are stored."""
    return UprightImage(image, obeys_exif=False)


def draw_crop(image: bytes, encoder: TeacherEncoder, rng: np.random.Generator) -> list[Any]:
    """Parameters of a crop as `.paug.json` has them."""
    augment = AugmentConfig(crop_scale=(0.08, 1.0))
    box = choose_crop(as_stored(image), encoder.transform, augment, rng).box
    left, top, right, bottom = map(int, box)
    operations = []
    for number in rng.integers(len(_MAGNITUDES), size=2).tolist():
        sign = -1 if number in _SIGNED and rng.random() < 0.5 else 1
        operations.append([number, sign * _MAGNITUDES[number]])
    return [[top, left, bottom - top, right - left], operations]


def files_of(
    source: Source, number: int, encoders: list[TeacherEncoder], command: Command
) -> dict[str, bytes]:
    """Extension -> contents, in the order in which a shell lists them."""
    pair, fields = source[number], source.fields(number)
    assert isinstance(pair.image, bytes), "of a tar"
    rng = np.random.default_rng((command.seed, number))
    crops = [draw_crop(pair.image, encoders[0], rng) for _ in range(command.crops)]
    read = [read_crop(crop) for crop in crops]
    stored = as_stored(pair.image)
    synthetic = list(fields.get("syn_text", ()))
    texts = [str(fields["txt"]), *synthetic]
    of_crops, of_captions = [], []
    for encoder in encoders:
        views = [
            render_changed(
                Crop(stored, crop.box), [view_of(crop.box, encoder.transform)], crop.changes
            )[0]
            for crop in read
        ]
        of_crops.append(encoder.encode_images(np.stack(views)))
        of_captions.append(encoder.encode_texts(texts))
    arrays = {"image_emb": np.concatenate(of_crops, 1), "text_emb": np.concatenate(of_captions, 1)}
    kind, vectors = encode_vectors(arrays, command.bfloat16)
    name = source.name(number).rpartition("/")[2]
    return {
        "jpg": pair.image,
        "json": json.dumps({"uid": name}).encode(),
        kind: vectors,
        "paug.json": json.dumps({"param_aug": crops}).encode(),
        "syn.json": json.dumps({"syn_text": synthetic}).encode(),
        "txt": texts[0].encode(),
        "url.txt": f"https://example.org/{name}".encode(),
    }


def encode_vectors(arrays: dict[str, np.ndarray], bfloat16: bool) -> tuple[str, bytes]:
    """Extension and contents."""
    file = io.BytesIO()
    if not bfloat16:
        np.savez_compressed(file, **arrays)
        return "npz", file.getvalue()
    import torch

    tensors = {name: torch.from_numpy(array).bfloat16() for name, array in arrays.items()}
    torch.save(tensors, file)
    return "pth.gz", gzip.compress(file.getvalue(), mtime=0)


def main(command: Command) -> None:
    source = open_corpus(CorpusConfig((command.source,)), 224)
    encoders = [open_encoder(checkpoint) for checkpoint in command.teacher]
    command.out.mkdir(parents=True, exist_ok=True)
    for first in range(0, len(source), command.per_shard):
        path = command.out / f"{first // command.per_shard:08}.tar"
        with tarfile.open(path, "w") as tar:
            for number in range(first, min(first + command.per_shard, len(source))):
                key = source.name(number).rpartition("/")[2]
                for extension, data in files_of(source, number, encoders, command).items():
                    member = tarfile.TarInfo(f"{key}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(tyro.cli(Command, description=__doc__))
