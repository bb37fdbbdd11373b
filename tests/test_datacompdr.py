"""Teachers' vectors in tars of the layout of DataCompDR."""

import gzip
import io
import json
import os
import tarfile

import fsspec
import jax
import ml_dtypes
import numpy as np
import PIL.Image
import pytest

from experiments.corpora.make_datacompdr_shards import Command, main
from flaxclip.data.config import DataConfig
from flaxclip.data.images.eval_transform import SizedTransform
from flaxclip.data.images.train_transform import render_changed, view_of
from flaxclip.data.inspect.__main__ import Command as InspectCommand
from flaxclip.data.inspect.__main__ import inspect
from flaxclip.data.loader import load_batches
from flaxclip.data.reinforced.visits import stored_crop, stored_teachers
from flaxclip.data.sources.corpus import CorpusConfig, open_corpus
from flaxclip.data.sources.source import UnreadableExampleError
from flaxclip.errors import InputError
from flaxclip.models.spec import ModelSpec
from flaxclip.sharding import MeshConfig, make_mesh
from flaxclip.teachers.encoder import open_encoder
from tests.helpers.image_tars import add_members, jpeg
from tests.helpers.reinforced import EXAMPLES, write_captioned_tars, write_teacher
from tests.helpers.tiny_run import TINY_MODEL
from tests.helpers.torch_files import Call, pickled, saved

pytestmark = pytest.mark.usefixtures("own_cache")

WIDTHS = (16, 24)
K, M = 3, 2


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    return tuple(
        write_teacher(folder / str(seed), seed, embed_dim=width)
        for seed, width in enumerate(WIDTHS)
    )


@pytest.fixture(scope="module")
def shards(teachers, tmp_path_factory):
    tars = write_captioned_tars(tmp_path_factory.mktemp("tars"))
    out = tmp_path_factory.mktemp("reinforced")
    main(Command(str(tars / "*.tar"), out, teachers, crops=K, per_shard=12))
    return out


def _open(*paths, widths=WIDTHS):
    return open_corpus(CorpusConfig(tuple(map(str, paths)), teacher_widths=widths), 16)


def _vectors(rows, seed=0, width=40):
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


def _npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def _files(**changed):
    """The files of an example, by extension with _ for a dot; None leaves one out."""
    crop = [[2, 3, 30, 20], [[6, -0.27], [0, 0.0]]]
    files = {
        "url_txt": b"https://example.org/1",
        "jpg": jpeg(7),
        "txt": b"true",
        "syn_json": json.dumps({"syn_text": ["one", "two"]}).encode(),
        "paug_json": json.dumps({"param_aug": [crop] * K}).encode(),
        "npz": _npz(image_emb=_vectors(K), text_emb=_vectors(1 + M, 1)),
        "json": b'{"uid": "1", "sha256": "0"}',
    } | changed
    return {name.replace("_", "."): data for name, data in files.items() if data is not None}


