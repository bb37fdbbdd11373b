"""Small sets of captions, right or wrong, in the layouts in which their authors publish them.

Each writer takes the folder of data sets and JPEG images, and returns what is right of them.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL.Image
from published_files import (
    Captions,
    Cues,
    InLanguages,
    Statements,
    TwoByTwo,
    one_each,
    several_each,
    statements,
    write,
    write_csv,
    write_images,
    write_json,
    write_parquet,
    write_tar,
)


def pairs(out: Path, images: Sequence[bytes]) -> Captions:
    """A tar as img2dataset writes it, `pairs.tar`."""
    captions = [f"pair {number}" for number in range(len(images))]
    members = [
        (f"{number:09}.{suffix}", data)
        for number, (image, caption) in enumerate(zip(images, captions, strict=True))
        for suffix, data in (("jpg", image), ("txt", caption.encode()))
    ]
    write_tar(out / "pairs.tar", members)
    return one_each(images, captions)


def sugarcrepe(out: Path, images: Sequence[bytes]) -> Statements:
    """`sugar_crepe/add_att.json`, an object of items, over `val2017/`."""
    names = write_images(out / "sugar_crepe/val2017", images)
    items = {
        str(number): {"filename": name, "caption": f"thing {number}",
                      "negative_caption": f"red thing {number}"}
        for number, name in enumerate(names)
    }  # fmt: skip
    write_json(out / "sugar_crepe/add_att.json", items)
    return statements(images, items.values(), ("caption",), ("negative_caption",))


def sugarcrepe_pp(out: Path, images: Sequence[bytes]) -> Statements:
    """`sugar_crepe_pp/swap_obj.json`, a list, over `val2017/`."""
    names = write_images(out / "sugar_crepe_pp/val2017", images)
    fields = ("caption", "caption2", "negative_caption")
    items = [
        {"id": number, "filename": name, **{field: f"{field} of {number}" for field in fields}}
        for number, name in enumerate(names)
    ]
    write_json(out / "sugar_crepe_pp/swap_obj.json", items)
    return statements(images, items, fields[:2], fields[2:])


def aro(out: Path, images: Sequence[bytes]) -> Statements:
    """`aro/visual_genome_relation.json`: a box of each of `images/`."""
    kinds = ["behind" if number % 3 else "holding" for number in range(len(images))]
    box = {"bbox_x": 4, "bbox_y": 6, "bbox_w": 24, "bbox_h": 20}
    items = [
        {"image_path": name, "relation_name": kind, "true_caption": f"{number} {kind} it",
         "false_caption": f"it {kind} {number}", **box}
        for number, (name, kind) in enumerate(zip(write_images(out / "aro/images", images), kinds,
                                                  strict=True))
    ]  # fmt: skip
    write_json(out / "aro/visual_genome_relation.json", items)
    boxes = [PIL.Image.open(io.BytesIO(image)).crop((4, 6, 28, 26)) for image in images]
    found = statements(boxes, items, ("true_caption",), ("false_caption",))
    return found._replace(kinds=kinds)


def aro_order(out: Path, images: Sequence[bytes]) -> Statements:
    """Parquet as mteb publishes it, images in lists of one."""
    names = ["correct_caption", *(f"hard_text_{number}" for number in range(1, 5))]
    columns: dict[str, list[Any]] = {
        name: [f"{name} {row}" for row in range(len(images))] for name in names
    }
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    columns["images"] = [[{"bytes": image}] for image in images]
    write_parquet(out / "gowitheflow/ARO-COCO-order/data/test-00000-of-00001.parquet", columns)
    return statements(images, rows, names[:1], names[1:])


def valse(out: Path, images: Sequence[bytes]) -> Statements:
    """`valse/data/*.json`; the last item of each is one that annotators do not agree upon."""
    names, kinds = write_images(out / "valse/images/coco", images), ("existence", "plurals")
    items = [
        {"image_file": name, "caption": f"there is {number}", "foil": f"there is no {number}",
         "mturk": {"caption": 3 - number % 2, "foil": 0}}
        for number, name in enumerate(names)
    ]  # fmt: skip
    doubted = {"image_file": names[0], "caption": "maybe", "foil": "no", "mturk": {"caption": 1}}
    half = len(images) // 2
    for kind, part in zip(kinds, (items[:half], items[half:]), strict=True):
        content = {f"{kind}_{place}": item for place, item in enumerate([*part, doubted])}
        write_json(out / f"valse/data/{kind}.json", content)
    found = statements(images, items, ("caption",), ("foil",))
    return found._replace(kinds=[kinds[number >= half] for number in range(len(images))])


def negbench_choices(out: Path, images: Sequence[bytes]) -> Statements:
    """`negbench/VOC2007_mcq_llama3.1_rephrased.csv` over `images/`, paths of another machine."""
    rows = [
        {"correct_answer": number % 4, "image_path": f"/data/VOC2007/{name}",
         **{f"caption_{place}": f"{number} and no {place}" for place in range(4)},
         "correct_answer_template": "hybrid" if number % 3 else "negative"}
        for number, name in enumerate(write_images(out / "negbench/images/VOC2007", images))
    ]  # fmt: skip
    write_csv(out / "negbench/VOC2007_mcq_llama3.1_rephrased.csv", rows)
    texts = [[row[f"caption_{place}"] for place in range(4)] for row in rows]
    return Statements(
        images,
        [[of_image[number % 4]] for number, of_image in enumerate(texts)],
        [of_image[: number % 4] + of_image[number % 4 + 1 :]
         for number, of_image in enumerate(texts)],
        [row["correct_answer_template"] for row in rows],
    )  # fmt: skip


def negbench_retrieval(out: Path, images: Sequence[bytes]) -> Captions:
    """`negbench/COCO_val_retrieval.csv`, captions as a list in Python's syntax."""
    names = write_images(out / "negbench/images/val2017", images)
    texts = [
        [f"no {number}", f"not even {number}"][: 1 + number % 2] for number in range(len(names))
    ]
    rows = [
        {"filepath": f"coco/{name}", "captions": repr(of_image)}
        for name, of_image in zip(names, texts, strict=True)
    ]
    write_csv(out / "negbench/COCO_val_retrieval.csv", rows)
    return several_each(images, texts)


