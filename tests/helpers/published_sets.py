"""Small sets in the layouts in which their authors publish them."""

import csv
import json
from pathlib import Path

import PIL.Image
import pyarrow
import pyarrow.parquet

from flaxclip.data.sources.scenes import SEEN
from tests.helpers.image_tars import png

LANGUAGES = ("de", "quz")
CORPORA = Path(__file__).parents[2] / "experiments" / "corpora"
SCENE_NAMES = [" ".join(words) for words in SEEN]
TASKS = {
    "wds": "wds:wds_scenes",
    "tfds": "tfds:scenes_tfds",
    "folder": "folder:scenes_folder",
    "parquet": "parquet:scenes",
    "pairs": "retrieval:pairs.tar",
    "scenes": "scenes-unseen",
    "sugarcrepe": "sugarcrepe_add_att",
    "winoground": "winoground",
    "winogavil": "winogavil",
    "sugarcrepe++": "sugarcrepe++_swap_obj",
    "aro": "aro_relation",
    "aro-order": "aro_coco_order",
    "mmvp": "mmvp_vlm",
    "valse": "valse",
    "negbench-choices": "negbench_voc_choices",
    "negbench-retrieval": "negbench_coco_retrieval_plain",
    "waterbirds": "waterbirds",
    "celeba": "celeba",
    "wds-faces": "fairface",
    "imagenet-c": "imagenet-c-3",
    "imagenet-w": "imagenet-w",
    "imagenet-ood": "ood_imagenet",
    "wds-ood": "ood_cifar10",
    "docci": "docci",
    "dci": "dci",
    "urban1k": "urban1k",
    "crossmodal3600": "crossmodal3600",
    "lined-captions": "xtd10",
    "flickr-annotations": "flickr8k-zh",
    "babel-imagenet": "babel-imagenet:DE,QU",
}
"""Reader -> a task of it whose set `experiments/corpora/make_published_sets.py` writes, or
`make_small_sets.py`; or that needs none."""


def write_crossmodal(root, images=4):
    """Two captions of each image in German, one or two in Quechua."""
    (root / "crossmodal3600/images").mkdir(parents=True)
    lines = []
    for index in range(images):
        (root / f"crossmodal3600/images/k{index}.jpg").write_bytes(png(index))
        item = {"image/key": f"k{index}", "image/locale": "de"}
        for language in LANGUAGES:
            count = 2 if language == "de" else 1 + index % 2
            texts = [f"{language} {index}.{number}" for number in range(count)]
            item[language] = {"caption": texts, "caption/tokenized": texts}
        lines.append(json.dumps(item, ensure_ascii=False))
    (root / "crossmodal3600/captions.jsonl").write_text("\n".join(lines) + "\n")


def write_aro(root, name, kinds, field):
    """Each image has a box of its own shade."""
    (root / "aro/images").mkdir(parents=True, exist_ok=True)
    items = []
    for index, kind in enumerate(kinds):
        image = PIL.Image.new("RGB", (40, 30))
        image.paste((index, 0, 0), (5, 6, 25, 16))
        image.save(root / f"aro/images/{index}.png")
        texts = {f"{side}_caption": f"{side} {index}" for side in ("true", "false")}
        box = {"bbox_x": 5, "bbox_y": 6, "bbox_w": 20, "bbox_h": 10}
        items.append({"image_path": f"{index}.png", field: kind, **texts, **box})
    (root / f"aro/visual_genome_{name}.json").write_text(json.dumps(items))


def write_docci(root, count=9):
    (root / "docci/images").mkdir(parents=True)
    lines = []
    for index in range(count):
        split = "test" if index % 3 else "train"
        name = f"{split}_{index:05}.jpg"
        (root / "docci/images" / name).write_bytes(png(index))
        sentences = [f"Sentence {number} of {index}." for number in range(1 + index % 4)]
        item = {"example_id": name[:-4], "split": split, "image_file": name}
        lines.append(json.dumps(item | {"description": " ".join(sentences)}))
    (root / "docci/docci_descriptions.jsonlines").write_text("\n".join(lines) + "\n")


def write_waterbirds(root, count=60):
    """Rows of the metadata: both birds on both grounds in all three splits."""
    rows = []
    for index in range(count):
        y, place, split = index % 2, index // 2 % 2, index % 3
        name = f"{index:03}.Bird/{index}.jpg"
        rows.append({"img_id": index, "img_filename": name, "y": y, "split": split, "place": place})
    folder = root / "waterbird_complete95_forest2water2"
    folder.mkdir(parents=True)
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        (folder / row["img_filename"]).parent.mkdir()
        (folder / row["img_filename"]).write_bytes(png(row["img_id"]))
    return rows


def write_aro_order(folder, listed=False):
    """Columns of mteb's table: six images, each with its caption and four shuffles of it."""
    names = ["correct_caption", *(f"hard_text_{number}" for number in range(1, 5))]
    columns = {name: [f"{name} {row}" for row in range(6)] for name in names}
    images = [{"bytes": png(row)} for row in range(6)]
    columns["images"] = [[image] for image in images] if listed else images
    folder.mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "test-0.parquet")
    return columns
