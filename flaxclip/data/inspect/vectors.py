"""What is stored of teachers with the examples of a corpus, counted over those that are read."""

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from flaxclip.data.inspect.statistics import Distribution
from flaxclip.data.read_ahead import read_ahead
from flaxclip.data.reinforced.stored_vectors import NumberType, Reinforced, StoredTeacher
from flaxclip.data.reinforced.visits import stored_crop
from flaxclip.data.sources.source import Source, UnreadableExampleError, reads_remotely
from flaxclip.data.sources.tars.webdataset import WebDatasetSource

TRIED = 64


class VectorsOfTeacher(NamedTuple):
    """A teacher, and how its embeddings are stored."""

    teacher: StoredTeacher
    numbers: NumberType

    @property
    def factor(self) -> float:
        """On its cosine similarities."""
        return math.exp(self.teacher.logit_scale)


@dataclasses.dataclass
class StoredVectors:
    """Counts over examples that have vectors of teachers."""

    teachers: collections.Counter[VectorsOfTeacher] = dataclasses.field(
        default_factory=collections.Counter
    )
    """Teacher -> examples that have vectors of it."""
    crops: Distribution = dataclasses.field(default_factory=Distribution)
    captions: Distribution = dataclasses.field(default_factory=Distribution)
    bytes: Distribution = dataclasses.field(default_factory=Distribution)
    """Of all vectors of an example."""
    without: int = 0
    """Examples whose image can be read, and that have no vectors, or damaged ones."""
    beyond_image: int = 0
    """Examples with vectors of crops that are no parts of the image: training leaves them out."""

    def add(self, example: Reinforced) -> None:
        for teacher, (of_crops, _) in zip(example.teachers, example.vectors, strict=True):
            self.teachers[VectorsOfTeacher(teacher, of_crops.kind)] += 1
        self.crops.add(len(example.crops))
        self.captions.add(len(example.pair.captions))
        self.bytes.add(sum(packed.nbytes for pair in example.vectors for packed in pair))
        try:
            stored_crop(example, 0)
        except UnreadableExampleError:
            self.beyond_image += 1

    def to_json(self) -> dict[str, Any]:
        return {
            "teachers": [
                {**one.teacher._asdict(), "numbers": one.numbers, "records": count}
                for one, count in self.teachers.most_common()
            ],
            "crops": self.crops.to_json(),
            "captions": self.captions.to_json(),
            "bytes": self.bytes.to_json(),
            "without": self.without,
            "beyond_image": self.beyond_image,
        }


def count_vectors(source: Source, numbers: Sequence[int]) -> StoredVectors | None:
    """What is stored of teachers with the examples `numbers`; None if nothing is with any.

    Of tars only the first `TRIED` are looked at if nothing is with these: to find nothing takes a
    request for each, or a read.
    """
    read = getattr(source, "reinforced", None)
    if read is None:
        return None
    found = StoredVectors()
    for tried, stored in enumerate(read_ahead(read, numbers, reads_remotely(source))):
        if tried == TRIED and not found.teachers and isinstance(source, WebDatasetSource):
            break
        try:
            found.add(stored())
        except UnreadableExampleError:
            found.without += 1
    return found if found.teachers else None