def _write(path, *samples):
    """(key, files) one after the other."""
    with tarfile.open(path, "w") as tar:
        for key, files in samples:
            for extension, data in files.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def _one(tmp_path, **changed):
    return _open(_write(tmp_path / "0.tar", ("a", _files(**changed)))).reinforced(0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_student_sees_the_crop_of_which_both_teachers_have_stored_vectors(
    shards, teachers, workers
):
    source, encoders = _open(shards / "*.tar"), [open_encoder(path) for path in teachers]
    assert len(source) == EXAMPLES
    assert [teacher.width for teacher in stored_teachers(source)] == [*WIDTHS]
    config = DataConfig((str(shards / "*.tar"),), teacher_vectors=True, workers=workers)
    feed = load_batches(
        config, ModelSpec(TINY_MODEL), source, make_mesh(MeshConfig(), jax.devices()[:1]),
        batch_size=8, seed=2, start_step=0, stop_step=3,
    )  # fmt: skip
    seen = set()
    for loaded in feed:
        images = np.asarray(loaded.batch.images)
        seen |= {image.tobytes() for image in images}
        for (zimg, ztxt), encoder in zip(loaded.batch.teacher_vectors, encoders, strict=True):
            # What a row is varies a little with its place in a batch.
            np.testing.assert_allclose(zimg, encoder.encode_images(images), atol=3e-3)
            np.testing.assert_allclose(np.linalg.norm(ztxt, axis=1), 1, rtol=1e-6)
    assert len(seen) > 20


def test_captions_are_the_true_one_and_the_synthetic_ones_each_with_its_vector(shards, teachers):
    source, encoder = _open(shards / "*.tar"), open_encoder(teachers[1])
    for number in (1, 4):
        example = source.reinforced(number)
        made_up = [f"made up {number} {k}" for k in range(2)] if number % 4 else []
        assert example.pair.captions == (f"true {number}", *made_up)
        # Half of the visits draw the true caption.
        assert example.pair.weights == ((2.0, 1.0, 1.0) if made_up else None)
        live = encoder.encode_texts([*example.pair.captions])
        for caption, vector in enumerate(live):
            np.testing.assert_allclose(example.vector(1, 0, caption)[1], vector, atol=3e-3)


def test_without_a_true_caption_the_synthetic_ones_keep_their_vectors(tmp_path):
    example = _one(tmp_path, txt=None)
    assert example.pair.captions == ("one", "two")
    assert example.pair.weights is None
    ((_, first), (_, second)) = example.vectors
    whole = _vectors(1 + M, 1)
    np.testing.assert_array_equal(first[0], whole[1, :16])
    np.testing.assert_array_equal(second[1], whole[2, 16:])


def test_crops_and_operations_are_those_of_torchvision(tmp_path):
    operations = [[1, -0.09], [3, -30.5], [7, 0.27], [10, 7.0], [11, 178.5], [13, 0.0]]
    crop = [[2, 3, 30, 20], operations]
    paug = json.dumps({"param_aug": json.dumps([crop, [[0, 0, 9, 9], None], crop])}).encode()
    example = _one(tmp_path, paug_json=paug)
    assert example.crops[0].box == (3, 2, 23, 32)
    assert example.crops[0].changes == (
        ("shear_x", -0.09), ("translate_x", -30 / 224), ("color", 1.27), ("posterize", 7.0),
        ("solarize", 178.5), ("equalize", 0.0),
    )  # fmt: skip
    assert example.crops[1].changes == ()


def _torch(arrays):
    return gzip.compress(saved(arrays))


def test_what_torch_has_saved_in_gzip_is_read_without_torch(tmp_path):
    arrays = {"image_emb": _vectors(K), "text_emb": _vectors(1 + M, 1)}
    rounded = {name: array.astype(ml_dtypes.bfloat16) for name, array in arrays.items()}
    example = _one(tmp_path, npz=None, pth_gz=_torch(rounded))
    for teacher, part in enumerate((slice(16), slice(16, None))):
        of_crops, of_captions = example.vectors[teacher]
        assert of_crops.kind == "bfloat16"
        np.testing.assert_array_equal(of_crops[2], rounded["image_emb"][2, part])
        np.testing.assert_array_equal(of_captions[0], rounded["text_emb"][0, part])


def test_vectors_of_synthetic_captions_may_lie_apart(tmp_path):
    more = {"syn_text_emb": _vectors(M, 2)}
    npz = _npz(image_emb=_vectors(K), text_emb=_vectors(1, 1), **more)
    example = _one(tmp_path, npz=npz)
    np.testing.assert_array_equal(example.vectors[0][1][2], more["syn_text_emb"][1, :16])


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"npz": None}, r"no vectors of a teacher .* no \.npz or \.pth\.gz beside it"),
        ({"paug_json": None}, r"no vectors of a teacher .* no \.paug\.json beside it"),
        ({"npz": _npz(image_emb=_vectors(2), text_emb=_vectors(3))}, "3 crops .* image_emb of 2"),
        ({"npz": _npz(image_emb=_vectors(3), text_emb=_vectors(4))}, "of 4 captions: expected 3"),
        (
            {"npz": _npz(image_emb=_vectors(3, width=32), text_emb=_vectors(3, width=32))},
            r"image_emb of 32 numbers, and data.teacher_widths says 16 \+ 24",
        ),
        ({"npz": _npz(text_emb=_vectors(3))}, "no image_emb among the vectors: text_emb"),
        ({"npz": _npz(image_emb=_vectors(3)[0], text_emb=_vectors(3))}, r"of shape \[40\]"),
        ({"npz": _files()["npz"][:-40]}, r"\.npz is damaged"),
        ({"npz": _files()["npz"].replace(_vectors(K).tobytes(), bytes(480))}, r"\.npz is damaged"),
        ({"npz": None, "pth_gz": _torch({})[:-9]}, r"\.pth\.gz is damaged"),
        ({"npz": None, "pth_gz": b"PK"}, r"\.pth\.gz is damaged"),
        ({"syn_json": b'{"syn_text": "one"}'}, "syn_text in .syn.json is no list of captions"),
        ({"syn_json": b"["}, r"\.syn\.json is no JSON"),
        ({"paug_json": b'{"param_aug": []}'}, "no crops in .paug.json"),
        (
            {"paug_json": json.dumps({"param_aug": [[[0, 0, 9, 9], [[14, 1.0]]]] * 3}).encode()},
            r"\[\[14, 1.0\]\]\] in .paug.json\nexpected .* operations 0 to 13",
        ),
        ({"paug_json": b'{"param_aug": [[[0, 0, 9], []]]}'}, "a crop .* in .paug.json"),
    ],
)
def test_what_is_missing_damaged_or_does_not_fit_is_named(tmp_path, changed, why):
    with pytest.raises(UnreadableExampleError, match=f"(?s){why}"):
        _one(tmp_path, **changed)


