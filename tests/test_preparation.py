"""What `data.prepare` does, without the runner that spreads it over processes."""

import dataclasses
import io
import itertools
import json
import os
import pathlib
import subprocess
import tempfile

import numpy as np
import PIL.Image
import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from flaxclip.data.inspect.statistics import Distribution, PairFacts, PairStatistics
from flaxclip.data.prepare.encoding import ImageEncoding, encode_for_storage
from flaxclip.data.prepare.filters import PairFilters
from flaxclip.data.prepare.folder import PreparationFolder, write_whole
from flaxclip.data.prepare.publish import claim, publish
from flaxclip.data.prepare.scan import Recipe, plan_shards, scan_examples, shard_numbers
from flaxclip.data.prepare.write_shards import write_shard
from flaxclip.data.sources.array_records.array_record import ArrayRecordSource
from flaxclip.data.sources.corpus import CorpusConfig, open_corpus
from flaxclip.data.sources.source import UnreadableExampleError
from flaxclip.errors import InputError
from tests.helpers.pair_shards import image, write_shards

FILTERS = PairFilters(min_side=20, max_aspect=3, min_words=2, score_key="similarity", min_score=0.5)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def _recipe(path, **options) -> Recipe:
    return Recipe(CorpusConfig((str(path / "*.tar"),)), FILTERS, **options)


def _prepare(recipe: Recipe, folder, shards: int) -> tuple[list, dict[str, int]]:
    """All pairs of the shards, in order, and how many examples were dropped, by reason."""
    source = open_corpus(recipe.corpus, 32)
    scan = scan_examples(source, recipe, range(len(source)))
    counts = dict.fromkeys((d.reason for d in scan.dropped), 0)
    pairs, dropped = [], list(scan.dropped)
    numbers = shard_numbers(scan.rows, shards)
    folder = pathlib.Path(tempfile.mkdtemp(dir=folder))
    for shard in range(shards):
        path = folder / f"{shard}.array_record"
        report = write_shard(source, recipe, scan.rows[numbers == shard], path)
        dropped += report.dropped
        if report.pairs:
            written = ArrayRecordSource(str(path))
            pairs += [(*written[n][:2], written.fields(n)) for n in range(report.pairs)]
    for one in dropped:
        counts[one.reason] = counts.get(one.reason, 0) + 1
    return pairs, counts


def test_every_example_is_kept_or_counted_by_why_it_is_dropped(tmp_path):
    expected = write_shards(tmp_path / "in")
    pairs, counts = _prepare(_recipe(tmp_path / "in"), tmp_path, 3)
    assert counts == expected
    assert sorted(int(captions[0].split()[-1]) for _, captions, _ in pairs) == list(range(60))
    for stored, (caption,), fields in pairs:
        assert stored == image(int(caption.split()[-1]))
        assert fields == {"txt": caption, "similarity": 0.9}  # of two that are equal, the first


def test_order_depends_on_contents_alone(tmp_path):
    write_shards(tmp_path / "in")
    pairs, _ = _prepare(_recipe(tmp_path / "in"), tmp_path, 1)
    for shards in (2, 5):
        assert _prepare(_recipe(tmp_path / "in"), tmp_path, shards)[0] == pairs
    # The same examples in one shard, the other way round.
    os.rename(tmp_path / "in" / "00000.tar", tmp_path / "in" / "00002.tar")
    turned, _ = _prepare(_recipe(tmp_path / "in"), tmp_path, 1)
    assert [pair[:2] for pair in turned] == [pair[:2] for pair in pairs]
    assert [caption for _, (caption,), _ in pairs] != sorted(caption for _, (caption,), _ in pairs)


def test_a_table_or_a_folder_is_prepared_as_tars_are(tmp_path):
    expected = []
    for n in range(12):
        (tmp_path / f"{n:02}.jpg").write_bytes(image(n))
        (tmp_path / f"{n:02}.txt").write_text(f"image number {n}")
        expected.append((image(n), (f"image number {n}",)))
    rows = "".join(f"{n:02}.jpg\timage number {n}\n" for n in range(12))
    (tmp_path / "pairs.tsv").write_text("filepath\tcaption\n" + rows)
    for corpus in (str(tmp_path / "pairs.tsv"), str(tmp_path)):
        recipe = Recipe(CorpusConfig((corpus,)))
        pairs, counts = _prepare(recipe, tmp_path.parent, 2)
        assert counts == {}
        assert sorted(pair[:2] for pair in pairs) == sorted(expected)