def winoground(out: Path, images: Sequence[bytes]) -> TwoByTwo:
    """`facebook/winoground`'s Parquet."""
    captions = [f"word {number // 2} then {number % 2}" for number in range(len(images))]
    columns: dict[str, list[Any]] = {}
    for side in range(2):
        columns[f"image_{side}"] = [{"bytes": image} for image in images[side::2]]
        columns[f"caption_{side}"] = captions[side::2]
    write_parquet(out / "winoground/test-00000-of-00001.parquet", columns)
    return TwoByTwo(images, captions)


def mmvp(out: Path, images: Sequence[bytes]) -> TwoByTwo:
    """`mmvp_vlm/Questions.csv`, and images in the folders of their kinds."""
    kinds = ["Orientation" if number < 8 else "Quantity" for number in range(len(images))]
    rows = []
    for number, (image, kind) in enumerate(zip(images, kinds, strict=True), start=1):
        write(out / f"mmvp_vlm/MLLM_VLM Images/{kind}/{number}.jpg", image)
        rows.append({"Question ID": number, "Type": kind, "Statement": f"the {number}th"})
    write_csv(out / "mmvp_vlm/Questions.csv", rows)
    return TwoByTwo(images, [f"a photo of {row['Statement']}" for row in rows])


def winogavil(out: Path, images: Sequence[bytes]) -> Cues:
    """`winogavil`'s Parquet: a cue and four candidates a row."""
    rows = [images[first : first + 4] for first in range(0, len(images), 4)]
    letters = "abcd"
    right = [letters[: 1 + number % 3] for number in range(len(rows))]
    cues = [("Owl", "Moon")[number % 2] + f" {number}" for number in range(len(rows))]
    columns = {
        "cue": cues,
        "candidates": [list(letters)] * len(rows),
        "associations": [list(of_row) for of_row in right],
        "candidate_images": [[{"bytes": image} for image in row] for row in rows],
    }
    write_parquet(out / "winogavil/test-00000-of-00001.parquet", columns)
    asked = [f"A{'n' * cue.startswith('O')} {cue.lower()}" for cue in cues]
    goes = [[letter in of_row for letter in letters] for of_row in right]
    return Cues(asked, rows, goes)


