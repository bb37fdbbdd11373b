"""Examples of DataCompDR, as apple/ml-mobileclip and its ml-mobileclip-dr write them into tars.

Under the key of an image lie, beside it and its caption:

    .paug.json        {"param_aug": [crop, ...]}, K of them; each is
                      [[top, left, height, width], [[operation, magnitude], ...] or null]
    .syn.json         {"syn_text": [caption, ...]}, M of them, and further `syn_text...`
    .npz or .pth.gz   {"image_emb": [K, d], "text_emb": [1 + M, d]}; or `text_emb` of the caption
                      alone and "syn_text_emb" of the others. float32, or a dict that torch has
                      saved, of bfloat16, in gzip; where both are there, the .npz is taken

by `training/dr/transforms.py`, `preprocess_dr` of `training/open_clip_v2.patch` and
`hf_dataset_example.py` of the first (commit 4144bb1), and `src/raygen/datasetio.py` and
`scripts/gen.py` of the second. Operations are numbered as `RandAugment.op_names` there, and follow
the crop. Of the d numbers, each teacher has its part in the order in which the teachers are named:
OpenAI's ViT-L/14 first, that of DataComp-XL second, by `training/configs/datacompdr12m.json`; the
data set's card names them the other way round.

Images are not part of DataCompDR, and no file says of which size they were. Crops are in pixels of
images as they are at their URLs: `hf_dataset_example.py` crops these, and the first rows on the
data sets' cards go beyond 900 px. Pixels count as they are stored, as Pillow hands them on,
whatever EXIF says. Smaller copies, such as those of at most 512 px that DataComp's
`download_upstream.py` makes, need the JSON of img2dataset with `original_width` and
`original_height`, which then scale the crops. An image without it is unreadable if any of its crops
goes beyond it. That all 10 crops of an image fit into a copy of 95% happens once in 200 images, of
90% once in 10,000.
"""

import functools
import gzip
import io
import json
import math
from collections.abc import Collection, Mapping
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Float

from flaxclip.data.images.changes import Change
from flaxclip.data.reinforced.stored_vectors import (
    NumberType,
    PackedVectors,
    Reinforced,
    StoredCrop,
    StoredTeacher,
)
from flaxclip.data.sources.source import Pair, UnreadableExampleError
from flaxclip.errors import InputError
from flaxclip.interop.archives.open_archive import open_archive_in_memory
from flaxclip.interop.archives.stored_tensor import DAMAGED

CROPS, SYNTHETIC, VECTORS = "paug.json", "syn.json", ("npz", "pth.gz")
EXTENSIONS = (CROPS, SYNTHETIC, *VECTORS)
"""Of an example's files beside image and caption."""

LOGIT_SCALE = math.log(100)
"""Of both teachers: as they have learned, and by `training/configs/run_datacompdr12m.sh`."""

