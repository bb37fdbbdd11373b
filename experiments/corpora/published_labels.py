"""Small sets of labelled images in the layouts in which their authors publish them.

Each writer takes the folder of data sets and JPEG images, and returns what is right of them.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from published_files import (
    NAMES,
    InLanguages,
    Known,
    Labels,
    Named,
    People,
    draw,
    write,
    write_csv,
    write_images,
    write_json,
    write_wds,
)

from flaxclip.benchmark.robustness import alexnet_errors

LEVEL = 3
"""Of ImageNet-C's corruptions."""
_QUESTIONS = {"race": 7, "gender": 2, "age": 9, "toxic": 21}


def imagenet(out: Path, images: Sequence[bytes]) -> Labels:
    """`wds_imagenet1k`, of which other sets ask something else; it has three classes."""
    labels = [number % len(NAMES) for number in range(len(images))]
    examples = [{"jpg": image, "cls": b"%d" % label}
                for image, label in zip(images, labels, strict=True)]  # fmt: skip
    write_wds(out / "wds_imagenet1k", examples, NAMES)
    return Labels(images, labels)


def imagenet_w(out: Path, images: Sequence[bytes]) -> Labels:
    """The same under a watermark, in another font than the published one."""
    font = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
    write(out / "imagenet-w/SourceHanSerifSC-ExtraLight.otf", font.read_bytes())
    return imagenet(out, images)


def imagenet_c(out: Path, images: Sequence[bytes]) -> Labels:
    """`imagenet-c/CORRUPTION/3/WORDNET/*.JPEG`: folders of 1,000 classes, most of them empty."""
    corruptions = list(alexnet_errors(LEVEL))
    for corruption in corruptions:
        for number in range(1000):
            folder = out / f"imagenet-c/{corruption}/{LEVEL}/n{number:08}"
            folder.mkdir(parents=True, exist_ok=True)
    groups = [number % len(corruptions) for number in range(len(images))]
    labels = [number // len(corruptions) % len(NAMES) for number in range(len(images))]
    for number, image in enumerate(images):
        folder = out / f"imagenet-c/{corruptions[groups[number]]}/{LEVEL}/n{labels[number]:08}"
        write(folder / f"ILSVRC2012_val_{number:08}.JPEG", image)
    return Labels(images, labels, groups)


def waterbirds(out: Path, images: Sequence[bytes]) -> Labels:
    """`waterbird_complete95_forest2water2/metadata.csv`; other splits have images as well."""
    root, rows = out / "waterbird_complete95_forest2water2", []
    for number, name in enumerate(write_images(root / "001.Bird", images)):
        y, place, split = number % 2, number // 2 % 2, 0 if number % 5 == 0 else 2
        rows.append({"img_id": number, "img_filename": f"001.Bird/{name}", "y": y,
                     "split": split, "place": place})  # fmt: skip
    write_csv(root / "metadata.csv", rows)
    kept = [row for row in rows if row["split"] == 2]
    groups = [2 * row["y"] + row["place"] for row in kept]
    return Labels([images[row["img_id"]] for row in kept], [row["y"] for row in kept], groups)


def celeba(out: Path, images: Sequence[bytes]) -> Labels:
    """`celeba/list_*.csv` over `img_align_celeba/`, as Kaggle has them."""
    names = write_images(out / "celeba/img_align_celeba", images)
    blond, male = ([number // step % 2 for number in range(len(images))] for step in (1, 2))
    attributes = [
        {"image_id": name, "Blond_Hair": 2 * hair - 1, "Male": 2 * sex - 1}
        for name, hair, sex in zip(names, blond, male, strict=True)
    ]
    write_csv(out / "celeba/list_attr_celeba.csv", attributes)
    partition = [{"image_id": name, "partition": 2} for name in names]
    write_csv(out / "celeba/list_eval_partition.csv", partition)
    return Labels(images, blond, [2 * hair + sex for hair, sex in zip(blond, male, strict=True)])


def faces(out: Path, images: Sequence[bytes]) -> People:
    """DataComp's `wds_fairness-fairface`: facts in .npy, words with the question before them."""
    rng, rows, examples = np.random.default_rng(0), [], []
    for image in images:
        age, gender, race = (int(rng.integers(count)) for count in (9, 2, 7))
        rows.append([age, gender, race, int(race != 1)])
        file = io.BytesIO()
        np.save(file, np.array(rows[-1]))
        examples.append({"jpg": image, "npy": file.getvalue()})
    names = {question: [f"{question} {number}" for number in range(count)]
             for question, count in _QUESTIONS.items()}  # fmt: skip
    lines = [f"{question}:{name}" for question, of in names.items() for name in of]
    templates = [f"{question}:a {{c}}" for question in names]
    write_wds(out / "wds_fairness-fairface", examples, lines, templates)
    return People(images, np.array(rows), names)


def babel_imagenet(out: Path, images: Sequence[bytes]) -> InLanguages:
    """`babel-imagenet/babel_imagenet-298.json` over `wds_imagenet1k`."""
    named = {"DE": {0: "Kreis", 2: "Stern", 1: "Quadrat"}, "QU": {2: "quyllur", 1: "tawa"}}
    content = {name: [list(words), list(words.values())] for name, words in named.items()}
    write_json(out / "babel-imagenet/babel_imagenet-298.json", content)
    labelled = imagenet(out, images)
    return InLanguages({name: Named(labelled, words) for name, words in named.items()})


def imagenet_ood(out: Path, images: Sequence[bytes]) -> Known:
    """`imagenet_ood/`, a folder for each of four sets, the last in folders of its own."""
    folders = {"iNaturalist": "iNaturalist/images", "SUN": "SUN/images", "Places": "Places/images",
               "Texture": "dtd/images/banded"}  # fmt: skip
    outside, count = {}, len(images)
    for place, (name, folder) in enumerate(folders.items(), start=1):
        outside[name] = draw(count // 2, first=place * count)
        write_images(out / "imagenet_ood" / folder, outside[name])
    return Known(imagenet(out, images), outside)


def wds_ood(out: Path, images: Sequence[bytes]) -> Known:
    """`wds_vtab-cifar10` against `wds_vtab-cifar100` and `wds_vtab-svhn`."""
    each = len(images) // 3
    parts = {}
    for place, name in enumerate(("cifar10", "cifar100", "svhn")):
        parts[name] = images[place * each : (place + 1) * each]
        examples = [{"jpg": image, "cls": b"%d" % (number % len(NAMES))}
                    for number, image in enumerate(parts[name])]  # fmt: skip
        write_wds(out / f"wds_vtab-{name}", examples, NAMES)
    inside = parts.pop("cifar10")
    return Known(Labels(inside, [number % len(NAMES) for number in range(each)]), parts)
