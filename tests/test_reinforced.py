"""Teachers' vectors stored with a corpus: what is stored, and what training draws of it."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from flaxclip.data.config import DataConfig
from flaxclip.data.images.train_transform import AugmentConfig
from flaxclip.data.inspect.__main__ import Command, inspect
from flaxclip.data.loader import load_batches
from flaxclip.data.prepare.__main__ import Command as PrepareCommand
from flaxclip.data.prepare.scan import scan_examples
from flaxclip.data.prepare.write_shards import write_shard
from flaxclip.data.reinforced.stored_vectors import (
    PackedVectors,
    bytes_per_vector,
    pack_vectors,
    unpack_reinforced,
)
from flaxclip.data.reinforced.visits import stored_teachers
from flaxclip.data.sources.array_records.array_record import ArrayRecordSource, encode_record
from flaxclip.data.sources.captions import CaptionConfig
from flaxclip.data.sources.corpus import CorpusConfig, open_corpus
from flaxclip.data.sources.mixture import MixtureSource
from flaxclip.data.sources.source import UnreadableExampleError
from flaxclip.errors import InputError
from flaxclip.interop.export import export
from flaxclip.models.clip import init_variables
from flaxclip.models.spec import ModelSpec
from flaxclip.models.variants import VARIANTS
from flaxclip.sharding import MeshConfig, make_mesh
from flaxclip.teachers.encoder import TeacherEncoder, open_encoder
from tests.helpers.pair_shards import image
from tests.helpers.reinforced import (
    EXAMPLES,
    prepare_shards,
    teachers_recipe,
    write_captioned_tars,
    write_teacher,
)
from tests.helpers.tiny_run import TINY_MODEL

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_teacher(tmp_path_factory.mktemp("teacher") / "model", 0)


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    return write_captioned_tars(tmp_path_factory.mktemp("tars"))


@pytest.fixture(scope="module")
def prepared(tars, checkpoint, tmp_path_factory):
    return prepare_shards(teachers_recipe(tars, checkpoint), tmp_path_factory.mktemp("prepared"))


def _source(*paths) -> ArrayRecordSource:
    return ArrayRecordSource([str(path) for path in paths])


def _load(source, steps=range(3), workers=0, **options):
    config = DataConfig(teacher_vectors=True, workers=workers, **options)
    feed = load_batches(
        config, ModelSpec(TINY_MODEL), source, make_mesh(MeshConfig(), jax.devices()[:1]),
        batch_size=8, seed=2, start_step=steps.start, stop_step=steps.stop,
    )  # fmt: skip
    return list(feed)


def test_shards_are_the_same_byte_for_byte_when_they_are_written_again(
    tars, checkpoint, prepared, tmp_path
):
    again = prepare_shards(teachers_recipe(tars, checkpoint), tmp_path)
    assert [p.read_bytes() for p in again] == [p.read_bytes() for p in prepared]


def test_an_example_holds_crops_captions_and_vectors_of_all(prepared, checkpoint):
    encoder, source = open_encoder(checkpoint), _source(*prepared)
    assert len(source) == EXAMPLES
    assert stored_teachers(source) == (encoder.teacher,)
    for number in range(EXAMPLES):
        example = source.reinforced(number)
        true, *made_up = example.pair.captions
        assert true.startswith("true")
        assert made_up == ([f"made up {true[5:]} 0"] if int(true[5:]) % 4 else [])
        assert example.pair.weights == ((1.0, 1.5) if made_up else None)
        assert len(example.crops) == 3
        assert len({crop.box for crop in example.crops}) > 1
        ((of_crops, of_captions),) = example.vectors
        assert (len(of_crops), len(of_captions)) == (3, len(example.pair.captions))
        live = encoder.encode_texts([*example.pair.captions, *[true] * 8][:8])
        for caption in range(len(example.pair.captions)):
            np.testing.assert_allclose(of_captions[caption], live[caption], rtol=2**-8, atol=1e-9)
        # The example is whole for those who want none of it.
        assert source[number].captions[0] == true


@pytest.mark.parametrize("workers", [0, 2])
def test_stored_vectors_are_those_of_the_crop_and_the_caption_that_the_student_sees(
    prepared, checkpoint, workers
):
    encoder, source = open_encoder(checkpoint), _source(*prepared)
    seen = set()
    for loaded in _load(source, workers=workers):
        ((zimg, ztxt),) = loaded.batch.teacher_vectors
        images = np.asarray(loaded.batch.images)
        # Of the same size as the teacher's, and of the same tokenizer.
        np.testing.assert_allclose(zimg, encoder.encode_images(images), rtol=2**-7, atol=2e-5)
        np.testing.assert_allclose(np.linalg.norm(ztxt, axis=1), 1, rtol=1e-6)
        seen |= {image.tobytes() for image in images}
    assert len(seen) > 20  # crops differ from visit to visit


def test_rows_are_a_function_of_the_step(prepared):
    source = _source(*prepared)
    whole, tail = _load(source), _load(source, range(1, 3), workers=2)
    for one, other in zip(whole[1:], tail, strict=True):
        for a, b in zip(one.batch[:2], other.batch[:2], strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(one.batch.teacher_vectors[0], other.batch.teacher_vectors[0])


def test_an_inspection_counts_teachers_crops_captions_and_bytes(
    prepared, checkpoint, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "200")
    teacher = open_encoder(checkpoint).teacher
    pattern = str(prepared[0].parent / "*.array_record")
    inspect(Command(pattern, json=True))
    found = json.loads(capsys.readouterr().out)["teacher_vectors"]
    assert found["teachers"] == [{**teacher._asdict(), "numbers": "bfloat16", "records": EXAMPLES}]
    crops, captions, size = (found[name] for name in ("crops", "captions", "bytes"))
    assert (crops["smallest"], crops["largest"]) == (3, 3)
    assert (captions["smallest"], captions["largest"]) == (1, 2)
    assert size["sum"] == 2 * 16 * (crops["sum"] + captions["sum"])
    assert found["without"] == 0
    plain = tmp_path / "plain.array_record"
    writer = ArrayRecordWriter(str(plain), "group_size:1,uncompressed")
    writer.write(encode_record("x", image(0), {"txt": "a plain pair"}))
    writer.close()
    inspect(Command(str(plain), json=True))
    assert json.loads(capsys.readouterr().out)["teacher_vectors"] is None
    shutil.copy(prepared[0], tmp_path / "with.array_record")
    inspect(Command(str(tmp_path / "*.array_record")))
    said = " ".join(capsys.readouterr().out.split())
    examples = len(_source(prepared[0]))
    of = f"{examples} of the {examples + 1} read have it"
    assert f"teacher 1 {teacher.identity[:16]} (16 numbers) bfloat16, factor 14.29; {of}" in said
    assert "crops an example 3 exact" in said
    assert "captions an example 1 to 2, mean" in said
    assert "bytes an example 128 to 160, mean" in said
    assert "vectors: without any 1 exact" in said


def test_captions_that_a_teacher_cuts_off_are_counted(tars, checkpoint, tmp_path):
    text = dataclasses.replace(TINY_MODEL.text, context_length=4)
    short = write_teacher(tmp_path / "short", 1, text=text)
    source = open_corpus(teachers_recipe(tars, checkpoint).corpus, 32)

    def count(*checkpoints):
        recipe = teachers_recipe(tars, *checkpoints)
        rows = scan_examples(source, recipe, range(len(source))).rows
        report = write_shard(source, recipe, rows, tmp_path / "shard.array_record")
        return report.teacher_truncated_captions

    # Two markers and a word leave room for one digit of "true 10" to "true 19", and none of the 15
    # captions "made up ...".
    assert count(short) == 10 + 15
    assert count(checkpoint) == 0
    assert count(short, checkpoint, short) == 2 * (10 + 15)


def test_int8_is_near_and_half_as_large():
    z = np.random.default_rng(0).standard_normal((5, 512)).astype(np.float32)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    for kind, size, error in (("bfloat16", 1024, 2**-8), ("int8", 516, 1 / 254)):
        packed = pack_vectors(z, kind)
        assert len(packed) == 5 * size == 5 * bytes_per_vector(512, kind)
        found = np.stack([PackedVectors(packed, 512, kind)[n] for n in range(5)])
        bound = np.abs(z) if kind == "bfloat16" else np.abs(z).max(1, keepdims=True)
        assert (np.abs(found - z) <= error * bound * 1.001).all()


def test_bfloat16_is_rounded_as_jax_rounds():
    z = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    found = np.frombuffer(pack_vectors(z, "bfloat16"), jnp.bfloat16).reshape(z.shape)
    np.testing.assert_array_equal(found, z.astype(jnp.bfloat16))


@pytest.mark.parametrize(
    ("field", "flag"),
    [("crops", "--crops"), ("captions", "--captions"), ("batch_size", "--teacher-batch-size")],
)
def test_no_crops_and_no_captions_are_refused(tars, field, flag):
    with pytest.raises(InputError, match=f"{flag} is 0\nexpected 1 or more"):
        teachers_recipe(tars, **{field: 0})


def test_a_teacher_whose_file_does_not_say_its_architecture_is_named(tmp_path):
    spec, whole, bare = VARIANTS["ViT-tiny"], tmp_path / "whole", tmp_path / "bare.safetensors"
    variables = init_variables(jax.random.key(0), spec.model)
    export(spec, variables, whole, "open_clip", overwrite=False)
    shutil.copy(next(whole.glob("*.safetensors")), bare)
    message = f"teacher {bare}: .* bare state dict(?s:.*) or --teacher-model"
    with pytest.raises(InputError, match=message):
        open_encoder(str(bare))
    assert open_encoder(str(bare), "ViT-tiny").teacher == open_encoder(str(whole)).teacher
    with pytest.raises(InputError, match="--teacher-model has 1 values, and --teacher 2\n"):
        PrepareCommand("src", "dst", teacher=("a", "b"), teacher_model=("ViT-B-32",))


def test_vectors_of_another_teacher_or_width_are_refused(tars, prepared, tmp_path):
    teachers = (
        write_teacher(tmp_path / "other", 1),
        write_teacher(tmp_path / "wide", 0, embed_dim=24),
    )
    other, wide = (
        prepare_shards(teachers_recipe(tars, teacher), tmp_path / str(number), 1)
        for number, teacher in enumerate(teachers)
    )
    for paths, width in ((other, 16), (wide, 24)):
        with pytest.raises(InputError, match=rf"record/\d+: vectors of \w+ \({width} numbers\)"):
            _load(_source(*prepared, *paths))
        mixture = MixtureSource([_source(*prepared), _source(*paths)], [1, 1])
        with pytest.raises(InputError, match="vectors of different teachers in one mixture"):
            stored_teachers(mixture)


def test_an_example_without_vectors_is_replaced_and_counted(prepared, tmp_path):
    path = tmp_path / "plain.array_record"
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for n in range(4):
        writer.write(encode_record("x", image(n), {"txt": "a plain pair"}))
    writer.close()
    loaded = _load(_source(*prepared, path))
    replaced = [name for one in loaded for name in one.replaced]
    assert len(replaced) >= 4
    assert all("plain.array_record" in name for name in replaced)
    assert all("no vectors of a teacher are stored with it" in name for name in replaced)
    with pytest.raises(InputError, match="no vectors of a teacher are stored with it"):
        _load(_source(path))


def test_damaged_vectors_are_named(prepared, tmp_path):
    record = msgpack.unpackb(_source(*prepared)._read(0))
    path = tmp_path / "damaged.array_record"
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    record["reinforced"]["teachers"][0][4] = record["reinforced"]["teachers"][0][4][:-2]
    writer.write(msgpack.packb(record))
    writer.close()
    with pytest.raises(UnreadableExampleError, match="94 bytes of embeddings for 3 crops"):
        _source(path).reinforced(0)


@pytest.mark.parametrize(
    ("kind", "value"), [("bfloat16", 0.0), ("bfloat16", np.inf), ("int8", 0.0)]
)
def test_an_example_with_a_vector_that_has_no_direction_is_replaced_and_counted(
    tars, checkpoint, tmp_path, kind, value
):
    prepared = prepare_shards(teachers_recipe(tars, checkpoint, vectors=kind), tmp_path / "whole")
    source, path = _source(*prepared), tmp_path / "damaged.array_record"
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for number in range(EXAMPLES):
        record = msgpack.unpackb(source._read(number))
        if number == 3:
            *_, of_captions = record["reinforced"]["teachers"][0]
            count = len(of_captions) // bytes_per_vector(16, kind)
            wrong = pack_vectors(np.full((count, 16), value, np.float32), kind)
            record["reinforced"]["teachers"][0][5] = wrong
        writer.write(msgpack.packb(record))
    writer.close()
    loaded = _load(_source(path))
    replaced = [name for one in loaded for name in one.replaced]
    assert replaced
    assert all("damaged.array_record/3: an embedding of length" in name for name in replaced)


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("weights", [1.0], r"weights \[1\.0\] of 2 captions"),
        ("weights", [-1.0, 2.0], r"weights .* of 2 captions"),
        ("captions", [b"no", "text"], "a caption that is no text"),
        ("crops", [[[0, 0, 9], []]] * 3, "a crop"),
        ("crops", [[[0, 0, 9, "x"], []]] * 3, "unsupported operand"),
        ("crops", [], "no crop or no caption"),
    ],
)
def test_what_cannot_be_drawn_from_is_named(prepared, tmp_path, field, value, why):
    source = _source(*prepared)
    records = (msgpack.unpackb(source._read(number)) for number in range(EXAMPLES))
    record = next(one for one in records if len(one["reinforced"]["captions"]) == 2)
    record["reinforced"][field] = value
    with pytest.raises(UnreadableExampleError, match=f"stored vectors that are damaged: {why}"):
        unpack_reinforced(record["image"], record["reinforced"])


def test_an_example_of_which_a_teacher_makes_no_number_is_dropped(tars, checkpoint, tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Overflowing:
        """A teacher whose bfloat16 overflows in the first caption of a batch."""

        encoder: TeacherEncoder

        def __getattr__(self, name):
            return getattr(self.encoder, name)

        def encode_tokens(self, tokens):
            z = np.array(self.encoder.encode_tokens(tokens))
            z[0] = np.nan
            return z

    recipe = teachers_recipe(tars, checkpoint)
    stored = dataclasses.replace(
        recipe.reinforcing, encoders=(Overflowing(open_encoder(checkpoint)),)
    )
    recipe = dataclasses.replace(recipe, reinforcing=stored)
    source = open_corpus(recipe.corpus, 32)
    rows = scan_examples(source, recipe, range(len(source))).rows
    path = tmp_path / "shard.array_record"
    report = write_shard(source, recipe, rows, path)
    assert 0 < len(report.dropped) < EXAMPLES
    assert report.pairs == EXAMPLES - len(report.dropped)
    assert {one[1:] for one in report.dropped} == {
        ("unreadable", "what a teacher makes of it is not finite")
    }
    assert len(_load(_source(path))) == 3


def test_other_kinds_of_corpora_have_no_vectors(tars):
    with pytest.raises(InputError, match="has no vectors of teachers"):
        _load(open_corpus(CorpusConfig(("scenes",)), 16))
    with pytest.raises(InputError, match=r"0.tar/000: no vectors of a teacher .* no \.paug\.json"):
        _load(open_corpus(CorpusConfig((str(tars / "*.tar"),)), 16))
    with pytest.raises(InputError, match=r"data.teacher_vectors and data.captions"):
        DataConfig(teacher_vectors=True, captions=CaptionConfig(("txt",)))


def test_crops_of_training_beside_those_that_are_stored_are_refused_by_name():
    with pytest.raises(
        InputError,
        match=r"(?s)data.teacher_vectors and data.augment are both given\n"
        r"data.augment.crop_scale is \(0.5, 1.0\), .* the default is \(0.9, 1.0\)\n"
        r"data.augment.flip is 0.5, .* the default is 0.0\ncrops",
    ):
        DataConfig(teacher_vectors=True, augment=AugmentConfig((0.5, 1.0), flip=0.5))
    DataConfig(teacher_vectors=True, augment=AugmentConfig())
