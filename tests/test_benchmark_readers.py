import concurrent.futures
import dataclasses
import io
import json
import tarfile

import numpy as np
import PIL.Image
import pyarrow
import pyarrow.parquet
import pytest
import tyro

from flaxclip.benchmark.command import Command
from flaxclip.benchmark.datasets import MissingDataError, image_batches
from flaxclip.benchmark.embeddings import Embedder
from flaxclip.benchmark.kept_embeddings import Embedded
from flaxclip.benchmark.methods.choice import associate_task
from flaxclip.benchmark.own_images import own_task, split_labels
from flaxclip.benchmark.prompts import choose_wording, read_prompts
from flaxclip.benchmark.readers import open_test
from flaxclip.benchmark.readers.parquet import ParquetImages
from flaxclip.benchmark.readers.wds import read_wds
from flaxclip.benchmark.tasks import DataSource, Prompts, all_suites, all_tasks, find_tasks
from flaxclip.data.images.eval_transform import SizedTransform
from flaxclip.data.sources.source import UnreadableExampleError
from flaxclip.errors import InputError
from flaxclip.models.inputs import ImageTransform
from flaxclip.zero_shot.class_prompts import class_prompts
from tests.helpers.image_tars import labelled, png, write_wds
from tests.helpers.leftovers import leave_behind


def open_own(name, tmp_path):
    (task,) = find_tasks([name])
    return task, open_test(task, tmp_path, 16)[1]


def shades(images):
    (batch,) = image_batches(images, SizedTransform(16), len(images))
    return batch.images[:, 0, 0, 0].tolist()


def test_scores_are_measured_on_images_prepared_as_the_model_asks(tmp_path):
    """Black under full transparency; the loaders behind published scores uncover it."""
    file = io.BytesIO()
    PIL.Image.new("LA", (16, 16)).save(file, "PNG")
    root = write_wds(tmp_path / "wds_clear", [{"png": file.getvalue(), "cls": b"0"}] * 2)
    _, data = open_own(f"wds:{root}", tmp_path)
    for transparency, expected in (("dropped", 0), ("white", 255)):
        transform = SizedTransform(16, ImageTransform(transparency=transparency))
        (batch,) = image_batches(data.images, transform, 2)
        assert (batch.images == expected).all()


def test_a_webdataset_is_read_shard_by_shard(tmp_path):
    task, data = open_own(f"wds:{write_wds(tmp_path / 'wds_pets', labelled())}", tmp_path)
    assert task.name == "pets"
    assert shades(data.images) == [0, 20, 40, 60, 10, 30, 50]
    assert data.labels.tolist() == [0, 2, 1, 0, 1, 0, 2]
    assert data.images.name(4) == "1.tar/s0000001"
    wording = choose_wording(task, data, "clip_benchmark")
    assert wording.class_names == ("cat", "dog", "owl")
    assert wording.templates == ("a photo of a {}.",)
    assert wording.names_from == "data set"


def test_several_captions_and_several_labels(tmp_path):
    captions = [{"png": png(i), "txt": b"one\ntwo" if i else b"alone"} for i in range(2)]
    root = write_wds(tmp_path / "wds_flickr8k", captions, shards=1)
    _, data = open_test(all_tasks()["flickr8k"], tmp_path, 16)
    assert data.captions == ("alone", "one", "two")
    assert data.pairs.tolist() == [[0, 0], [1, 1], [1, 2]]

    buffer = io.BytesIO()
    np.save(buffer, np.eye(20, dtype=np.int64)[3] + np.eye(20, dtype=np.int64)[5])
    write_wds(tmp_path / "wds_voc2007_multilabel", [{"png": png(0), "npy": buffer.getvalue()}], 1)
    (root / "classnames.txt").unlink()
    _, data = open_test(all_tasks()["voc2007_multilabel"], tmp_path, 16)
    assert np.flatnonzero(data.labels[0]).tolist() == [3, 5]