def test_duplicates_of_images_and_none_at_all(tmp_path):
    expected = write_shards(tmp_path / "in")
    _, counts = _prepare(_recipe(tmp_path / "in", deduplicate="none"), tmp_path, 2)
    assert counts == {reason: n for reason, n in expected.items() if reason != "duplicate"}
    _, counts = _prepare(_recipe(tmp_path / "in", deduplicate="image"), tmp_path, 2)
    assert counts == expected


def test_an_image_is_in_one_split_whatever_its_caption(tmp_path):
    write_shards(tmp_path / "in")
    recipe = _recipe(tmp_path / "in", deduplicate="none", validation=0.3)
    source = open_corpus(recipe.corpus, 32)
    scan = scan_examples(source, recipe, range(len(source)))
    splits = {}
    for row in scan.rows:
        image = source[int(row["example"])].image
        assert splits.setdefault(image, row["split"]) == row["split"]
    share = np.mean([split == 1 for split in splits.values()])
    assert 0.1 < share < 0.5  # 60 images at 0.3
    # Within a split the keys, and so the shards, still spread over their whole range.
    for split in (0, 1):
        assert len(np.unique(shard_numbers(scan.rows[scan.rows["split"] == split], 4))) == 4


def test_number_of_shards_follows_from_distinct_examples_and_their_stored_size(tmp_path):
    write_shards(tmp_path / "in")
    recipe = _recipe(tmp_path / "in", shard_mb=0.01)
    source = open_corpus(recipe.corpus, 32)
    stored = sum(len(image(n)) for n in range(60))
    scan = scan_examples(source, recipe, range(len(source)))
    shards = plan_shards(scan.sizes, len(source), recipe)["train"]
    assert shards == pytest.approx(stored / 1e4, abs=1)
    smaller = dataclasses.replace(recipe, encoding=ImageEncoding(resize=10))
    scan = scan_examples(source, smaller, range(len(source)))
    shards_of_smaller = plan_shards(scan.sizes, len(source), smaller)["train"]
    assert shards_of_smaller < shards / 2


def test_a_corpus_that_changes_between_the_passes_is_refused(tmp_path):
    write_shards(tmp_path / "in")
    recipe = _recipe(tmp_path / "in")
    source = open_corpus(recipe.corpus, 32)
    rows = scan_examples(source, recipe, range(len(source))).rows
    os.utime(tmp_path / "in" / "00001.tar", (0, 0))
    with pytest.raises(InputError, match="no longer what it was"):
        write_shard(source, recipe, rows, tmp_path / "a.array_record")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system takes root")
def test_a_full_disk_is_reported_and_nothing_is_taken_for_whole(tmp_path):
    write_shards(tmp_path / "in")
    recipe = _recipe(tmp_path / "in")
    source = open_corpus(recipe.corpus, 32)
    folder = PreparationFolder(str(tmp_path / "small" / "out"), len(source))
    (tmp_path / "small").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path / "small")]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this machine does not let root mount a file system")
    try:
        folder.write_scan(0, scan_examples(source, recipe, folder.range(0)))
        (folder.work / "shards").mkdir()
        rows = folder.read_rows(0)
        with (
            pytest.raises(InputError, match="No space left on device"),
            folder.new_shard("train", 0) as new,
        ):
            new.report = write_shard(source, recipe, rows, new.path)
        assert list((folder.work / "shards").iterdir()) == []
        subprocess.run(["mount", "-o", "remount,size=4m", str(tmp_path / "small")], check=True)
        with folder.new_shard("train", 0) as new:
            new.report = write_shard(source, recipe, rows, new.path)
        assert folder.written() == {("train", 0)}
    finally:
        subprocess.run(["umount", str(tmp_path / "small")], check=True)