def test_a_program_in_a_pickle_is_refused_and_not_run(tmp_path, monkeypatch):
    touched = tmp_path / "touched"
    program = Call(os.system.__module__, "system", (f"touch {touched}",))
    for data in (saved({}).replace(pickled({}), pickled(program)), pickled(program)):
        with pytest.raises(UnreadableExampleError, match=r"\.pth\.gz is damaged"):
            _one(tmp_path, npz=None, pth_gz=gzip.compress(data))
    objects = _npz(image_emb=np.array([{}]), text_emb=_vectors(3))
    with pytest.raises(UnreadableExampleError, match="holds Python objects"):
        _one(tmp_path, npz=objects)
    assert not touched.exists()


def test_files_may_come_in_any_order_with_examples_without_images_between(tmp_path):
    files, others = _files(), _files(jpg=None)
    backwards = dict(reversed(files.items()))
    late = {name: files[name] for name in sorted(files, key=lambda name: name == "jpg")}
    vectors = _npz(image_emb=_vectors(K, 5), text_emb=_vectors(1 + M, 6))
    path = _write(
        tmp_path / "0.tar", ("g", others), ("a", files), ("b", backwards), ("h", others),
        ("c", late), ("a", _files(npz=vectors)), ("g", others),
    )  # fmt: skip
    source = _open(path)
    examples = [source.reinforced(number) for number in range(4)]
    assert [source.name(number)[-1] for number in range(4)] == ["a", "b", "c", "a"]
    for example, seed in zip(examples, (0, 0, 0, 5), strict=True):
        np.testing.assert_array_equal(example.vectors[0][0][1], _vectors(K, seed)[1, :16])
    assert source.left_out.get("names_with_further_dots") is None


def test_files_that_lie_elsewhere_in_the_tar_are_not_found(tmp_path):
    apart = {name: _files()[name] for name in ("npz", "paug.json", "syn.json")}
    whole = {name: data for name, data in _files().items() if name not in apart}
    path = _write(tmp_path / "0.tar", ("a", whole), ("b", _files()), ("a", apart))
    source = _open(path)
    with pytest.raises(UnreadableExampleError, match=r"no \.paug\.json"):
        source.reinforced(0)
    source.reinforced(1)


def _damaged(path, change):
    """A source whose tar is damaged by `change` of its bytes after it was indexed."""
    source, before = _open(path), path.stat()
    damaged = bytearray(path.read_bytes())
    change(damaged)
    path.write_bytes(damaged)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return source


def _header(path, name):
    with tarfile.open(path) as tar:
        return tar.getmember(name).offset


def _overwrite(start, data):
    def change(damaged):
        damaged[start : start + len(data)] = data

    return change