def broken_count(root):
    (root / "test/nshards.txt").write_text("two")


def lost_shard(root):
    (root / "test/1.tar").unlink()


def cut_shard(root):
    path = root / "test/1.tar"
    path.write_bytes(path.read_bytes()[:700])


def no_label(root):
    write_wds(root, [{"png": png(0)}, *labelled(3)])


def no_number(root):
    write_wds(root, [{"png": png(0), "cls": b"cat"}, *labelled(3)])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (broken_count, "holds 'two'"),
        (lost_shard, "1.tar is missing"),
        (cut_shard, "1.tar is damaged"),
        (no_label, r"has no \.cls"),
        (no_number, "holds b'cat'"),
    ],
)
def test_a_damaged_webdataset_is_refused(tmp_path, damage, message):
    root = write_wds(tmp_path / "wds_x", labelled())
    damage(root)
    with pytest.raises(InputError, match=message):
        open_own(f"wds:{root}", tmp_path)


def write_members(root, members):
    """A set of one tar: of each member its name, and its data or the name that it is linked to."""
    write_wds(root, [], shards=1)
    with tarfile.open(root / "test/0.tar", "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            if isinstance(data, str):
                info.type, info.linkname = tarfile.LNKTYPE, data
                tar.addfile(info)
            else:
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return root


@pytest.mark.parametrize("values", [[0.0, 0.0], [0.0, 0.0, np.nan]])
def test_a_column_that_rows_do_not_have_is_told(values, tmp_path):
    task = dataclasses.replace(all_tasks()["dollar_street"], group=2)
    row = io.BytesIO()
    np.save(row, np.array(values))
    write_wds(tmp_path / "wds_x", [{"png": png(0), "cls": b"0", "npy": row.getvalue()}], shards=1)
    source = DataSource("wds", str(tmp_path / "wds_x"))
    with pytest.raises(InputError, match=r"s0000000\.npy is \[0.*\]\nthis task reads number 3"):
        read_wds(task, source, "test", tmp_path, 16)


@pytest.mark.parametrize("prefix", ["", "./", "imagenet.v2/", "./a.b/c.d/"])
def test_keys_end_at_the_first_dot_of_the_last_part_of_a_name(tmp_path, prefix):
    pairs = [(f"{prefix}s{i}.{e}", d) for i, r in enumerate(labelled(2)) for e, d in r.items()]
    _, data = open_own(f"wds:{write_members(tmp_path / 'wds_x', pairs)}", tmp_path)
    assert data.labels.tolist() == [0, 1]
    assert shades(data.images) == [0, 10]
    assert data.left_out == {}
    assert data.images.name(1) == f"0.tar/{prefix}s1"


def test_members_that_are_no_part_of_a_image_are_counted(tmp_path):
    good = [("s0.png", png(7)), ("s0.cls", b"2"), ("s0.json", b"{}"), ("README.md", b"hello")]
    odd = [("s.v2.png", png(8)), ("s.v2.cls", b"1"), ("._s0.png", b"\0"), ("._s0.cls", b"\0"),
           ("__MACOSX/s0.png", b"\0"), ("s1.png", "s0.png"), ("s1.cls", "s0.cls")]  # fmt: skip
    dotted = write_members(tmp_path / "wds_d", odd[:2])
    with pytest.raises(InputError, match=r"no images in .*\n.*: 1 names with further dots"):
        open_own(f"wds:{dotted}", tmp_path)
    _, data = open_own(f"wds:{write_members(tmp_path / 'wds_x', good + odd)}", tmp_path)
    assert data.labels.tolist() == [2]
    assert shades(data.images) == [7]
    assert data.left_out == {
        "names_with_further_dots": 1,
        "leftovers_of_other_programs": 3,
        "hard_links": 2,
    }
    lonely = write_members(tmp_path / "wds_y", [*good, ("s1.png", png(1)), ("s1.cls", "s0.cls")])
    with pytest.raises(InputError, match=r"s1 has no \.cls\n.*left out of the tars: 1 hard links"):
        open_own(f"wds:{lonely}", tmp_path)
    twice = write_members(tmp_path / "wds_z", [*good, ("s0.cls", b"1")])
    with pytest.raises(InputError, match=r"0\.tar has s0\.cls twice"):
        open_own(f"wds:{twice}", tmp_path)


def test_files_of_a_webdataset_that_cannot_be_understood_are_refused(tmp_path):
    root = write_members(tmp_path / "wds_x", [("s0.png", png(0)), ("s0.npy", b"x")])
    with pytest.raises(InputError, match=r"s0\.npy is no NumPy array"):
        open_own(f"wds-multilabel:{root}", tmp_path)
    root = write_members(tmp_path / "wds_x", [("s0.png", png(0)), ("s0.txt", b"caf\xe9")])
    with pytest.raises(InputError, match=r"s0\.txt is not UTF-8"):
        open_own(f"wds-retrieval:{root}", tmp_path)


def test_two_sets_of_one_name_are_refused_rather_than_one_of_them_lost(tmp_path):
    assert len(find_tasks(["folder:a/pets", "folder:a/pets", "folder:a/birds"])) == 2
    with pytest.raises(InputError, match="both folder:a/pets and wds:b/wds_pets are called 'pets'"):
        find_tasks(["folder:a/pets", "wds:b/wds_pets"])


def write_pets(root):
    for name, shade in (("cat/a", 1), ("cat/b", 2), ("dog/c", 3)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.png").write_bytes(png(shade))
    return root


def test_a_folder_named_from_within_it_has_its_own_name(tmp_path, monkeypatch):
    (tmp_path / "pets/cats").mkdir(parents=True)
    for here, path, name in (
        ("pets", ".", "pets"),
        ("pets/cats", "..", "pets"),
        ("/", ".", "folder"),
    ):
        monkeypatch.chdir(tmp_path / here)
        (task,) = find_tasks([f"folder:{path}"])
        assert (task.name, task.sources[0].name) == (name, path)
    for name, message in (
        ("folder:", "task 'folder:' names no data\nwrite folder:PATH"),
        ("crossmodal3600:", "task 'crossmodal3600:' names no language"),
    ):
        with pytest.raises(InputError, match=message):
            find_tasks([name])


def test_what_other_programs_leave_is_no_image_and_no_class(tmp_path):
    root = write_pets(tmp_path / ".cache/pets")  # hidden, but named by the user
    leave_behind(root)
    _, data = open_own(f"folder:{root}", tmp_path)
    assert data.class_names == ("cat", "dog")
    assert shades(data.images) == [1, 2, 3]
    assert data.left_out == {"leftovers_of_other_programs": 4}
    (root / "e.png").write_bytes(png(5))
    _, data = open_own(f"folder:{root}", tmp_path)
    assert data.left_out["images_beside_the_classes"] == 1
    task = own_task(root, ())
    assert task.prompts["openai"].class_names == ("cat", "dog")


def test_a_link_to_nowhere_is_an_unreadable_image(tmp_path):
    root = write_pets(tmp_path / "pets")
    (root / "dog/d.png").symlink_to(tmp_path / "unmounted.png")
    _, data = open_own(f"folder:{root}", tmp_path)
    (batch,) = image_batches(data.images, SizedTransform(16), 4)
    assert batch.unreadable == ("dog/d.png: No such file or directory",)


def test_pairs_whose_images_are_missing_keep_their_captions(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "0.png").write_bytes(png(0))
    (tmp_path / "pairs.csv").write_text("image,caption\n0.png,a cat\n1.png,a dog\n")
    _, data = open_own(f"retrieval:{tmp_path / 'pairs.csv'}", tmp_path)
    assert data.captions == ("a cat", "a dog")
    (batch,) = image_batches(data.images, SizedTransform(16), 2)
    assert len(batch.unreadable) == 1
    leave_behind(write_pets(tmp_path / "pets"))
    (tmp_path / "pets/cat/a.txt").write_text("one cat")
    _, data = open_own(f"retrieval:{tmp_path / 'pets'}", tmp_path)
    assert data.left_out == {"images_without_text_or_class": 2, "leftovers_of_other_programs": 4}
    before = data.images.identity
    (tmp_path / "pets/cat/a.png").write_bytes(png(200) + b"another image")
    assert open_own(f"retrieval:{tmp_path / 'pets'}", tmp_path)[1].images.identity != before


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["cat,dog"], ("cat", "dog")),
        (["cat, dog ,"], ("cat", "dog")),
        (["cat, black", "dog"], ("cat, black", "dog")),
        (["cat, black", "--labels", "dog"], ("cat, black", "dog")),
    ],
)
def test_labels_may_hold_commas_where_each_is_a_value(arguments, names):
    command = tyro.cli(Command, args=["run", "--images", "x", "--labels", *arguments])
    assert split_labels(command.labels) == names


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["cat,", "dog"], r"--labels 'cat,' 'dog': one ends with a comma"),
        (["cat"], "--labels 'cat' names 1"),
        (["cat, black", "cat, black"], "two classes are named 'cat, black'"),
    ],
)
def test_labels_that_cannot_be_meant_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        split_labels([given])