def test_a_folder_is_claimed_finished_refused_and_replaced(tmp_path):
    folder = PreparationFolder(str(tmp_path / "out"), 10)
    plan, other = {"format": 1, "a": {"b": 1}}, {"format": 1, "a": {"b": 2}}
    sheet = {"plan": plan, "splits": {}, "files": ["list"]}
    with claim(folder, plan, overwrite=False) as finished:
        assert not finished
        with (
            pytest.raises(InputError, match="another process"),
            claim(folder, plan, overwrite=False),
        ):
            pass
    with (
        pytest.raises(InputError, match=r"unfinished corpus[^$]*a.b: 1 there, 2 now"),
        claim(folder, other, overwrite=False),
    ):
        pass

    def finish(plan, shard):
        shards = [{"file": f"{shard}.array_record", "bytes": 1}]
        sheet = {"plan": plan, "splits": {"train": {"shards": shards}}, "files": ["list"]}
        (folder.work / "shards" / "x").write_bytes(b"1")
        others = {"list": b"", "datasheet.json": json.dumps(sheet).encode()}
        publish(folder, [(folder.work / "shards" / "x", f"{shard}.array_record")], others)
        return sorted(path.name for path in epath.Path(folder.dst).iterdir())

    with claim(folder, plan, overwrite=False):
        names = finish(plan, "old")
    assert names == ["datasheet.json", "list", "old.array_record"]
    with claim(folder, plan, overwrite=False) as finished:
        assert finished
    with pytest.raises(InputError, match="overwrite"), claim(folder, other, overwrite=False):
        pass
    (tmp_path / "out" / "mine").write_text("not ours")
    with claim(folder, other, overwrite=True) as finished:
        assert not finished
        assert (tmp_path / "out" / "old.array_record").exists()  # until the new one is whole
        names = finish(other, "new")
    assert names == ["datasheet.json", "list", "mine", "new.array_record"]
    (tmp_path / "out" / "new.array_record").unlink()
    with pytest.raises(InputError, match="missing"), claim(folder, other, overwrite=False):
        pass
    with (
        pytest.raises(InputError, match="not made by"),
        claim(PreparationFolder(str(tmp_path), 1), plan, overwrite=True),
    ):
        pass
    assert sheet["files"] == ["list"]


def test_killed_while_shards_are_named_it_finishes_the_second_time(tmp_path, monkeypatch):
    folder = PreparationFolder(str(tmp_path / "out"), 10)
    plan = {"format": 1}
    sheet = json.dumps({"plan": plan, "splits": {}, "files": ["page"]}).encode()
    moves = [(folder.work / "shards" / name, name) for name in ("a", "b")]
    with claim(folder, plan, overwrite=False):
        for path, name in moves:
            path.write_text(name)
        with monkeypatch.context() as patch:
            patch.setattr("flaxclip.data.prepare.publish.write_whole", _fails_at("page"))
            with pytest.raises(KeyboardInterrupt):
                publish(folder, moves, {"page": b"", "datasheet.json": sheet})
    assert (tmp_path / "out" / "b").exists()
    with claim(folder, plan, overwrite=False) as finished:
        assert not finished
        publish(folder, moves, {"page": b"", "datasheet.json": sheet})
    names = sorted(path.name for path in epath.Path(folder.dst).iterdir())
    assert names == ["a", "b", "datasheet.json", "page"]
    assert [(tmp_path / "out" / name).read_text() for name in "ab"] == ["a", "b"]


def _fails_at(name):
    def write(path, data):
        if path.name == name:
            raise KeyboardInterrupt
        write_whole(path, data)

    return write


FACTS = PairFacts("JPEG", 300, 100, 9_000, ((20, 4), (50, 10)))


@pytest.mark.parametrize(
    ("filters", "reason"),
    [
        (PairFilters(), None),
        (PairFilters(min_side=100, max_side=300, max_aspect=3.0), None),
        (PairFilters(min_side=101), "small_image"),
        (PairFilters(max_side=299), "large_image"),
        (PairFilters(max_aspect=2.99), "long_image"),
        (PairFilters(min_words=4, max_words=10, min_characters=20, max_characters=50), None),
        (PairFilters(min_words=5), "short_caption"),
        (PairFilters(min_characters=21), "short_caption"),
        (PairFilters(max_words=9), "long_caption"),
        (PairFilters(max_characters=49), "long_caption"),
        (PairFilters(score_key="s", min_score=0.3, max_score=0.3), None),
        (PairFilters(score_key="s", min_score=0.31), "low_score"),
        (PairFilters(score_key="s", max_score=0.29), "high_score"),
        (PairFilters(score_key="t", max_score=1), "no_score"),
        (PairFilters(score_key="nan", max_score=1), "no_score"),
    ],
)
def test_limits_are_themselves_allowed(filters, reason):
    why = filters.why_dropped(FACTS, {"s": 0.3, "nan": float("nan")})
    assert (why and why[0]) == reason