@pytest.mark.parametrize("key", ["a", "b"])
@pytest.mark.parametrize(
    ("place", "data", "what"),
    [
        (100, b"?", r"a bad header, which begins with b'{key}\.npz"),
        (0, bytes(512), "zeros in place of a header"),
        (0, b"\xff" * 512, r"a bad header, which begins with b'\\xff\\xff"),
    ],
)
def test_a_damaged_header_beside_an_example_is_named(tmp_path, key, place, data, what):
    path = _write(tmp_path / "0.tar", ("a", _files()), ("b", _files()), ("c", _files()))
    start = _header(path, f"{key}.npz")
    source = _damaged(path, _overwrite(start + place, data))
    with pytest.raises(
        UnreadableExampleError,
        match=r"no \.npz or \.pth\.gz beside it: the tar is damaged at byte "
        rf"{start:,}, behind {key}\.paug\.json: " + what.format(key=key),
    ):
        source.reinforced("abc".index(key))
    assert source.reinforced("bca".index(key)).crops == source.reinforced(2).crops


def test_damage_behind_all_that_an_example_needs_does_no_harm(tmp_path):
    path = _write(tmp_path / "0.tar", ("a", _files() | {"cls": b"7"}), ("b", _files()))
    source = _damaged(path, _overwrite(_header(path, "a.cls"), b"\xff" * 512))
    assert len(source.reinforced(0).crops) == K


def test_a_size_in_a_header_that_goes_beyond_what_there_is_is_named(tmp_path):
    path = _write(tmp_path / "0.tar", ("a", _files()), ("b", _files()))
    start, header = _header(path, "a.npz"), tarfile.TarInfo("a.npz")
    header.size = 10**9
    source = _damaged(path, _overwrite(start, header.tobuf()))
    with pytest.raises(
        UnreadableExampleError,
        match=rf"damaged at byte {start:,}, behind a\.paug\.json: a\.npz of 1,000,000,000 bytes, "
        r"with room for [\d,]+\n",
    ):
        source.reinforced(0)


def test_a_tar_that_is_cut_off_is_refused_or_named(tmp_path):
    path = _write(tmp_path / "0.tar", ("a", _files()), ("b", _files()))
    start, source = _header(path, "b.npz"), _open(path)
    os.truncate(path, start + 700)
    with pytest.raises(UnreadableExampleError, match=r"0\.tar"):
        source.reinforced(1)
    with pytest.raises(InputError, match=r"(?s)truncated or damaged tar: .*0\.tar.*in b\.npz"):
        _open(path)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_that_take_headers_of_their_own_are_no_damage(tmp_path, form):
    path, keys = tmp_path / "0.tar", [f"{'folder/' * 20}{key}" for key in "ab"]
    with tarfile.open(path, "w", format=form) as tar:
        for key in keys:
            add_members(tar, key, **{name.replace(".", "_"): d for name, d in _files().items()})
        # All that is missed would be named together with damage.
        add_members(tar, f"{keys[0]}c", jpg=jpeg(1), txt=b"c")
        add_members(tar, f"{keys[0]}d", jpg=jpeg(1), txt=b"d")
    source = _open(path)
    for number in range(2):
        assert len(source.reinforced(number).crops) == K
    for number in (2, 3):
        with pytest.raises(UnreadableExampleError, match="no vectors of a teacher are stored"):
            source.reinforced(number)


def _photo(width, height, exif=None):
    """Each pixel tells its place, up to what JPEG loses."""
    x, y = np.arange(width) * 255 // width, np.arange(height) * 255 // height
    pixels = np.stack([*np.meshgrid(x, y), np.full((height, width), 128)], -1).astype(np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "JPEG", quality=95, exif=exif or PIL.Image.Exif())
    return file.getvalue()


def _crops(*boxes):
    """Of (top, left, height, width), as `.paug.json` has them."""
    return json.dumps({"param_aug": [[box, None] for box in boxes]}).encode()


def _seen(example, number):
    crop = stored_crop(example, number)
    transform = SizedTransform(16, ModelSpec(TINY_MODEL).preprocess)
    return crop.box, render_changed(crop, [view_of(crop.box, transform)], ())[0]


CROPS = (20, 100, 80, 300), (0, 0, 150, 200), (60, 200, 140, 200)


def test_crops_of_a_smaller_copy_are_scaled_by_what_img2dataset_says(tmp_path):
    sizes = json.dumps({"original_width": 400, "original_height": 201, "width": 100}).encode()
    example = _one(tmp_path, jpg=_photo(100, 50), json=sizes, paug_json=_crops(*CROPS))
    whole = _one(tmp_path, jpg=_photo(400, 201), json=sizes, paug_json=_crops(*CROPS))
    for number in range(K):
        (box, copy), (of_whole, original) = _seen(example, number), _seen(whole, number)
        # An image of that size needs no scale, though the JSON has one.
        top, left, height, width = CROPS[number]
        assert of_whole == (left, top, left + width, top + height)
        np.testing.assert_allclose(box, np.array(of_whole) * np.array([100 / 400, 50 / 201] * 2))
        np.testing.assert_allclose(copy, original, atol=6)  # of 255: JPEG, and pixels of the copy