_SIDE = 224
"""Of the crops that the teachers saw, in pixels, which translations count in."""
_OPERATIONS = (
    None, "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color",
    "contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip
_FACTORS = ("brightness", "color", "contrast", "sharpness")
_MOST_BYTES = 2**26  # of vectors in gzip; 36 of 1,536 numbers take 0.1 MB


def read_example(
    image: bytes,
    caption: str | None,
    members: Mapping[str, bytes],
    widths: tuple[int, ...],
    fields: Mapping[str, Any],
) -> Reinforced:
    """An example from its files.

    Its captions are the true one, if there is one, and the synthetic ones. Half of the visits draw
    the first, as in each of their steps an image counts once with it and once with another one.

    Args:
        image: as stored.
        caption: as stored.
        members: extension -> contents, of those in `EXTENSIONS` that there are.
        widths: numbers of each teacher's embedding.
        fields: of the example's JSON.

    Raises:
        UnreadableExampleError: a file is missing or damaged, or they do not fit together.
    """
    if absent := missing(members):
        raise UnreadableExampleError(
            f"no vectors of a teacher are stored with it: no {', no '.join(absent)} beside it"
        )
    kind = next(kind for kind in VECTORS if kind in members)
    arrays = _read_vectors(members[kind], kind)
    crops = tuple(map(read_crop, _crops(members[CROPS])))
    captions, of_captions = _captions(caption, members[SYNTHETIC], arrays)
    of_crops = _array(arrays, "image_emb")
    if len(of_crops) != len(crops):
        raise UnreadableExampleError(
            f"{len(crops)} crops in .{CROPS}, and image_emb of {len(of_crops)} in .{kind}"
        )
    for name, array in (("image_emb", of_crops), ("text_emb", of_captions)):
        if array.shape[1] != sum(widths):
            told = " + ".join(map(str, widths))
            raise UnreadableExampleError(
                f"{name} of {array.shape[1]:,} numbers, and data.teacher_widths says {told}"
            )
    others, weights = len(captions) - 1, None
    if captions[0] == caption and others:
        weights = (float(others), *[1.0] * others)
    return Reinforced(
        Pair(image, captions, weights),
        crops,
        _teachers(widths),
        tuple(zip(_packed(of_crops, widths), _packed(of_captions, widths), strict=True)),
        is_upright=False,
        reduced_from=_original_size(fields),
    )


def _original_size(fields: Mapping[str, Any]) -> tuple[int, int] | None:
    """Width and height at an image's URL, by img2dataset, before it was stored."""
    width, height = fields.get("original_width"), fields.get("original_height")
    if isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0:
        return width, height
    return None


def missing(members: Collection[str]) -> list[str]:
    """What lacks to an example that has files of these extensions, for people."""
    absent = [f".{name}" for name in (CROPS, SYNTHETIC) if name not in members]
    if not any(kind in members for kind in VECTORS):
        absent.append(" or ".join(f".{kind}" for kind in VECTORS))
    return absent


@functools.cache
def _teachers(widths: tuple[int, ...]) -> tuple[StoredTeacher, ...]:
    """The files do not say who they are."""
    return tuple(
        StoredTeacher(f"teacher {number} of the tars", width, LOGIT_SCALE)
        for number, width in enumerate(widths)
    )


def _read_vectors(data: bytes, kind: str) -> Mapping[str, Any]:
    try:
        if kind == "pth.gz":
            data = gzip.GzipFile(fileobj=io.BytesIO(data)).read(_MOST_BYTES + 1)
            if len(data) > _MOST_BYTES:
                raise ValueError(f"more than {_MOST_BYTES:,} bytes when decompressed")
        return {name: np.asarray(t) for name, t in open_archive_in_memory(data).items()}
    except (InputError, *DAMAGED) as error:
        raise UnreadableExampleError(f".{kind} is damaged: {error}") from None


def _array(arrays: Mapping[str, Any], name: str) -> Float[np.ndarray, "n d"]:
    if name not in arrays:
        raise UnreadableExampleError(f"no {name} among the vectors: {', '.join(arrays)}")
    array = arrays[name]
    is_number = array.dtype == ml_dtypes.bfloat16 or array.dtype.kind == "f"
    if array.ndim != 2 or not is_number:
        raise UnreadableExampleError(
            f"{name} of shape {list(array.shape)} and type {array.dtype}: expected vectors"
        )
    return array


def _packed(z: Float[np.ndarray, "n d"], widths: tuple[int, ...]) -> list[PackedVectors]:
    kind: NumberType = "float32"
    if z.dtype == ml_dtypes.bfloat16:
        z, kind = z.view(np.uint16), "bfloat16"
    else:
        z = z.astype("<f4")
    starts = np.cumsum((0, *widths))
    return [
        PackedVectors(z[:, start : start + width].tobytes(), width, kind)
        for start, width in zip(starts[:-1], widths, strict=True)
    ]


def _captions(
    caption: str | None, synthetic: bytes, arrays: Mapping[str, Any]
) -> tuple[tuple[str, ...], Float[np.ndarray, "m d"]]:
    """Captions, and their vectors."""
    groups = {
        name: texts for name, texts in _json(synthetic, SYNTHETIC).items()
        if name.startswith("syn_text")
    }  # fmt: skip
    for name, texts in groups.items():
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise UnreadableExampleError(f"{name} in .{SYNTHETIC} is no list of captions")
    true = _array(arrays, "text_emb")
    separate = [name for name in groups if f"{name}_emb" in arrays]
    if separate:
        groups = {name: groups[name] for name in separate}
        vectors = [true, *(_array(arrays, f"{name}_emb") for name in separate)]
    else:
        # Of the true caption first, then of the others.
        groups = {"syn_text": groups.get("syn_text", [])}
        vectors = [true[:1], true[1:]]
    counts, expected = [*map(len, vectors)], [1, *map(len, groups.values())]
    if counts != expected:
        raise UnreadableExampleError(
            f"vectors of {sum(counts)} captions: expected {sum(expected)}, of the true one and "
            f"those in .{SYNTHETIC}"
        )
    texts = [caption or "", *(text for group in groups.values() for text in group)]
    kept = [number for number, text in enumerate(texts) if text.strip()]
    if not kept:
        raise UnreadableExampleError("no caption, neither a true nor a synthetic one")
    return tuple(texts[number] for number in kept), np.concatenate(vectors)[kept]


def _crops(data: bytes) -> list[Any]:
    listed = _json(data, CROPS).get("param_aug")
    if isinstance(listed, str):  # as `datasets` hands it on
        listed = _parsed(listed, CROPS)
    if not isinstance(listed, list) or not listed:
        raise UnreadableExampleError(f"no crops in .{CROPS}: expected a list, param_aug")
    return listed


def read_crop(crop: Any) -> StoredCrop:
    """A crop as `.paug.json` has it; raises UnreadableExampleError if that has none like it."""
    try:
        (top, left, height, width), operations = crop
        changes = [_change(number, magnitude) for number, magnitude in operations or ()]
        box = float(left), float(top), float(left + width), float(top + height)
        return StoredCrop(box, tuple(change for change in changes if change is not None))
    except (TypeError, ValueError):
        shown = json.dumps(crop)[:80]
        raise UnreadableExampleError(
            f"a crop {shown} in .{CROPS}\nexpected [[top, left, height, width], [[operation, "
            f"magnitude], ...]] with operations 0 to {len(_OPERATIONS) - 1}"
        ) from None


def _change(number: int, magnitude: float) -> Change | None:
    """What torchvision's `RandAugment` does by that number and magnitude."""
    if not (0 <= number < len(_OPERATIONS) and math.isfinite(magnitude)):
        raise ValueError(number)
    name = _OPERATIONS[number]
    if name == "posterize" and not 0 <= magnitude <= 8:
        raise ValueError(magnitude)
    if name is None:
        return None
    if name in _FACTORS:
        return name, 1 + float(magnitude)
    if name.startswith("translate"):
        return name, int(magnitude) / _SIDE
    return name, float(magnitude)


def _json(data: bytes, name: str) -> dict[str, Any]:
    value = _parsed(data, name)
    if not isinstance(value, dict):
        raise UnreadableExampleError(f".{name} is no JSON object")
    return value


def _parsed(data: bytes | str, name: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UnreadableExampleError(f".{name} is no JSON: {error}") from None