@pytest.mark.parametrize(
    "limits",
    [
        {"min_score": 1.0},
        {"score_key": "s"},
        {"min_words": 3, "max_words": 2},
        {"max_aspect": 0.5},
    ],
)
def test_limits_that_contradict_each_other_are_refused(limits):
    with pytest.raises(InputError):
        PairFilters(**limits)


@given(st.lists(st.integers(0, 2**40), min_size=1), st.integers(0, 10))
def test_distributions_of_parts_add_up_and_quantiles_are_near(values, cut):
    whole, parts = Distribution(), [Distribution(), Distribution()]
    for place, value in enumerate(values):
        whole.add(value)
        parts[place < cut].add(value)
    parts[0] += Distribution.from_json(json.loads(json.dumps(parts[1].to_json())))
    assert parts[0] == whole
    assert (whole.count, whole.total) == (len(values), sum(values))
    for share in (0.01, 0.5, 0.99):
        exact = float(np.quantile(values, share, method="inverted_cdf"))
        assert exact * 31 / 32 <= whole.quantile(share) <= exact


def test_statistics_survive_json():
    statistics = PairStatistics()
    statistics.add(FACTS)
    assert PairStatistics.from_json(json.loads(json.dumps(statistics.to_json()))) == statistics
    assert statistics.distributions["caption_words"].total == 14


def _size(data: bytes) -> tuple[str, tuple[int, int]]:
    image = PIL.Image.open(io.BytesIO(data))
    return image.format, image.size


def test_images_are_left_shrunk_or_put_into_another_format():
    jpeg, png = image(0, 40, 30), image(0, 40, 30, "PNG")
    for encoding in (ImageEncoding(), ImageEncoding(30), ImageEncoding(30, "JPEG")):
        assert encode_for_storage(jpeg, encoding) == jpeg
    assert _size(encode_for_storage(jpeg, ImageEncoding(15))) == ("JPEG", (20, 15))
    assert _size(encode_for_storage(png, ImageEncoding(15))) == ("JPEG", (20, 15))
    assert _size(encode_for_storage(png, ImageEncoding(15, "WEBP"))) == ("WEBP", (20, 15))
    assert _size(encode_for_storage(jpeg, ImageEncoding(image_format="PNG"))) == ("PNG", (40, 30))
    pixels = np.zeros((30, 40, 3), np.uint8)
    assert _size(encode_for_storage(pixels, ImageEncoding())) == ("PNG", (40, 30))
    with pytest.raises(UnreadableExampleError, match="truncated"):
        encode_for_storage(jpeg[:700], ImageEncoding())


def test_images_that_are_encoded_anew_are_upright_and_opaque():
    pixels = np.zeros((20, 40, 4), np.uint8)
    pixels[:, :20] = (255, 0, 0, 255)  # the rest is black under full transparency
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    stored = np.asarray(PIL.Image.open(io.BytesIO(encode_for_storage(file.getvalue(), SMALL))))
    assert stored.shape == (10, 20, 3)
    assert stored[5, 2].tolist() == [255, 0, 0]
    assert stored[5, 17].tolist() == [255, 255, 255]

    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a viewer
    file = io.BytesIO()
    PIL.Image.fromarray(pixels[..., :3]).save(file, "JPEG", quality=95, exif=exif)
    stored = PIL.Image.open(io.BytesIO(encode_for_storage(file.getvalue(), SMALL)))
    assert stored.size == (10, 20)
    assert stored.getexif() == {}
    assert stored.getpixel((5, 2))[0] > 200
    assert stored.getpixel((5, 17))[0] < 50


SMALL = ImageEncoding(10, "PNG")


def test_ranges_cover_all_examples_once():
    for examples in (1, 63, 64, 65, 100_000, 123_456_789):
        folder = PreparationFolder("out", examples)
        ranges = [folder.range(number) for number in range(folder.ranges)]
        assert ranges[0].start == 0
        assert ranges[-1].stop == examples
        assert all(a.stop == b.start for a, b in itertools.pairwise(ranges))
