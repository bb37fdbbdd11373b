"""Sets that ask which captions are right of an image: words swapped, shuffled or negated."""

import ast
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from flaxclip.benchmark.datasets import Captioned, Choices, Statements
from flaxclip.benchmark.readers.folder import FileImages
from flaxclip.benchmark.readers.parquet import ParquetImages, find_parquet, read_texts
from flaxclip.benchmark.readers.published_files import (
    ImageFolder,
    check_columns,
    files_of,
    read_items,
    read_rows,
)
from flaxclip.benchmark.tasks import SUITES, DataSource, Task
from flaxclip.data.images.open_image import decode_image
from flaxclip.errors import InputError

_MIN_ATTRIBUTED = 25
"""Items that a pair of attributes must have to count in ARO's mean over pairs."""
_COLUMNS_OF_MMVP = 3
_RIGHT_OF_VALSE = 2
"""Annotators, of three, who must have chosen the caption alone: Parcalabescu et al. 2022, 4.4."""


class CroppedImages:
    """Boxes of image files."""

    def __init__(self, files: FileImages, boxes: Sequence[tuple[int, int, int, int]]):
        self._files, self._boxes = files, boxes
        self.identity = repr((files.identity, boxes))
        self.name = files.name

    def __len__(self) -> int:
        return len(self._boxes)

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        image = decode_image(self._files[index]).convert("RGB")
        return np.asarray(image.crop(self._boxes[index]))


def read_sugarcrepe_pp(
    task: Task, source: DataSource, split: str, data_dir: Path, image_size: int
) -> Statements:
    """`sugar_crepe_pp/NAME.json` over COCO's `val2017/`: two right captions, and a wrong one.

    Raises:
        MissingDataError: they are not there.
        InputError: the file lacks a field, or names an image that is not there.
    """
    del split, image_size
    root = data_dir / "sugar_crepe_pp"
    items = read_items(root / f"{source.name}.json", task, source)
    images = ImageFolder(root, ("val2017", "../sugar_crepe/val2017"))
    fields = ("caption", "caption2", "negative_caption")
    paths = [images.find(item["filename"]) for item in items.with_fields("filename", *fields)]
    options = [[item[field] for field in fields] for item in items]
    return _statements(FileImages(root, paths), options, [True, True, False])


def read_aro(
    task: Task, source: DataSource, split: str, data_dir: Path, image_size: int
) -> Statements:
    """`aro/visual_genome_NAME.json` over boxes of `images/`: two things swapped.

    Yuksekgonul et al. 2023. The published mean is over relations that are not their own inverse, or
    over pairs of attributes with 25 items at least.

    Raises:
        MissingDataError: they are not there.
        InputError: the file lacks a field, or names an image that is not there.
    """
    del split, image_size
    root = data_dir / "aro"
    items = read_items(root / f"visual_genome_{source.name}.json", task, source)
    images = ImageFolder(root, ("images",))
    box_fields = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")
    kind = "relation_name" if source.name == "relation" else "attributes"
    paths, boxes, kinds, options = [], [], [], []
    for item in items.with_fields("image_path", "true_caption", "false_caption", kind, *box_fields):
        paths.append(images.find(item["image_path"]))
        x, y, w, h = (item[field] for field in box_fields)
        boxes.append((x, y, x + w, y + h))
        kinds.append(item[kind] if isinstance(item[kind], str) else "_".join(item[kind]))
        options.append([item["true_caption"], item["false_caption"]])
    if source.name == "relation":
        left_out = (SUITES / "aro_relations_left_out.txt").read_text().splitlines()
        averaged = set(kinds) - set(left_out)
    else:
        averaged = {name for name in set(kinds) if kinds.count(name) >= _MIN_ATTRIBUTED}
    if not averaged:
        raise InputError(f"{items.file}: none of its kinds counts in the published mean")
    data = _statements(CroppedImages(FileImages(root, paths), boxes), options, [True, False])
    return data._replace(kinds=tuple(kinds), averaged_kinds=frozenset(averaged))


def read_aro_order(
    task: Task, source: DataSource, split: str, data_dir: Path, image_size: int
) -> Statements:
    """`NAME/SPLIT-*.parquet` with images, correct_caption and hard_text_1 to _4: words shuffled.

    Raises:
        MissingDataError: it is not there.
        InputError: a column is missing, or a caption.
    """
    del image_size
    paths = find_parquet(source.name, split, data_dir, f"{task.title}, {source.url}")
    names = ["correct_caption", *(f"hard_text_{number}" for number in range(1, 5))]
    columns = read_texts(paths, names)
    options = [list(row) for row in zip(*(columns[name] for name in names), strict=True)]
    return _statements(ParquetImages(paths, source.image), options, [True] + [False] * 4)