def test_folders_are_classes(tmp_path):
    for name, shade in (("red_fox", 9), ("owl", 5)):
        (tmp_path / "zoo/test" / name).mkdir(parents=True)
        (tmp_path / "zoo/test" / name / "1.png").write_bytes(png(shade))
    _, data = open_own(f"folder:{tmp_path / 'zoo'}", tmp_path)
    assert data.class_names == ("owl", "red fox")
    assert shades(data.images) == [5, 9]
    (tmp_path / "zoo/test/empty").mkdir()
    with pytest.raises(InputError, match="class 'empty' has no images"):
        open_own(f"folder:{tmp_path / 'zoo'}", tmp_path)


@pytest.mark.parametrize("labels", [[1, 0, 1], ["dog", "cat", "dog"]])
def test_parquet_as_hugging_face_stores_it(tmp_path, labels):
    table = pyarrow.table(
        {"image": [{"bytes": png(i), "path": None} for i in range(3)], "label": labels}
    )
    info = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pyarrow.parquet.write_table(table, tmp_path / "pets.parquet", row_group_size=2)
    task, data = open_own(f"parquet:{tmp_path / 'pets.parquet'}", tmp_path)
    assert task.name == "pets"
    assert data.labels.tolist() == [1, 0, 1]
    assert data.class_names == ("cat", "dog")
    assert shades(data.images) == [0, 1, 2]
    (tmp_path / "set/.ipynb_checkpoints").mkdir(parents=True)
    (tmp_path / "pets.parquet").rename(tmp_path / "set/test-0.parquet")
    for leftover in ("._test-0.parquet", ".ipynb_checkpoints/test-checkpoint.parquet"):
        (tmp_path / "set" / leftover).write_bytes(b"\0\5\x16\7")
    assert len(open_own(f"parquet:{tmp_path / 'set'}", tmp_path)[1].labels) == 3


