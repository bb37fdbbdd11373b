"""Whatever bytes a corpus holds: a pair, or one of the two errors that mean the corpus.

For the long form: python -m pytest tests/test_corpus_fuzz.py --hypothesis-profile=long
"""

import contextlib
import io
import json
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flaxclip.data.sources.array_records.array_record import decode_record, encode_record
from flaxclip.data.sources.captions import CaptionConfig, json_fields, make_captions
from flaxclip.data.sources.source import UnreadableExampleError
from flaxclip.data.sources.tables.table import TableSource
from flaxclip.data.sources.tars.webdataset import WebDatasetSource
from flaxclip.data.tokenizers.load import load_tokenizer
from flaxclip.errors import InputError
from flaxclip.models.inputs import TokenizerConfig

# Beartype looks at a random item of a list, also where a strategy builds a configuration.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")

TOKENIZER = load_tokenizer(TokenizerConfig(), 20)
FOLDER = Path(tempfile.mkdtemp(prefix="flaxclip-fuzz-"))

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.dictionaries(st.sampled_from(["txt", "caption", "alt", "label"]) | st.text(), JSON)
CAPTIONS = st.builds(
    CaptionConfig,
    keys=st.lists(st.sampled_from(["txt", "caption", "alt", "label"]), max_size=3).map(tuple),
    templates=st.lists(st.sampled_from(["{}", "a {} {0} {x}"]), max_size=2).map(tuple),
    class_names=st.lists(st.text(min_size=1), max_size=3).map(tuple),
)


@pytest.fixture(autouse=True, scope="module")
def cache():
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setenv("XDG_CACHE_HOME", folder)
        yield


@st.composite
def damaged(draw, whole: st.SearchStrategy[bytes]) -> bytes:
    """Bytes with some of them overwritten, cut away or doubled."""
    data = bytearray(draw(whole))
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["overwrite", "cut", "remove", "repeat"])):
            case "overwrite":
                junk = draw(st.binary(max_size=16))
                data[start : start + len(junk)] = junk
            case "cut":
                del data[start:]
            case "remove":
                del data[start : start + draw(st.integers(1, 600))]
            case "repeat":
                data[start:start] = data[start : start + 512]
    return bytes(data)


NAMES = st.builds(
    "{}{}".format,
    st.sampled_from(["a", "b", "dir/a", "./a", "a" * 160, "é", ""]) | st.text(max_size=5),
    st.sampled_from([".jpg", ".txt", ".json", ".PNG", ".webp", ".cls", "", "."]),
)
DATA = (
    st.binary(max_size=40)
    | JSON.map(json.dumps).map(str.encode)
    | FIELDS.map(json.dumps).map(str.encode)
)
TYPES = st.sampled_from([tarfile.REGTYPE] * 12 + [bytes([n]) for n in b"\x001234567xgLKSD"])


@st.composite
def tars(draw) -> bytes:
    buffer = io.BytesIO()
    kind = draw(st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    members = draw(st.lists(st.tuples(NAMES, DATA, TYPES), max_size=6))
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for name, data, type_ in [*members, ("z.jpg", b"i", b"0"), ("z.txt", b"z", b"0")]:
            info = tarfile.TarInfo(name.replace("\0", ""))
            info.size, info.type = len(data), type_
            try:
                tar.addfile(info, io.BytesIO(data))
            except (ValueError, UnicodeError, tarfile.TarError):
                continue  # a name that this kind of tar cannot hold
    return buffer.getvalue()


def read_all(source) -> None:
    for index in range(len(source)):
        source.name(index)
        for read in (source.__getitem__, source.fields):
            try:
                result = read(index)
            except UnreadableExampleError:
                continue
            if read == source.fields:
                json.dumps(result)
            else:
                assert all(caption.strip() for caption in result.captions)
                TOKENIZER.encode(list(result.captions))


@given(damaged(tars()), CAPTIONS)
def test_any_tar_is_read_or_refused(data, captions):
    path = FOLDER / "fuzz.tar"
    path.write_bytes(data)
    try:
        source = WebDatasetSource(str(path), captions)
    except InputError:
        return
    read_all(source)


@given(FIELDS, CAPTIONS)
def test_any_fields_give_captions_or_an_unreadable_example(fields, config):
    try:
        captions, weights = make_captions(fields, config, ("txt", "caption"))
    except UnreadableExampleError:
        return
    assert captions
    assert all(caption.strip() for caption in captions)
    assert weights is None or len(weights) == len(captions)
    TOKENIZER.encode(list(captions))


@given(damaged(JSON.map(json.dumps).map(str.encode)) | st.binary())
def test_any_bytes_are_a_json_object_or_an_unreadable_example(data):
    with contextlib.suppress(UnreadableExampleError):
        assert isinstance(json_fields(data), dict)


@given(FIELDS, st.text(), st.binary())
def test_array_records_keep_what_they_are_given(fields, key, image):
    try:
        record = encode_record(key, image, fields)
    except UnicodeEncodeError:  # half of a surrogate pair in the key
        return
    found = decode_record(record)
    assert found[:2] == (key, image)
    assert json.dumps(found[2]) == json.dumps(fields)  # not ==, which NaN is not to itself


@given(damaged(FIELDS.map(lambda fields: encode_record("k", b"i", fields))) | st.binary())
def test_any_bytes_are_an_array_record_or_an_unreadable_one(data):
    try:
        key, image, fields = decode_record(data)
    except UnreadableExampleError:
        return
    assert (type(key), type(image), type(fields)) == (str, bytes, dict)


ROWS = st.lists(st.lists(st.text(max_size=12), min_size=1, max_size=4), max_size=5)


@given(
    damaged(ROWS.map(lambda rows: "\n".join(map(",".join, rows)).encode("utf-8", "replace"))),
    CAPTIONS,
)
def test_any_csv_is_read_or_refused(rows, captions):
    path = FOLDER / "fuzz.csv"
    path.write_bytes(b"image,caption,label\nnone.jpg,x,1\n" + rows)
    try:
        source = TableSource(str(path), captions=captions)
    except InputError:
        return
    read_all(source)