def read_mmvp(
    task: Task, source: DataSource, split: str, data_dir: Path, image_size: int
) -> Choices:
    """`mmvp_vlm/Questions.csv` and its images: pairs of images, and a statement of each.

    Tong et al. 2024. The first of a pair has an odd number; a statement is asked as "a photo of".

    Raises:
        MissingDataError: they are not there.
        InputError: rows are no pairs, or an image is not there.
    """
    del split, image_size
    root = data_dir / source.name
    rows = read_rows(root / "Questions.csv", task, source, header=False)[1:]
    images = ImageFolder(root, ("MLLM_VLM Images", "MMVP_VLM_Images"))
    numbers = [row[0].strip() for row in rows if len(row) == _COLUMNS_OF_MMVP]
    if not rows or len(rows) % 2 or numbers != [str(n) for n in range(1, len(rows) + 1)]:
        raise InputError(
            f"{root / 'Questions.csv'} has numbers {', '.join(numbers[:4])}, ...: no pairs\n"
            "expected a heading, then rows of number, kind and statement, two for each pair"
        )
    paths = [images.find(f"{kind}/{number}.jpg") for number, (_, kind, _) in enumerate(rows, 1)]
    captions = tuple(f"a photo of {statement}" for *_, statement in rows)
    pairs = np.arange(len(rows)).reshape(-1, 2)
    kinds = tuple(kind for _, kind, _ in rows[::2])
    return Choices(FileImages(root, paths), captions, pairs, pairs, kinds)


def read_valse(
    task: Task, source: DataSource, split: str, data_dir: Path, image_size: int
) -> Statements:
    """`valse/data/*.json`, with all the images that they name below `valse/images/`.

    Parcalabescu et al. 2022: captions and foils that annotators agree upon. A kind is a file.

    Raises:
        MissingDataError: they are not there.
        InputError: a file lacks a field, or names an image that is not there.
    """
    del split, image_size
    root = data_dir / source.name
    images = ImageFolder(root, ("images",))
    paths, options, kinds = [], [], []
    for file in files_of(root / "data", "*.json") or [root / "data/existence.json"]:
        items = read_items(file, task, source)
        for item in items.with_fields("image_file", "caption", "foil", "mturk"):
            if item["mturk"]["caption"] >= _RIGHT_OF_VALSE:
                paths.append(images.find(item["image_file"]))
                options.append([item["caption"], item["foil"]])
                kinds.append(file.stem)
    data = _statements(FileImages(root, paths), options, [True, False])
    return data._replace(kinds=tuple(kinds))


def read_negbench_choices(
    task: Task, source: DataSource, split: str, data_dir: Path, image_size: int
) -> Statements:
    """`negbench/NAME.csv` with image_path, caption_0 to _3, correct_answer and its template.

    Alhamoud et al. 2025: affirmed, negated and mixed answers. Images below `negbench/images/`.

    Raises:
        MissingDataError: they are not there.
        InputError: a column is missing, an image is not there, or an answer is none of the four.
    """
    del split, image_size
    root = data_dir / "negbench"
    file = root / f"{source.name}.csv"
    rows = read_rows(file, task, source)
    names = [f"caption_{number}" for number in range(4)]
    check_columns(file, rows, ("image_path", "correct_answer", "correct_answer_template", *names))
    images = ImageFolder(root, ("images",))
    paths = [images.find(row["image_path"]) for row in rows]
    options = [[row[name] for name in names] for row in rows]
    right = []
    for number, row in enumerate(rows, start=1):
        answer = row["correct_answer"].removesuffix(".0")
        if answer not in ("0", "1", "2", "3"):
            raise InputError(f"{file}, row {number}: correct_answer is {answer!r}\nexpected 0 to 3")
        right.append(int(answer))
    data = _statements(FileImages(root, paths), options, np.eye(4, dtype=bool)[right])
    return data._replace(kinds=tuple(row["correct_answer_template"] for row in rows))


def read_negbench_retrieval(
    task: Task, source: DataSource, split: str, data_dir: Path, image_size: int
) -> Captioned:
    """`negbench/NAME.csv` with filepath and captions, a list of texts as Python writes it.

    Raises:
        MissingDataError: they are not there.
        InputError: a column is missing, captions are no list, or an image is not there.
    """
    del split, image_size
    root = data_dir / "negbench"
    file = root / f"{source.name}.csv"
    rows = read_rows(file, task, source)
    check_columns(file, rows, ("filepath", "captions"))
    images = ImageFolder(root, ("images",))
    paths = [images.find(row["filepath"]) for row in rows]
    captions: list[str] = []
    pairs: list[tuple[int, int]] = []
    for number, row in enumerate(rows):
        try:
            texts = ast.literal_eval(row["captions"])
        except (ValueError, SyntaxError):
            texts = []
        if not (isinstance(texts, list) and texts and all(isinstance(t, str) for t in texts)):
            raise InputError(f"{file}, row {number + 1}: captions are {row['captions'][:40]!r}")
        pairs += [(number, len(captions) + place) for place in range(len(texts))]
        captions += texts
    return Captioned(FileImages(root, paths), tuple(captions), np.array(pairs))


def _statements(
    images: FileImages | CroppedImages | ParquetImages,
    options: Sequence[Sequence[str]],
    is_right: Sequence[bool] | np.ndarray,
) -> Statements:
    """An item for each image, in order; `is_right` of one item is that of all."""
    items, each = len(options), len(options[0])
    captions = tuple(caption for item in options for caption in item)
    rows = np.arange(items * each).reshape(items, each)
    right = np.array(np.broadcast_to(np.asarray(is_right, bool), (items, each)))
    return Statements(images, captions, np.arange(items), rows, right)
