"""Sets that tensorflow-datasets has prepared, as TFRecord or ArrayRecord, without TensorFlow."""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flaxclip.benchmark.datasets import Labelled, MissingDataError
from flaxclip.benchmark.tasks import DataSource, Task
from flaxclip.data.sources.tf_records import TfRecords
from flaxclip.errors import InputError


def _threshold_label(value: float, thresholds: tuple[float, ...]) -> int:
    return int(np.searchsorted(thresholds, value, side="left")) - 1


def _kitti_distance(example: dict[str, Any]) -> int:
    """Distance in metres of the nearest car, van or truck, in four classes: CLIP_benchmark."""
    objects = example["objects"]
    depths = np.asarray(objects["location"]).reshape(-1, 3)[np.asarray(objects["type"]) < 3, 2]
    return _threshold_label(depths.min(initial=1000.0), (-100.0, 8.0, 20.0, 999.0))


def _clevr_distance(example: dict[str, Any]) -> int:
    """Distance of the nearest object in six classes: Zhai et al. 2019 (VTAB)."""
    depth = np.asarray(example["objects"]["pixel_coords"])[:, 2].min()
    return _threshold_label(depth, (0.0, 8.0, 8.5, 9.0, 9.5, 10.0))


def _clevr_count(example: dict[str, Any]) -> int:
    """Three to ten objects: Zhai et al. 2019 (VTAB)."""
    return len(example["objects"]["pixel_coords"]) - 3


def _voc_presence(example: dict[str, Any]) -> np.ndarray:
    return np.isin(np.arange(20), example["labels"])


_DERIVED: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    "kitti_distance": ("objects", _kitti_distance),
    "clevr_distance": ("objects", _clevr_distance),
    "clevr_count": ("objects", _clevr_count),
    "voc_presence": ("labels", _voc_presence),
}
"""Labels that are computed: from which feature, and how."""


class TfRecordRows:
    """The examples of a split in TFRecord files."""

    def __init__(self, builder: Any, split: str, decoders: Mapping[str, Any]):
        """Open the files.

        Raises:
            InputError: one is missing, or does not hold as many examples as the set's own account.
        """
        self._features, self._decoders = builder.info.features, decoders
        self._places: list[tuple[TfRecords, int]] = []
        for part in builder.info.splits[split].file_instructions:
            path = Path(part.filename)
            if not path.is_file():
                raise InputError(f"{path} is missing\nprepare the set again, or fetch it again")
            records = TfRecords(path)
            if len(records) != part.examples_in_shard:
                raise InputError(
                    f"{path} holds {len(records):,} examples, {part.examples_in_shard:,} according "
                    "to dataset_info.json\nprepare the set again, or fetch it again"
                )
            stop = len(records) if part.take < 0 else part.skip + part.take
            self._places += [(records, number) for number in range(part.skip, stop)]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        records, number = self._places[index]
        return self._features.deserialize_example_np(records[number], decoders=self._decoders)


class TfdsImages:
    """A feature of encoded images; of a video, the middle frame."""

    def __init__(self, rows: Any, feature: str, identity: str):
        self._rows, self._feature, self.identity = rows, feature, identity

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> bytes:
        value = self._rows[index][self._feature]
        return value if isinstance(value, bytes) else value[len(value) // 2]

    def name(self, index: int) -> str:
        """Position in the split."""
        return f"example {index}"


def read_tfds(
    task: Task, source: DataSource, split: str, data_dir: Path, image_size: int
) -> Labelled:
    """One split of a prepared set, from `data_dir` or TFDS's own folder.

    Raises:
        MissingDataError: it has not been prepared.
        InputError: it is in another file format, or has no such feature.
    """
    del image_size
    # Slow to import, and needed by few.
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.read_only_builder import builder_from_files

    builder, own = None, Path(source.name)
    if (own / "dataset_info.json").is_file():
        builder = tfds.builder_from_directory(source.name)
    # A folder of versions is found by its name in the one that it lies in.
    places = [(source.name, data_dir), (source.name, tfds.core.constants.DATA_DIR)]
    if own.is_dir():
        places.insert(0, (own.name, own.absolute().parent))
    for name, folder in places:
        # Not `tfds.builder`, which asks the network about a set that it does not find.
        with contextlib.suppress(tfds.core.DatasetNotFoundError):
            builder = builder or builder_from_files(name, data_dir=str(folder))
    if builder is None:
        raise MissingDataError(
            f"no {source.name} in {data_dir}: {task.title}, from tensorflow-datasets\n"
            f"  measure it from there, if it is free to copy: --data gs://tfds-data/datasets\n"
            f"  or pip install tensorflow tensorflow-datasets && tfds build {source.name} "
            f"--file_format=array_record --data_dir={data_dir}"
        )
    found = builder.data_dir
    formats = tfds.core.FileFormat.ARRAY_RECORD, tfds.core.FileFormat.TFRECORD
    if builder.info.file_format not in formats:
        raise InputError(
            f"{found} is prepared as {builder.info.file_format.value}, which is not read\n"
            f"prepare it again: tfds build {source.name} --file_format=array_record"
        )
    features = builder.info.features
    needed, derive = _DERIVED.get(
        source.label, (source.label, lambda example: example[source.label])
    )
    for feature in (source.image, needed):
        if feature not in features:
            raise InputError(f"{found} has no feature {feature!r}\nit has: {', '.join(features)}")
    try:
        # Images stay encoded: `rows` is for them, and the labels do not need them.
        decoders = {source.image: tfds.decode.SkipDecoding()}
        if builder.info.file_format == tfds.core.FileFormat.TFRECORD:
            rows = TfRecordRows(builder, split, decoders)
        else:
            rows = builder.as_data_source(split, decoders=decoders)
    except InputError:
        raise
    except (ValueError, KeyError) as error:
        raise InputError(
            f"{found} has no split {split!r}: {error}\nit has: {', '.join(builder.info.splits)}"
        ) from None
    labels = [derive(rows[index]) for index in range(len(rows))]
    names = getattr(dict(features).get(source.label), "names", None)
    identity = f"tfds {found} {split} {source.image}"
    return Labelled(
        TfdsImages(rows, source.image, identity), np.array(labels), names and tuple(names)
    )
