r"""Real evaluation sets that can be had without an account, in CLIP_benchmark's `wds_*` layout.

    apt-get install dataset-fashion-mnist
    python experiments/corpora/make_benchmark_sets.py fashion-mnist --out data

writes `data/wds_fashion_mnist`: 60,000 images to train a probe on, 10,000 to test, ten classes.

    python experiments/corpora/make_benchmark_sets.py clipart --out data 'clipart/*.tar'

reads the shards of `make_clipart_shards.py` and writes `data/wds_tuxpaint`, Tux Paint's stamps with
their topmost folders as classes, and `data/wds_clipart_captions`, for retrieval with several
captions an image: a title, a description and keywords are a caption each. Of `heldout-*.tar` alone
these are images that no run has been trained on.

All can be measured by `python -m flaxclip.benchmark CHECKPOINT --tasks wds:data/wds_...`, captions
by `wds-retrieval:`, and by `clip_benchmark eval --dataset wds/... --dataset_root data/wds_...`.
"""

import collections
import glob
import gzip
import io
import itertools
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import PIL.Image
import tyro

from flaxclip.data.sources.tars.webdataset import WebDatasetSource
from flaxclip.errors import InputError, exit_on_input_error

# Xiao et al. 2017, table 1, in the order of its labels.
FASHION_CLASSES = """
    T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot
"""
FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
RECORDS_PER_SHARD = 10_000


def fashion_mnist(out: Path, idx: Path = FASHION_FOLDER) -> None:
    """Fashion-MNIST from its IDX files.

    Args:
        out: folder of data sets to write into.
        idx: folder with train-images-idx3-ubyte.gz and the three others; Debian's, if not given.
    """
    root = out / "wds_fashion_mnist"
    for split, stem in (("train", "train"), ("test", "t10k")):
        images = _read_idx(idx / f"{stem}-images-idx3-ubyte.gz")
        labels = _read_idx(idx / f"{stem}-labels-idx1-ubyte.gz")
        records = (
            {"png": _png(image), "cls": str(label).encode()}
            for image, label in zip(images, labels, strict=True)
        )
        _write(root, split, records)
    _write_words(root, FASHION_CLASSES.strip().split(","), "a photo of a {c}, a type of clothing.")


def clipart(
    shards: Annotated[tuple[str, ...], tyro.conf.Positional],
    out: Path,
) -> None:
    """Tux Paint's classes, and retrieval with several captions, from clip-art shards.

    Args:
        shards: tars of make_clipart_shards.py, or patterns of them.
        out: folder of data sets to write into.
    """
    paths = sorted(path for pattern in shards for path in glob.glob(pattern))
    if not paths:
        raise InputError(f"no shards: {' '.join(shards)}\nmake_clipart_shards.py makes them")
    stamps: list[tuple[str, bytes]] = []
    captioned = []
    pairs = WebDatasetSource(paths)
    for number in range(len(pairs)):
        pair = pairs[number]
        kind, topmost, *_ = pairs.fields(number)["source"].split("/")
        if kind == "stamps":
            stamps.append((topmost, pair.image))
        else:
            captioned.append((pair.image, pair.captions[0].split(". ")))
    # Keywords that several images share ("icon, computer") belong to none of them alone.
    images = collections.Counter(line for _, lines in captioned for line in set(lines))
    own = ((image, [line for line in lines if images[line] == 1]) for image, lines in captioned)
    names = sorted({name for name, _ in stamps})
    root = out / "wds_tuxpaint"
    _write(
        root,
        "test",
        ({"jpg": jpeg, "cls": str(names.index(name)).encode()} for name, jpeg in stamps),
    )
    spaced = [name.replace("naturalforces", "natural forces") for name in names]
    _write_words(root, spaced, "an image of {c}.")
    _write(
        out / "wds_clipart_captions",
        "test",
        ({"jpg": image, "txt": "\n".join(lines).encode()} for image, lines in own if lines),
    )
    (out / "wds_clipart_captions" / "dataset_type.txt").write_text("retrieval\n")


def _read_idx(path: Path) -> np.ndarray:
    """The array of an IDX file of bytes (LeCun's format: magic, sizes, values)."""
    if not path.is_file():
        raise InputError(f"no {path}\napt-get install dataset-fashion-mnist, or name --idx")
    data = gzip.decompress(path.read_bytes())
    zeros, kind, axes = data[:2], data[2], data[3]
    if zeros != b"\0\0" or kind != 8:
        raise InputError(f"{path} is no IDX file of bytes: it begins with {data[:4]!r}")
    shape = np.frombuffer(data, ">i4", axes, 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def _write(root: Path, split: str, records: Iterable[dict[str, bytes]]) -> None:
    folder = root / split
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise InputError(f"{folder} is not empty\nremove it, or name another --out")
    written, records = 0, iter(records)
    for shard in itertools.count():
        part = list(itertools.islice(records, RECORDS_PER_SHARD))
        if not part:
            break
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for record in part:
                for suffix, data in record.items():
                    info = tarfile.TarInfo(f"s{written:07}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
                written += 1
    (folder / "nshards.txt").write_text(f"{shard}\n")
    print(f"{folder}: {written:,} records in {shard} shards")


def _write_words(root: Path, names: Sequence[str], template: str) -> None:
    (root / "classnames.txt").write_text("".join(f"{name}\n" for name in names))
    (root / "zeroshot_classification_templates.txt").write_text(template + "\n")


if __name__ == "__main__":
    with exit_on_input_error("make_benchmark_sets"):
        tyro.extras.subcommand_cli_from_dict({"fashion-mnist": fashion_mnist, "clipart": clipart})
