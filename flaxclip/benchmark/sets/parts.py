"""Which files make up a split of a data set: all that it is made of, or an error.

A score of the shards that happened to arrive would look like one of the whole set.
"""

import re
from collections.abc import Callable, Collection, Iterable

from flaxclip.data.sources.left_out import is_leftover
from flaxclip.errors import InputError

_NUMBERED = re.compile(r"(?P<number>\d+)\.tar")
_PART_OF = re.compile(r"(?P<series>.*?)-(?P<number>\d+)-of-(?P<count>\d+)\b")
_TFDS_PART = re.compile(r"[\w.]+-(?P<split>\w+)\.\w+-\d{5,}-of-\d{5,}")
_SPLITS = re.compile(r"(train|training|test|testing|val|valid|validation|dev)(?![a-z])")
_WORDS = ("classnames.txt", "zeroshot_classification_templates.txt")


def wds_shards(names: Collection[str], count: str, where: str) -> list[str]:
    """`0.tar`, `1.tar`, ...: the shards of a split, as many as its nshards.txt says.

    Args:
        names: of the files beside nshards.txt.
        count: what that holds.
        where: the split's folder, for messages.

    Raises:
        InputError: it holds no number, or not the number of the shards.
    """
    text = count.strip()
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"{where}/nshards.txt holds {text!r}\nexpected the number of shards")
    shards = [f"{number}.tar" for number in range(int(text))]
    lacking = [name for name in shards if name not in names]
    if lacking:
        raise InputError(
            f"shard {where}/{lacking[0]} is missing{_more(lacking)}: nshards.txt says {text}\n"
            "fetch the set again; if it is published so, tell those who did"
        )
    numbered = {name for name in names if _NUMBERED.fullmatch(name)}
    if beyond := sorted(numbered - set(shards), key=lambda name: (len(name), name)):
        raise InputError(
            f"{where} has {len(numbered)} shards, up to {beyond[-1]}: nshards.txt says {text}\n"
            "which of the two is right cannot be known: fetch the set again, or correct it"
        )
    return shards


def wds_files(
    names: Collection[str], split: str, read: Callable[[str], str], url: str
) -> list[str]:
    """The files of a split in CLIP_benchmark's layout, of those of a repository.

    Args:
        names: of all its files.
        split: its name.
        read: gives the text of a small file.
        url: of the repository, for messages.

    Raises:
        InputError: it is in another layout, has no such split, or lacks shards.
    """
    counts = sorted(name for name in names if name.endswith("/nshards.txt"))
    if f"{split}/nshards.txt" not in counts:
        there = ", ".join(name.removesuffix("/nshards.txt") for name in counts)
        raise InputError(
            f"{url} has no {split}/nshards.txt\n"
            + (f"it has the splits {there}" if there else "expected the layout of CLIP_benchmark's "
               "webdatasets: classnames.txt, test/nshards.txt, test/0.tar")
        )  # fmt: skip
    beside = {name.removeprefix(f"{split}/") for name in names if name.startswith(f"{split}/")}
    shards = wds_shards(beside, read(f"{split}/nshards.txt"), f"{url}/{split}")
    words = [name for name in _WORDS if name in names]
    return [*words, f"{split}/nshards.txt", *(f"{split}/{shard}" for shard in shards)]


def parquet_parts(names: Iterable[str], split: str, where: str) -> list[str]:
    """The Parquet files of a split, in order; none if there are none.

    `SPLIT-00000-of-00003.parquet` as `datasets` names them, `SPLIT/0000.parquet` as the Hub does
    what it has converted, or `SPLIT.parquet`; in any folder.

    Raises:
        InputError: some of `-of-00003` are missing, or several folders have the split.
    """
    tables = [name for name in names if name.endswith(".parquet") and not is_leftover(name)]
    parts = sorted(name for name in tables if _is_of(name, split))
    folders = sorted({name.removesuffix(name.rpartition("/")[2]) for name in parts})
    if len(folders) > 1:
        raise InputError(
            f"{where} has a {split} split in several folders: "
            f"{', '.join(folder or './' for folder in folders)}\n"
            f"name the folder of one of them: parquet:{where}/{folders[-1].partition('/')[0]}"
        )
    numbered = [name for name in parts if _PART_OF.match(name)]
    if numbered and len(numbered) < len(parts):
        other = next(name for name in parts if name not in numbered)
        raise InputError(
            f"{where} has a {split} split as {numbered[0]} and as {other}\n"
            "which of them is right cannot be known: remove one"
        )
    check_parts(parts, where)
    return parts


