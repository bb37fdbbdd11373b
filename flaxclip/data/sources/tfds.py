"""A data set of tensorflow-datasets, prepared as ArrayRecord, read without TensorFlow.

    python -m flaxclip.train --data.path tfds:coco_captions --data.split train

Features have their names; a nested one has those of all levels, with slashes: `captions/text`. A
class has its name for a value.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from flaxclip.data.sources.captions import DEFAULT_CAPTIONS, CaptionConfig, make_captions, utf8
from flaxclip.data.sources.source import Pair, UnreadableExampleError
from flaxclip.data.storage.file_systems import is_remote
from flaxclip.data.storage.files import is_folder
from flaxclip.errors import InputError


class TfdsSource:
    """A `Source` over one split."""

    def __init__(
        self,
        name: str,
        split: str = "train",
        image_key: str | None = None,
        captions: CaptionConfig = DEFAULT_CAPTIONS,
    ) -> None:
        """Open the prepared data set.

        Args:
            name: as TFDS has it, such as `coco_captions/2014:1.1.0`, or the folder of one version.
            split: such as `train`, `validation` or `train[:90%]`.
            image_key: the feature of the images. If None, the only one.
            captions: features of the captions. Without keys: the only text, or else the only class.

        Raises:
            InputError: it is not prepared, or in a format that needs TensorFlow; or it has no such
                split or feature, or several that could be meant.
        """
        self._name, self._split, self._captions = name, split, captions
        self._open()
        images = [key for key, kind in self._kinds.items() if kind in ("Image", "LabeledImage")]
        self._image_key = image_key or self._only(images, "image", "--data.image-key")
        if self._image_key not in images:
            raise InputError(f"{name} has no image {self._image_key!r}\n{self._described()}")
        texts = [key for key, kind in self._kinds.items() if kind == "Text"]
        classes = [key for key, kind in self._kinds.items() if kind == "ClassLabel"]
        self._caption_keys = captions.keys or (
            self._only(texts or classes, "caption", "--data.captions.keys"),
        )
        for key in self._caption_keys:
            if key not in self._kinds:
                raise InputError(f"{name} has no feature {key!r}\n{self._described()}")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Pair:
        fields = self._row(index)
        image = fields.get(self._image_key)
        if not isinstance(image, bytes):
            raise UnreadableExampleError(f"no image under {self._image_key!r}")
        return Pair(image, *make_captions(fields, self._captions, self._caption_keys))

    def fields(self, index: int) -> dict[str, Any]:
        """The features, images excepted, as JSON values."""
        return {
            key: value for key, value in self._row(index).items() if self._kinds[key] in _JSON_KINDS
        }

    def name(self, index: int) -> str:
        """Data set, split and position."""
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self):,}")
        return f"{self._name}/{self._split}/{index}"

    @property
    def reads_remotely(self) -> bool:
        """True if the data set is at a URL; the library reads gs:// alone."""
        return is_remote(self._folder)

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in self.__dict__.items()
            if name not in ("_rows", "_kinds", "_classes")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def _open(self) -> None:
        # Slow to import, and needed by few.
        import tensorflow_datasets as tfds

        builder = _find_builder(self._name)
        self._folder = str(builder.data_dir)
        if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
            raise InputError(
                f"{builder.data_dir} is prepared as {builder.info.file_format.value}, which needs "
                f"TensorFlow\nprepare it again: tfds build {self._name} --file_format=array_record"
            )
        features = dict(_leaves(builder.info.features))
        self._kinds = {key: type(feature).__name__ for key, feature in features.items()}
        self._classes = {key: getattr(feature, "names", None) for key, feature in features.items()}
        # Images stay encoded: the loader decodes what it needs of them.
        skip = {
            key: tfds.decode.SkipDecoding()
            for key, feature in dict(builder.info.features).items()
            if type(feature).__name__ in ("Image", "LabeledImage")
        }
        try:
            self._rows = builder.as_data_source(self._split, decoders=skip)
        except (ValueError, KeyError) as error:
            raise InputError(
                f"{self._name} has no split {self._split!r}: {error}\n"
                f"it has: {', '.join(builder.info.splits)}; choose with --data.split"
            ) from None

    def _row(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self):,}")
        try:
            row = self._rows[index]
        except (OSError, RuntimeError, ValueError) as error:
            raise UnreadableExampleError(f"{type(error).__name__}: {error}") from error
        return {key: self._value(key, value) for key, value in _flattened(row)}

    def _value(self, key: str, value: Any) -> Any:
        if self._kinds.get(key) == "Text":
            if isinstance(value, bytes):
                return utf8(value)
            return [utf8(item) for item in np.asarray(value, object).ravel()]
        names = self._classes.get(key)
        if names and not self._captions.class_names:
            numbers = np.asarray(value)
            known = [names[number] for number in numbers.ravel() if 0 <= number < len(names)]
            return known if numbers.ndim else (known[0] if known else None)
        return value.tolist() if isinstance(value, np.ndarray | np.generic) else value

    def _only(self, keys: list[str], what: str, flag: str) -> str:
        if len(keys) == 1:
            return keys[0]
        number = "several features" if keys else "no feature"
        raise InputError(
            f"{number} that could be the {what} in {self._name}\n{self._described()}; choose with "
            f"{flag}"
        )

    def _described(self) -> str:
        return "it has: " + ", ".join(f"{key} ({kind})" for key, kind in self._kinds.items())


_JSON_KINDS = ("Text", "ClassLabel", "Scalar", "Tensor", "BBoxFeature", "BBox")


def _find_builder(name: str) -> Any:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.read_only_builder import builder_from_files

    if is_folder(name):
        try:
            return tfds.builder_from_directory(name)
        except (tfds.core.DatasetNotFoundError, OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{name} is not a data set that TFDS has prepared: {reason}\nexpected the folder "
                "of one version, with dataset_info.json"
            ) from None
    # Not `tfds.builder`, which asks the network about a set that it does not find.
    with contextlib.suppress(tfds.core.DatasetNotFoundError):
        return builder_from_files(name)
    raise InputError(
        f"no data set {name} in {tfds.core.constants.DATA_DIR}\n"
        "prepare it: pip install 'flaxclip[tfds]' && "
        f"tfds build {name} --file_format=array_record; "
        "where it is in another folder, set TFDS_DATA_DIR"
    )


def _leaves(feature: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Name and feature of all leaves of nested features."""
    inner = getattr(feature, "feature", None)  # of a sequence
    if inner is not None:
        yield from _leaves(inner, prefix)
    elif hasattr(feature, "items"):
        for name, child in feature.items():
            yield from _leaves(child, f"{prefix}/{name}" if prefix else name)
    else:
        yield prefix, feature


def _flattened(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, child in value.items():
            yield from _flattened(child, f"{prefix}/{name}" if prefix else name)
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        for name in value[0]:
            key = f"{prefix}/{name}" if prefix else name
            yield key, [item[name] for item in value]
    else:
        yield prefix, value
