"""Every kind of corpus behind the one protocol; tars have a file of their own."""

import csv
import io
import json
import logging
import multiprocessing
import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from flaxclip.config_json import from_json, to_json
from flaxclip.data.config import DataConfig
from flaxclip.data.loader import open_source
from flaxclip.data.sources.array_records import array_record
from flaxclip.data.sources.array_records.array_record import encode_record
from flaxclip.data.sources.captions import CaptionConfig, draw_caption
from flaxclip.data.sources.corpus import CorpusConfig, MixtureCorpus, open_corpus
from flaxclip.data.sources.source import Pair, Source, UnreadableExampleError
from flaxclip.data.sources.tables.parquet_batches import group_batches, open_parquet
from flaxclip.errors import InputError
from tests.helpers.leftovers import leave_behind


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def image(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def open_at(*paths, **options) -> Source:
    return open_corpus(CorpusConfig(tuple(map(str, paths)), **options), 32)


def write_array_record(path, records):
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for record in records:
        writer.write(record)
    writer.close()


def write_rows(path, rows):
    """A table of paths, with a column `caption`; its images beside it."""
    (path.parent / "images").mkdir(exist_ok=True)
    for number, _ in enumerate(rows):
        (path.parent / f"images/{number}.png").write_bytes(image(number))
    table = [(f"images/{number}.png", *row) for number, row in enumerate(rows)]
    if path.suffix == ".parquet":
        names = ("filepath", "caption", "class")
        rows = [dict(zip(names, row, strict=True)) for row in table]
        pa.parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writerows([("filepath", "caption", "class"), *table])
    return path


ROWS = [("a cat", 0), ('a "dog", ß\nand more', 1), ("NA", 1)]


def write_folder(root):
    (root / "deep").mkdir(parents=True)
    for number, name in enumerate(("b", "a", "deep/c")):
        (root / f"{name}.png").write_bytes(image(number))
    (root / "a.txt").write_text("text a")
    (root / "b.json").write_text('{"caption": "json b", "score": 0.5}')
    return root


def write_tfds(tmp_path, monkeypatch):
    """What `tfds build` leaves of a set like coco_captions."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

    def feature(**values):
        lists = {"bytes_list": tf_feature_pb2.BytesList, "int64_list": tf_feature_pb2.Int64List}
        return tf_feature_pb2.Feature(**{k: lists[k](value=v) for k, v in values.items()})

    folder = tmp_path / "tfds/toy/1.0.0"
    folder.mkdir(parents=True)
    tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(),
            "captions": tfds.features.Sequence({"id": np.int64, "text": tfds.features.Text()}),
            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
        }
    ).save_config(str(folder))
    examples = [
        tf_example_pb2.Example(
            features=tf_feature_pb2.Features(
                feature={
                    "image": feature(bytes_list=[image(number)]),
                    "captions/id": feature(int64_list=[1, 2]),
                    "captions/text": feature(bytes_list=[b"one %d" % number, b"two %d" % number]),
                    "label": feature(int64_list=[number % 2]),
                }
            )
        ).SerializeToString()
        for number in range(3)
    ]
    write_array_record(folder / "toy-train.array_record-00000-of-00001", examples)
    info = {
        "name": "toy", "version": "1.0.0", "fileFormat": "array_record",
        "splits": [{
            "name": "train", "shardLengths": ["3"], "numBytes": "300",
            "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        }],
    }  # fmt: skip
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def test_array_record_keeps_every_field(tmp_path):
    fields = {"txt": "a cat", "alt": ["one", "two"], "n": 2**70, "half": "\ud83d", "none": None}
    records = [encode_record(f"key{n}", image(n), fields | {"n": n}) for n in range(5)]
    write_array_record(tmp_path / "b.array_record", records[3:])
    write_array_record(
        tmp_path / "a.array_record", [*records[:3], encode_record("x", b"y", fields)]
    )
    source = open_at(tmp_path / "*.array_record")
    assert [source[n] for n in (0, 1, 2, 4, 5)] == [Pair(image(n), ("a cat",)) for n in range(5)]
    assert source.fields(3) == fields
    assert [source.name(n) for n in (3, 4)] == ["a.array_record/3", "b.array_record/0"]


def test_array_record_that_is_replaced_is_never_taken_for_what_was_counted(tmp_path):
    path = tmp_path / "a.array_record"
    pairs = [encode_record(str(n), b"image", {"txt": f"before {n}"}) for n in range(3)]
    write_array_record(path, pairs)
    source, unread = open_at(path), open_at(path)
    assert source[0].captions == ("before 0",)
    write_array_record(tmp_path / "new", [encode_record("x", b"y", {"txt": "after"})] * 3)
    os.utime(tmp_path / "new", (0, 0))  # of the same size, and else maybe of the same clock tick
    (tmp_path / "new").replace(path)
    assert source[1].captions == ("before 1",)
    array_record._open_shard.cache_clear()  # as in another process
    with pytest.raises(UnreadableExampleError, match=r"a.array_record: has changed since"):
        unread[1]
    assert open_at(path)[1].captions == ("after",)


def test_array_record_of_another_kind_or_cut_off_is_told(tmp_path):
    write_array_record(tmp_path / "other.array_record", [b"not ours"])
    with pytest.raises(UnreadableExampleError, match="no record of an image with fields"):
        open_at(tmp_path / "other.array_record")[0]
    whole = [encode_record("k", image(1), {"txt": "a"})] * 9
    write_array_record(tmp_path / "whole.array_record", whole)
    data = (tmp_path / "whole.array_record").read_bytes()
    for size in (0, 100, len(data) // 2, len(data) - 100):
        (tmp_path / "cut.array_record").write_bytes(data[:size])
        with pytest.raises(InputError, match=r"cut.array_record"):
            open_at(tmp_path / "cut.array_record")
    with pytest.raises(InputError, match=r"cannot read shard .*none.array_record"):
        open_at(tmp_path / "none.array_record")


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.tsv", "pairs.parquet"])
def test_tables_of_paths_and_captions(tmp_path, name):
    source = open_at(write_rows(tmp_path / name, ROWS))
    assert [source[n] for n in range(3)] == [
        Pair(image(n), (caption,)) for n, (caption, _) in enumerate(ROWS)
    ]
    assert source.name(1) == f"{name}/1"
    assert source.fields(2)["caption"] == "NA"
    labels = CaptionConfig(("class",), templates=("a {}", "the {}"), class_names=("cat", "dog"))
    labelled = open_at(tmp_path / name, captions=labels)
    assert labelled[1].captions == ("a dog", "the dog")
    (tmp_path / "images/1.png").unlink()
    with pytest.raises(UnreadableExampleError, match=r"images/1.png: No such file"):
        source[1]


def test_a_table_is_read_once_and_again_when_it_has_changed(tmp_path, cache):
    path = write_rows(tmp_path / "a.csv", ROWS)
    open_at(path)
    (copy,) = (cache / "flaxclip/tables").iterdir()
    open_at(path)
    assert list((cache / "flaxclip/tables").iterdir()) == [copy]
    write_rows(path, ROWS[:1])
    assert len(open_at(path)) == 1


def test_rows_are_copied_by_the_first_run_and_those_left_out_reported_by_every_one(
    tmp_path, caplog
):
    path = write_rows(tmp_path / "a.csv", ROWS)
    path.write_bytes(path.read_bytes() + b"images/0.png\n")
    reported = []
    for _ in range(2):
        with caplog.at_level(logging.INFO, "flaxclip"):
            assert open_at(path).name(2) == "a.csv/2"
        reported.append(caplog.text)
        caplog.clear()
    assert ["reading 1 tables" in text for text in reported] == [True, False]
    assert all("1 rows left out" in text for text in reported)


def test_a_table_whose_rows_are_all_left_out_is_one_without_rows(tmp_path, caplog):
    path = write_rows(tmp_path / "a.csv", ROWS)
    (tmp_path / "b.csv").write_text("url,words\nonly one\n")
    source = open_at(tmp_path / "*.csv")
    assert (len(source), source.empty_shards) == (3, 1)
    assert f"{path.with_name('b.csv')}: 1 rows left out" in caplog.text


def test_rows_of_csv_that_cannot_be_used_are_counted_or_spoil_themselves_alone(tmp_path, caplog):
    path = write_rows(tmp_path / "a.csv", ROWS)
    rows = b"images/0.png,caf\xe9,0\nimages/0.png\n\n\xe9,b,c,d\na\0.png,b,0\n"
    path.write_bytes(path.read_bytes() + rows)
    with caplog.at_level(logging.WARNING, "flaxclip"):
        source = open_at(path)
    assert "2 rows left out, which do not have the header's 3 columns" in caplog.text
    assert len(source) == 5
    for row, message in ((3, "not UTF-8"), (4, "embedded null byte")):
        with pytest.raises(UnreadableExampleError, match=message):
            source[row]


def test_parquet_with_images_as_hugging_face_stores_them(tmp_path):
    images = [{"bytes": image(n), "path": None} for n in range(4)]
    for number in range(2):
        rows = {"image": images[2 * number : 2 * number + 2], "text": [["a", "b"], ["c", " "]]}
        pa.parquet.write_table(pa.table(rows), tmp_path / f"{number}.parquet")
    source = open_at(tmp_path / "*.parquet")
    assert source[3] == Pair(image(3), ("c",))
    assert source[2] == Pair(image(2), ("a", "b"))
    assert source.fields(2) == {"text": ["a", "b"]}
    assert source.name(3) == "1.parquet/1"


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("filepath,words\na,b\n", {}, "no column named as those of captions are: .*words\nlooked"),
        ("image,path,text\na,b,c\n", {}, "several columns named as those of images"),
        ("image,text\na,b\n", {"image_key": "jpg"}, "no column 'jpg' in .*which has: image, text"),
        ("image,text,text\na,b,c\n", {}, "two columns of one name"),
        ("image,text\n", {}, "no rows in"),
        ("", {}, "is no table|no rows in"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(tmp_path, text, options, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        open_at(tmp_path / "a.csv", **options)


HF_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_images(path, numbers, row_group_size=None, **columns):
    """Images as Hugging Face datasets store them."""
    images = pa.array([{"bytes": image(n), "path": f"{n}.png"} for n in numbers], HF_IMAGE)
    columns = {"caption": [f"caption {n}" for n in numbers]} | columns
    table = pa.table({"image": images, **columns})
    pa.parquet.write_table(table, path, row_group_size=row_group_size)


@pytest.mark.parametrize(
    ("first", "second", "values"),
    [
        (pa.array(["a", "b"]), pa.nulls(2), ["a", "b", None, None]),
        (pa.array([1, 2], pa.int32()), pa.array([3, 2**40]), [1, 2, 3, 2**40]),
        (pa.array(["a", "b"]), pa.array(["c", "d"], pa.large_string()), ["a", "b", "c", "d"]),
        (pa.array(["a", "b"]), pa.array([[1.5], []]), ["a", "b", [1.5], []]),
        (pa.array(["a", "b"]).dictionary_encode(), pa.array(["c", "c"]), ["a", "b", "c", "c"]),
    ],
    ids=["null", "int", "large", "unlike", "categories"],
)
def test_tables_may_differ_in_columns_that_nobody_asks_for(tmp_path, first, second, values):
    write_images(tmp_path / "0.parquet", (0, 1), other=first)
    write_images(tmp_path / "1.parquet", (2, 3), other=second, only_here=pa.array([7, 8]))
    source = open_at(tmp_path / "*.parquet")
    assert [source[n] for n in range(4)] == [Pair(image(n), (f"caption {n}",)) for n in range(4)]
    assert [source.fields(n)["other"] for n in range(4)] == values
    assert source.fields(3) == {"caption": "caption 3", "other": values[3], "only_here": 8}
    assert [source.name(n) for n in (1, 2)] == ["0.parquet/1", "1.parquet/0"]
    with pytest.raises(InputError, match=r"no column 'only_here' in .*0.parquet, which has: image"):
        open_at(tmp_path / "*.parquet", captions=CaptionConfig(("only_here",)))


def test_tables_may_differ_in_the_order_of_columns_and_in_what_may_be_null(tmp_path):
    for number, names in enumerate((("text", "image"), ("image", "text"))):
        rows = {"image": image(number), "text": f"caption {number}"}
        schema = pa.schema(
            [(name, pa.binary() if name == "image" else pa.string()) for name in names]
        )
        if number:
            schema = schema.set(1, schema.field(1).with_nullable(False))
        table = pa.Table.from_pylist([rows], schema)
        pa.parquet.write_table(table, tmp_path / f"{number}.parquet")
    for number, names in enumerate((("image", "text"), ("text", "image"))):
        row = {"image": "0.png", "text": f"caption {number + 2}"}
        lines = [",".join(names), ",".join(row[name] for name in names)]
        (tmp_path / f"{number}.csv").write_text("\n".join(lines))
    (tmp_path / "0.png").write_bytes(image(9))
    source = open_at(tmp_path / "*.parquet")
    assert _pairs(source) == [Pair(image(n), (f"caption {n}",)) for n in range(2)]
    source = open_at(tmp_path / "*.csv")
    assert _pairs(source) == [Pair(image(9), (f"caption {n}",)) for n in (2, 3)]


def test_categories_that_change_between_and_within_tables_are_read(tmp_path):
    words = (["cat", "dog", "dog", "ant"], ["owl", None, "cat", "fox"])
    for number, labels in enumerate(words):
        column = pa.array(labels).dictionary_encode()
        listed = pa.array([[label] for label in labels], pa.list_(column.type))
        write_images(tmp_path / f"{number}.parquet", range(4), 2, label=column, listed=listed)
    for key in ("label", "listed"):
        source = open_at(tmp_path / "*.parquet", captions=CaptionConfig((key,)))
        assert [source[n].captions[0] for n in (0, 1, 2, 3, 4, 6, 7)] == [
            *("cat", "dog", "dog", "ant", "owl", "cat", "fox")
        ]
        assert source.fields(4)["label"] == "owl"


def test_parquet_is_read_by_bytes_and_row_group_not_by_65536_rows(tmp_path):
    images = pa.array([{"bytes": bytes(2**20 + n), "path": None} for n in range(40)], HF_IMAGE)
    table = pa.table({"image": images, "caption": ["a"] * 40})
    pa.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=25, use_dictionary=False)
    file = open_parquet(tmp_path / "a.parquet")
    rows = [[batch.num_rows for batch in group_batches(file, group)] for group in range(2)]
    assert rows == [[15, 10], [15]]  # of 16 MiB at most
    small = [batch.num_rows for batch in group_batches(file, 1, ["caption"], 6 * 2**20)]
    assert small == [5, 5, 5]
    source = open_at(tmp_path / "a.parquet")
    assert [len(source[n].image) - 2**20 for n in range(40)] == list(range(40))


def test_a_column_of_paths_in_place_of_images_says_how_it_came_about(tmp_path):
    images = [{"bytes": None, "path": str(tmp_path / f"{n}.png")} for n in range(2)]
    table = pa.table({"image": pa.array(images, HF_IMAGE), "caption": ["a", "b"]})
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "0.png").write_bytes(image(0))
    source = open_at(tmp_path / "a.parquet")
    assert source[0].image == image(0)
    with pytest.raises(UnreadableExampleError, match=r"1.png: No such file.*embed_table_storage"):
        source[1]


@pytest.mark.parametrize("kind", ["csv", "header.csv", "parquet", "zero.parquet", "array_record"])
def test_empty_shards_among_others_are_counted_or_refused(tmp_path, caplog, kind):
    extension = kind.rpartition(".")[2]
    path = tmp_path / f"{kind.replace('.', '_')}.{extension}"
    if extension == "array_record":
        record = encode_record("k", image(0), {"txt": "caption 0"})
        write_array_record(tmp_path / "full.array_record", [record])
        write_array_record(path, [])
    elif extension == "parquet":
        write_images(tmp_path / "full.parquet", (0,))
        write_images(path, ())
    else:
        write_rows(tmp_path / "full.csv", [("caption 0", 0)])
        path.write_text("filepath,caption,class\n" if kind == "header.csv" else "")
    if kind == "zero.parquet":
        path.write_bytes(b"")
    pattern = tmp_path / f"*.{extension}"
    if kind in ("zero.parquet", "array_record"):  # may be what is left of one that was whole
        doubt = "cut off or never closed" if extension == "array_record" else "fetch or make"
        with pytest.raises(InputError, match=rf"1 of 2 shards are empty\n.*\n.*{doubt}"):
            open_at(pattern)
    with caplog.at_level(logging.WARNING, "flaxclip"):
        source = open_at(pattern, allow_empty_shards=True)
    assert "1 of 2 shards are empty: " in caplog.text
    assert source.empty_shards == 1
    assert _pairs(source) == [Pair(image(0), ("caption 0",))]
    assert source.name(0).startswith("full.")
    with pytest.raises(InputError, match=r"the only shard is empty|no rows in"):
        open_at(path, allow_empty_shards=True)


def test_tables_with_other_columns_and_broken_ones_are_refused(tmp_path):
    (tmp_path / "0.csv").write_text("image,text\na,b\n")
    (tmp_path / "1.csv").write_text("text,id\na,b\n")
    with pytest.raises(InputError, match=r"no column 'image' in .*1.csv, which has: text, id"):
        open_at(tmp_path / "*.csv")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(InputError, match=r"a.parquet is no table"):
        open_at(tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"no table .*none.csv"):
        open_at(tmp_path / "none.csv")


def test_a_folder_with_texts_beside_images(tmp_path, caplog):
    source = open_at(write_folder(tmp_path / "photos"))
    assert [source[n] for n in range(2)] == [
        Pair(image(1), ("text a",)),
        Pair(image(0), ("json b",)),
    ]
    assert source.fields(1) == {"caption": "json b", "score": 0.5}
    assert source.name(0) == "photos/a.png"
    assert "2 images in" in caplog.text
    assert "1 left out, without a text or a class" in caplog.text


def test_a_folder_of_classes(tmp_path):
    for number, name in enumerate(("great_auk", "cat", "cat")):
        (tmp_path / "birds" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "birds" / name / f"{number}.PNG").write_bytes(image(number))
    captions = CaptionConfig(templates=("a photo of a {}.",))
    source = open_at(tmp_path / "birds", captions=captions)
    assert [source[n].captions for n in range(3)] == [
        ("a photo of a cat.",),
        ("a photo of a cat.",),
        ("a photo of a great auk.",),
    ]
    assert source[2].image == image(0)
    assert source.name(2) == "birds/great_auk/0.PNG"


def test_what_other_programs_leave_in_a_folder_is_passed_over_and_counted(tmp_path, caplog):
    for number, name in enumerate(("cat/a", "cat/b", "dog/c")):
        (tmp_path / f".pets/{name}.png").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f".pets/{name}.png").write_bytes(image(number))
    leave_behind(tmp_path / ".pets")
    (tmp_path / ".pets/cat/again").symlink_to(tmp_path)  # lies in what it leads to
    captions = CaptionConfig(templates=("a {}",))
    source = open_at(tmp_path / ".pets", captions=captions)  # hidden, but named by the user
    assert [source[n].captions[0] for n in range(len(source))] == ["a cat", "a cat", "a dog"]
    assert source.left_out == {"leftovers_of_other_programs": 4}
    assert "3 images in" in caplog.text
    assert "4 passed over, hidden or left by other programs: ._a.png, ..." in caplog.text


def test_captions_can_be_read_while_images_are_missing(tmp_path):
    folder = open_at(write_folder(tmp_path / "photos"))
    table = open_at(write_rows(tmp_path / "table.csv", [("a cat", 0)]))
    (tmp_path / "photos/a.png").unlink()
    (tmp_path / "images/0.png").unlink()
    for source, caption in ((folder, "text a"), (table, "a cat")):
        with pytest.raises(UnreadableExampleError):
            source[0]
        assert source.captions(0)[0] == (caption,)


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match=r"no images with captions in .*\n1 files, 0 of them ima"):
        open_at(tmp_path)
    (tmp_path / "0.tar").write_bytes(b"")
    with pytest.raises(InputError, match=r"holds shards\ngive '.*/\*.tar'"):
        open_at(tmp_path)


def test_tfds_by_name_without_tensorflow(tmp_path, monkeypatch):
    folder = write_tfds(tmp_path, monkeypatch)
    source = open_at(f"tfds:{folder}")
    assert source[2] == Pair(image(2), ("one 2", "two 2"))
    assert source.fields(1) == {
        "captions/id": [1, 2],
        "captions/text": ["one 1", "two 1"],
        "label": "dog",
    }
    assert source.name(1).endswith("/train/1")
    with ThreadPoolExecutor(16) as pool:  # as it is read where it is remote
        assert list(pool.map(open_at(f"tfds:{folder}").__getitem__, [2] * 64)) == [source[2]] * 64
    assert not source.reads_remotely
    source._folder = "gs://bucket/toy/1.0.0"
    assert source.reads_remotely
    labels = CaptionConfig(("label",), templates=("a {}",))
    assert open_at(f"tfds:{folder}", captions=labels)[1].captions == ("a dog",)
    assert len(open_at(f"tfds:{folder}", split="train[:2]")) == 2
    with pytest.raises(InputError, match=r"no split 'test'.*\nit has: train"):
        open_at(f"tfds:{folder}", split="test")
    with pytest.raises(InputError, match=r"no feature 'title'\nit has: .*captions/text \(Text\)"):
        open_at(f"tfds:{folder}", captions=CaptionConfig(("title",)))
    with pytest.raises(InputError, match=r"no data set nothing in .*\nprepare it:.* tfds build"):
        open_at("tfds:nothing")
    with pytest.raises(InputError, match=r"is not a data set that TFDS has prepared"):
        open_at(f"tfds:{tmp_path}")


def test_remote_tables_folders_and_array_records(tmp_path):
    bucket = fsspec.filesystem("memory")
    write_folder(tmp_path / "photos")
    write_rows(tmp_path / "rows.csv", ROWS)
    write_array_record(tmp_path / "a.array_record", [encode_record("k", b"i", {"txt": "t"})] * 3)
    for path in tmp_path.rglob("*.*"):
        if path.is_file():
            bucket.pipe_file(f"memory://corpora/{path.relative_to(tmp_path)}", path.read_bytes())
    for name in ("photos", "rows.csv", "a.array_record", "*.array_record"):
        local, remote = open_at(tmp_path / name), open_at(f"memory://corpora/{name}")
        assert [remote[n] for n in range(len(remote))] == [local[n] for n in range(len(local))]


def _pairs(source):
    return [source[index] for index in range(len(source))]


def test_copies_in_other_processes_read_the_same(tmp_path, monkeypatch):
    write_array_record(tmp_path / "a.array_record", [encode_record("k", b"i", {"txt": "t"})] * 3)
    sources = [
        open_at(tmp_path / "a.array_record"),
        open_at(write_rows(tmp_path / "rows.csv", ROWS)),
        open_at(write_folder(tmp_path / "photos")),
        open_at(f"tfds:{write_tfds(tmp_path, monkeypatch)}"),
    ]
    expected = [_pairs(source) for source in sources]  # files are open when they are sent
    assert max(len(pickle.dumps(source)) for source in sources) < 3000
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(_pairs, sources) == expected
    for source in sources:
        for index in (-1, len(source)):
            with pytest.raises(IndexError, match=f"example {index} of 3|example {index} of 2"):
                source[index]


def test_several_corpora_in_one_path_are_refused(tmp_path):
    for paths in (("a.tar", "b.csv"), ("scenes", "a.tar"), (str(tmp_path), str(tmp_path))):
        with pytest.raises(InputError, match="names several corpora"):
            open_at(*paths)


def test_a_mixture_beside_a_path_is_refused():
    with pytest.raises(InputError, match=r"data.mixture and data.path, or data.captions, are both"):
        DataConfig(path=("a.tar",), mixture=(MixtureCorpus(),))
    with pytest.raises(InputError, match=r"data.mixture and data.index are both given"):
        DataConfig(mixture=(MixtureCorpus(("a.tar",)),), index="index")


def test_a_mixture_survives_json_and_its_corpora_keep_their_captions(tmp_path):
    labels = CaptionConfig(("class",), templates=("a {}",), class_names=("cat", "dog"))
    table = str(write_rows(tmp_path / "pairs.csv", ROWS))
    photos = str(write_folder(tmp_path / "photos"))
    mixture = (MixtureCorpus((table,), captions=labels, weight=3), MixtureCorpus((photos,)))
    config = DataConfig(mixture=mixture)
    assert from_json(DataConfig, to_json(config), "config.json") == config
    assert config.corpora == f"3 x {table} + 1 x {photos}"
    source = open_source(config, 32)
    assert [source[n].captions[0] for n in range(5)] == [
        *("a cat", "a dog", "a dog"),
        *("text a", "json b"),
    ]


FIELDS = {"txt": "t", "alt": ["a", "b"], "blank": " ", "n": 3}


@pytest.mark.parametrize(
    ("config", "shares"),
    [
        (CaptionConfig(), {"t": 1}),
        (CaptionConfig(("alt",)), {"a": 0.5, "b": 0.5}),
        (CaptionConfig(("txt", "alt")), {"t": 0.5, "a": 0.25, "b": 0.25}),
        (CaptionConfig(("txt", "alt"), (1, 9)), {"t": 0.1, "a": 0.45, "b": 0.45}),
        (CaptionConfig(("txt", "blank", "none"), (1, 5, 5)), {"t": 1}),
        (CaptionConfig(templates=("{}!", "{} {}")), {"t!": 0.5, "t t": 0.5}),
    ],
)
def test_captions_are_drawn_as_often_as_their_weights_say(config, shares):
    from flaxclip.data.sources.captions import make_captions

    pair = Pair(b"", *make_captions(FIELDS, config, ("txt", "caption")))
    rng = np.random.default_rng(0)
    drawn = [pair.captions[draw_caption(pair, lambda: rng)] for _ in range(4000)]
    found = {caption: drawn.count(caption) / 4000 for caption in set(drawn)}
    assert found == pytest.approx(shares, abs=0.03)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keys": ("a", "b"), "weights": (1.0,)}, "1 numbers for 2 keys"),
        ({"keys": ("a",), "weights": (0.0,)}, "numbers above 0"),
        ({"templates": ("a photo",)}, "has no {}"),
    ],
)
def test_captions_that_cannot_be_meant_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        CaptionConfig(**options)