def tfds_files(names: Collection[str], split: str, url: str) -> list[str]:
    """The files of a split as tensorflow-datasets has prepared it, of those of a version.

    Args:
        names: of all files of the version.
        split: its name, or a part of it, such as `test[:10%]`.
        url: of the version, for messages.

    Raises:
        InputError: it is none, has no such split, or lacks parts of it.
    """
    if "dataset_info.json" not in names:
        raise InputError(
            f"{url} has no dataset_info.json\n"
            "expected a version that TFDS has prepared; of a set with several configurations, name "
            "one: NAME/CONFIGURATION"
        )
    parts = {name: found for name in names if (found := _TFDS_PART.fullmatch(name))}
    wanted = [name for name, found in parts.items() if found["split"] == split.partition("[")[0]]
    if not wanted:
        there = ", ".join(sorted({found["split"] for found in parts.values()}))
        raise InputError(f"{url} has no split {split!r}\nit has: {there}")
    check_parts(wanted, url)
    # A part's name with something behind it is another program's, or of a copy that was cut off.
    beside = [
        name
        for name in names
        if "/" not in name and not _TFDS_PART.match(name) and not is_leftover(name)
    ]
    return sorted([*beside, *wanted])


def names_a_split(name: str) -> bool:
    """True of `train-00000-of-00001.parquet`, and of what has another split's usual name."""
    return _SPLITS.match(name.rpartition("/")[2]) is not None


def splits_of(names: Iterable[str]) -> list[str]:
    """The splits that Parquet files seem to be of: `test` of `test-...` and of `test/0000`."""
    splits = set()
    for name in names:
        folder, _, base = name.rpartition("/")
        if base.endswith(".parquet"):
            stem = base.removesuffix(".parquet").partition("-")[0]
            splits.add(folder.rpartition("/")[2] if stem.isdecimal() else stem)
    return sorted(splits)


def check_parts(names: Iterable[str], where: str) -> None:
    """Raise `InputError` unless all of `-00000-of-00003` are there once, and all are of as many."""
    found: dict[tuple[str, int], dict[int, str]] = {}
    for name in names:
        if part := _PART_OF.match(name):
            number, count = int(part["number"]), int(part["count"])
            series = found.setdefault((part["series"], count), {})
            if number in series:
                raise InputError(
                    f"{where} has part {number:05}-of-{count:05} twice: "
                    f"{series[number]} and {name}\n"
                    "which of them is right cannot be known: remove one"
                )
            series[number] = name
    counts = sorted({count for _, count in found})
    if len(counts) > 1:
        raise InputError(
            f"{where} has parts of {' and of '.join(map(str, counts))}\n"
            "they are of two versions of the set: remove one"
        )
    for (_, count), series in found.items():
        first = int(count in series)  # some count from 1
        if lacking := sorted(set(range(first, count + first)) - set(series)):
            raise InputError(
                f"{where} lacks part {lacking[0]:05}-of-{count:05}{_more(lacking)}\n"
                "fetch the set again; if it is published so, tell those who did"
            )


def _is_of(name: str, split: str) -> bool:
    *folders, base = name.split("/")
    rest = base.removesuffix(".parquet").removeprefix(split)
    if base.startswith(split) and not rest[:1].isalpha():
        return True
    return bool(folders) and folders[-1] == split


def _more(lacking: list[str] | list[int]) -> str:
    return f", and {len(lacking) - 1} more" if len(lacking) > 1 else ""