def hf_images(shades):
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    return pyarrow.array([{"bytes": png(shade), "path": None} for shade in shades], kind)


def test_parquet_files_may_differ_in_columns_that_nobody_asks_for(tmp_path):
    words = pyarrow.array(["owl", "cat"]).dictionary_encode()
    other = pyarrow.array(["dog", "dog"]).dictionary_encode()
    columns = (
        {"image": hf_images((0, 1)), "label": words, "source": ["a", "b"]},
        {"source": pyarrow.nulls(2), "label": other, "image": hf_images((2, 3))},
    )
    (tmp_path / "pets").mkdir()
    for number, of_file in enumerate(columns):
        pyarrow.parquet.write_table(
            pyarrow.table(of_file), tmp_path / f"pets/test-{number}.parquet"
        )
    _, data = open_own(f"parquet:{tmp_path / 'pets'}", tmp_path)
    assert data.class_names == ("cat", "dog", "owl")
    assert data.labels.tolist() == [2, 0, 1, 1]
    assert shades(data.images) == [0, 1, 2, 3]
    for missing in ("image", "label"):
        left = {name: column for name, column in columns[1].items() if name != missing}
        pyarrow.parquet.write_table(pyarrow.table(left), tmp_path / "pets/test-1.parquet")
        with pytest.raises(InputError, match=f"test-1.parquet has no column '{missing}'\nit has:"):
            open_own(f"parquet:{tmp_path / 'pets'}", tmp_path)
    (tmp_path / "pets/test-1.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(InputError, match=r"test-1.parquet is no table"):
        open_own(f"parquet:{tmp_path / 'pets'}", tmp_path)
    (tmp_path / "pets/test-1.parquet").unlink()
    pyarrow.parquet.write_table(pyarrow.table(columns[0])[:0], tmp_path / "pets/test-0.parquet")
    with pytest.raises(InputError, match=r"no rows in .*test-0.parquet"):
        open_own(f"parquet:{tmp_path / 'pets'}", tmp_path)


def test_images_in_parquet_are_read_some_at_a_time_in_any_order(tmp_path):
    table = pyarrow.table({"image": hf_images(range(60))})
    paths = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
    pyarrow.parquet.write_table(table[:40], paths[0], row_group_size=25)
    pyarrow.parquet.write_table(table[40:], paths[1])
    images = ParquetImages(paths, "image", batch_bytes=300)  # three of them
    order = [*range(60), 59, 0, 30, 24, 25, 12, 13, 41, 40, *range(59, -1, -7)]
    assert [images[index] for index in order] == [png(index) for index in order]
    held = [files for *_, files in images._recent]
    assert 0 < sum(map(len, held)) <= 4 * 4
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(images.__getitem__, order * 3)) == [png(i) for i in order * 3]
    assert images.name(45) == "1.parquet/row group 0, row 5"