@pytest.mark.parametrize(
    ("fields", "copy"),
    [
        ({}, ""),
        ({"original_width": 400, "original_height": "201"}, ""),
        # As of a centre crop, which is no copy of the whole.
        ({"original_width": 400, "original_height": 400}, ", a copy of one of 400 × 400 px, cut"),
        ({"original_width": 300, "original_height": 150}, ", a copy of one of 300 × 150 px, cut"),
    ],
)
def test_an_image_that_is_too_small_for_any_of_its_crops_is_unreadable(tmp_path, fields, copy):
    # The first one alone would fit, and show another part.
    crops = _crops((10, 10, 30, 40), *CROPS[1:])
    data = json.dumps(fields).encode()
    example = _one(tmp_path, jpg=_photo(100, 50), json=data, paug_json=crops)
    for number in range(K):
        with pytest.raises(
            UnreadableExampleError,
            match=f"reach to 400 × 200 px, are no parts of an image of 100 × 50 px{copy}",
        ):
            stored_crop(example, number)


def test_crops_are_of_pixels_as_they_are_stored_whatever_exif_says(tmp_path):
    turned = PIL.Image.Exif()
    turned[0x0112] = 6  # to be turned by a quarter
    example = _one(tmp_path, jpg=_photo(400, 201, turned), paug_json=_crops(*CROPS))
    plain = _one(tmp_path, jpg=_photo(400, 201), paug_json=_crops(*CROPS))
    for number in range(K):
        (box, turned), (expected, upright) = _seen(example, number), _seen(plain, number)
        assert box == expected
        np.testing.assert_array_equal(turned, upright)


def test_the_published_files_alone_are_refused_with_the_reason(tmp_path):
    path = _write(tmp_path / "0.tar", ("a", _files(jpg=None)))
    with pytest.raises(InputError, match="DataCompDR has no images: join its files with yours"):
        _open(path)


def test_what_lies_in_a_bucket_is_the_same(shards):
    local, bucket = _open(shards / "*.tar"), fsspec.filesystem("memory")
    for path in shards.glob("*.tar"):
        bucket.pipe_file(f"memory://reinforced/{path.name}", path.read_bytes())
    remote = _open("memory://reinforced/*.tar")
    for number in (0, 11, 12, EXAMPLES - 1):
        here, there = local.reinforced(number), remote.reinforced(number)
        assert here.crops == there.crops
        np.testing.assert_array_equal(here.vector(1, 2, 0), there.vector(1, 2, 0))


def test_an_inspection_counts_them(shards, capsys):
    inspect(InspectCommand(str(shards / "*.tar"), json=True, teacher_widths=WIDTHS))
    found = json.loads(capsys.readouterr().out)["teacher_vectors"]
    teachers = found["teachers"]
    assert [(one["width"], one["numbers"], one["records"]) for one in teachers] == [
        (width, "float32", EXAMPLES) for width in WIDTHS
    ]
    assert {one["logit_scale"] for one in teachers} == {np.log(100)}
    assert (found["crops"]["smallest"], found["crops"]["largest"]) == (K, K)


def test_an_inspection_counts_images_that_crops_go_beyond(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    small = _files(paug_json=_crops(*CROPS))  # of 48 × 48 px
    path = _write(tmp_path / "0.tar", ("a", _files()), ("b", small), ("c", small))
    inspect(InspectCommand(str(path), json=True, teacher_widths=WIDTHS))
    found = json.loads(capsys.readouterr().out)["teacher_vectors"]
    assert (found["without"], found["beyond_image"]) == (0, 2)
    inspect(InspectCommand(str(path), teacher_widths=WIDTHS))
    assert "vectors: of crops beyond the image 2 exact" in " ".join(capsys.readouterr().out.split())


def test_widths_must_be_positive():
    with pytest.raises(InputError, match=r"data\.teacher_widths is "):
        CorpusConfig(teacher_widths=(768, 0))