def docci(out: Path, images: Sequence[bytes]) -> Captions:
    """`docci/docci_descriptions.jsonlines` over `images/`; another split has the last one too."""
    names = write_images(out / "docci/images", images)
    lines = [
        {"example_id": name[:-4], "split": "test", "image_file": name,
         "description": f"The {number}th. It has {number} sides."}
        for number, name in enumerate(names)
    ]  # fmt: skip
    text = "".join(f"{json.dumps(line)}\n" for line in [*lines, lines[-1] | {"split": "train"}])
    write(out / "docci/docci_descriptions.jsonlines", text)
    return one_each(images, [line["description"] for line in lines])


def dci(out: Path, images: Sequence[bytes]) -> Captions:
    """`densely_captioned_images/complete/*.json` over `photos/`, with words for two masks."""
    root = out / "densely_captioned_images"
    captions = []
    for number, name in enumerate(write_images(root / "photos", images)):
        masks = {"0": {"label": "side", "caption": "flat", "mask_quality": 0}}
        words = {"short_caption": f"short {number}.", "extra_caption": f"more {number}."}
        write_json(root / f"complete/{number:03}.json",
                   {"image": name, "mask_data": masks} | words)  # fmt: skip
        captions.append("\n".join(words.values()))
    return one_each(images, captions)


def urban1k(out: Path, images: Sequence[bytes]) -> Captions:
    """`Urban1k/caption/N.txt`, of which the first line counts, over `image/N.jpg`."""
    captions = [f"street {number}" for number in range(len(images))]
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        write(out / f"Urban1k/image/{number:03}.jpg", image)
        write(out / f"Urban1k/caption/{number:03}.txt", f"{caption}\nand more\n")
    return one_each(images, captions)


def flickr_annotations(out: Path, images: Sequence[bytes]) -> Captions:
    """`flickr8k/flickr8k_test_zh.txt` beside the images, several lines each."""
    texts = [[f"图{number}", f"第{number}张"][: 1 + number % 2] for number in range(len(images))]
    names = write_images(out / "flickr8k", images)
    lines = [f"{name},{text}\n" for name, of in zip(names, texts, strict=True) for text in of]
    write(out / "flickr8k/flickr8k_test_zh.txt", "".join(["image,caption\n", *lines]))
    return several_each(images, texts)


def crossmodal3600(out: Path, images: Sequence[bytes]) -> InLanguages:
    """`crossmodal3600/captions.jsonl` over `images/KEY.jpg`; a second caption is not the first."""
    names = write_images(out / "crossmodal3600/images", images)
    texts = {language: [f"{language} {number}" for number in range(len(images))]
             for language in ("de", "quz")}  # fmt: skip
    lines = []
    for number, name in enumerate(names):
        item: dict[str, Any] = {"image/key": name[:-4], "image/locale": "de"}
        for language, of_language in texts.items():
            captions = [of_language[number], f"another of {number}"]
            item[language] = {"caption": captions, "caption/tokenized": captions}
        lines.append(json.dumps(item))
    write(out / "crossmodal3600/captions.jsonl", "\n".join(lines) + "\n")
    return InLanguages({name: one_each(images, captions) for name, captions in texts.items()})


def lined_captions(out: Path, images: Sequence[bytes]) -> InLanguages:
    """XTD10's files with a caption a line, in the folders of who made them."""
    root, found = out / "xtd10", {}
    names = write_images(root / "images", images)
    write(root / "XTD10/test_image_names.txt", "".join(f"{name}\n" for name in names))
    for folder, language in (("XTD10", "es"), ("MIC", "de"), ("STAIR", "jp")):
        captions = [f"{language}: {number}" for number in range(len(images))]
        write(root / folder / f"test_1kcaptions_{language}.txt", "\n".join(captions))
        found[language] = one_each(images, captions)
    return InLanguages(found)