def test_a_column_of_paths_in_place_of_images_is_told(tmp_path):
    table = pyarrow.table({"image": [{"bytes": None, "path": "/a/0.png"}], "label": ["cat"]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    _, data = open_own(f"parquet:{tmp_path / 'a.parquet'}", tmp_path)
    with pytest.raises(UnreadableExampleError, match=r"no bytes but the path.*embed_table_storage"):
        data.images[0]


def test_sugarcrepe_and_winoground(tmp_path):
    root = tmp_path / "sugar_crepe"
    (root / "val2017").mkdir(parents=True)
    (root / "val2017/7.png").write_bytes(png(7))
    item = {"filename": "7.png", "caption": "a dog", "negative_caption": "a cat"}
    (root / "swap_obj.json").write_text(json.dumps({"0": item, "4": item}))
    _, data = open_test(all_tasks()["sugarcrepe_swap_obj"], tmp_path, 16)
    assert data.captions[data.caption_rows[1, 1]] == "a cat"
    assert data.image_rows.tolist() == [[0], [1]]

    columns = {f"image_{i}": [{"bytes": png(10 * i + j)} for j in range(3)] for i in range(2)}
    columns |= {f"caption_{i}": [f"caption {i} {j}" for j in range(3)] for i in range(2)}
    (tmp_path / "winoground").mkdir()
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "winoground/test-0.parquet")
    _, data = open_test(all_tasks()["winoground"], tmp_path, 16)
    assert [data.captions[row] for row in data.caption_rows[2]] == ["caption 0 2", "caption 1 2"]
    assert np.array(shades(data.images))[data.image_rows[2]].tolist() == [2, 12]

    columns["caption_1"][1] = None
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "winoground/test-0.parquet")
    with pytest.raises(InputError, match=r"'caption_1' of row 1 is None\nexpected a text"):
        open_test(all_tasks()["winoground"], tmp_path, 16)
    for text, message in (("{", "is no JSON"), ("[1]", "no list of objects"), ("[]", "is empty")):
        (root / "swap_obj.json").write_text(text)
        with pytest.raises(InputError, match=message):
            open_test(all_tasks()["sugarcrepe_swap_obj"], tmp_path, 16)


def test_tensorflow_datasets_without_tensorflow(tmp_path):
    # What `tfds build` leaves: features, info, and ArrayRecord files of tf.train.Example.
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

    folder = tmp_path / "toy/1.0.0"
    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=["cat", "dog"])}
    )
    features.save_config(str(folder))
    writer = ArrayRecordWriter(str(folder / "toy-test.array_record-00000-of-00001"), "group_size:1")
    for index in range(3):
        example = tf_example_pb2.Example(
            features=tf_feature_pb2.Features(
                feature={
                    "image": tf_feature_pb2.Feature(
                        bytes_list=tf_feature_pb2.BytesList(value=[png(index)])
                    ),
                    "label": tf_feature_pb2.Feature(
                        int64_list=tf_feature_pb2.Int64List(value=[index % 2])
                    ),
                }
            )
        )
        writer.write(example.SerializeToString())
    writer.close()
    info = {
        "name": "toy", "version": "1.0.0", "fileFormat": "array_record",
        "splits": [{
            "name": "test", "shardLengths": ["3"], "numBytes": "300",
            "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        }],
    }  # fmt: skip
    (folder / "dataset_info.json").write_text(json.dumps(info))
    task, data = open_own("tfds:toy", tmp_path)
    assert data.labels.tolist() == [0, 1, 0]
    assert data.class_names == ("cat", "dog")
    assert shades(data.images) == [0, 1, 2]
    assert choose_wording(task, data, "openai").templates_from == "default"


def test_what_is_not_there_says_how_to_get_it(tmp_path):
    with pytest.raises(MissingDataError) as error:
        open_test(all_tasks()["cifar10"], tmp_path, 16)
    message = str(error.value)
    assert "hf download clip-benchmark/wds_vtab-cifar10" in message
    assert "tfds build cifar10 --file_format=array_record" in message


def test_suites_name_tasks_whose_words_fit():
    tasks = all_tasks()
    lengths = {name: len(suite) for name, suite in all_suites().items()}
    assert lengths["clip27"] == 27
    assert lengths["vtab+"] == 36
    assert lengths["datacomp38"] == 38
    for suite in all_suites().values():
        assert set(suite) <= set(tasks)
    for task in tasks.values():
        for prompts in task.prompts.values():
            if prompts.class_names is not None and task.classes is not None:
                assert len(prompts.class_names) == task.classes, task.name
            assert all("{}" in template for template in prompts.templates or ())
    cifar = tasks["cifar10"].prompts
    assert cifar["openai"].class_names[:2] == ("airplane", "automobile")
    assert len(cifar["clip_benchmark"].templates) == 18
    differ = tasks["resisc45"].prompts
    assert [len(differ[name].templates) for name in ("openai", "clip_benchmark")] == [18, 4]


def test_words_are_put_into_the_order_of_the_labels(tmp_path):
    root = write_wds(tmp_path / "wds_x", labelled())
    task, data = open_own(f"wds:{root}", tmp_path)

    def wording(*names):
        prompts = {"openai": Prompts(names, ("a {}",))}
        return choose_wording(task.__class__(**vars(task) | {"prompts": prompts}), data, "openai")

    assert wording("Owl", "Cat", "Dog").class_names == ("Cat", "Dog", "Owl")
    assert wording("kitten", "dog", "bird").class_names == ("kitten", "dog", "bird")
    with pytest.raises(InputError, match="class 'dog' is number 2"):
        wording("kitten", "bird", "dog")
    with pytest.raises(InputError, match="2 class names, but the data set has 3 classes"):
        wording("cat", "dog")
    unnamed = data._replace(class_names=None)
    with pytest.raises(InputError, match="label 2 of image 1 is out of range"):
        choose_wording(task, unnamed, "openai", Prompts(("cat", "dog")))
    notes = choose_wording(task, unnamed, "openai", Prompts(("cat", "dog", "owl", "eel"))).notes
    assert "1 of 4 classes have no image" in notes[0]
    assert "share a name" in wording("pet", "pet", "owl").notes[0]


def test_a_users_own_words_go_first(tmp_path):
    root = write_wds(tmp_path / "wds_x", labelled())
    task, data = open_own(f"wds:{root}", tmp_path)
    words = {
        "both": {"class_names": ["a > cat", ["dog", "hound"], "owl"], "templates": ["my {}"]},
        "templates": ["a {c}", "the {c}"],
        "prompts": {"cat": ["it purrs"], "dog": ["it barks", "it bites"], "owl": ["it hoots"]},
        "lacks one": {"cat": ["it purrs"], "dog": ["it barks"]},
    }
    (tmp_path / "words.json").write_text(json.dumps(words))
    own = read_prompts(tmp_path / "words.json")

    def prompts(name):
        wording = choose_wording(task, data, "openai", own[name])
        assert wording.templates_from == "prompt file"
        return class_prompts(wording.class_names, wording.templates)

    assert prompts("both") == [("my cat",), ("my dog", "my hound"), ("my owl",)]
    assert prompts("templates")[1] == ("a dog", "the dog")
    assert prompts("prompts")[1] == ("it barks", "it bites")
    with pytest.raises(InputError, match=r"1 classes have no prompts of their own, e.g. 'owl'"):
        prompts("lacks one")
    with pytest.raises(InputError, match="asks for a parent, but 'dog' has none"):
        class_prompts(("a > cat", "dog"), ("a {}, a kind of {parent}",))
    assert class_prompts(("a > cat",), ("a {}, a kind of {parent}",)) == [("a cat, a kind of a",)]
    (tmp_path / "words.json").write_text('{"x": {"class_names": [1, 2]}}')
    with pytest.raises(InputError, match=r"words\.json: x: found \[1\]"):
        read_prompts(tmp_path / "words.json")


def test_associations_as_winogavil_asks_for_them(tmp_path):
    (tmp_path / "winogavil").mkdir()
    images = [[{"bytes": png(10 * row + at)} for at in range(3)] for row in range(2)]
    columns = {
        "cue": ["Owl", "dog"],
        "candidates": [["a", "b", "c"], ["d", "e", "f"]],
        "associations": [["c"], ["f", "d"]],
        "candidate_images": images,
    }
    path = tmp_path / "winogavil/test-0.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    _, data = open_test(all_tasks()["winogavil"], tmp_path, 16)
    assert data.cues == ("An owl", "A dog")
    assert data.item_of.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.goes_with_cue.tolist() == [False, False, True, True, False, True]
    assert shades(data.images) == [0, 1, 2, 10, 11, 12]

    class Known(Embedder):
        """One image of the first item is right, one of two of the second."""

        def __init__(self):
            pass

        def embed_texts(self, texts):
            return Embedded(np.ones((len(texts), 1), np.float32), ())

        def embed_images(self, images):
            z = [[0.1], [0.2], [0.3], [0.9], [0.8], [0.1]]
            return Embedded(np.array(z, np.float32), ())

    score = associate_task(Known(), data).scores["jaccard"]
    assert score.value == pytest.approx((1 + 1 / 3) / 2)
    # One of three: 1/3. Two of three: certainly one or two right, 2/3 * 1/3 + 1/3 * 1.
    assert score.chance == pytest.approx((1 / 3 + 5 / 9) / 2)
