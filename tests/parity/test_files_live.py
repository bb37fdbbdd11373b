"""Files that transformers and torch write, read by us, and ours, read by transformers.

pip install torch transformers safetensors sentencepiece protobuf
python -m pytest tests/parity/test_files_live.py
"""

import json

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

import flaxclip
from flaxclip.api import CLIPModel, encode_image, encode_text
from flaxclip.errors import InputError
from flaxclip.interop.archives.open_archive import open_archive
from flaxclip.interop.export import export
from flaxclip.interop.open_clip.names import open_clip_table
from tests.helpers.small_models import (
    CLIP,
    RESNET,
    SIGLIP,
    SIGLIP2,
    as_transformers,
    variables_of,
    with_tokenizer,
)
from tests.parity.clip_cases import TINY as CLIP_CASE
from tests.parity.clip_cases import huggingface_config, pixel_values, random_inputs
from tests.parity.open_clip_cases import random_tensors
from tests.parity.siglip_peer import SO400M, call_theirs, their_config
from tests.parity.siglip_peer import TINY as SIGLIP_CASE

torch = pytest.importorskip("torch", reason="torch is a peer, not a requirement")
transformers = pytest.importorskip("transformers", reason="transformers is a peer")

BATCH_SIZE = 6


def randomised(model):
    """`model` with weights as large as a trained model's."""
    shapes = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    tensors = {name: torch.tensor(x) for name, x in random_tensors(shapes).items()}
    model.load_state_dict(tensors, strict=True)
    return model


def assert_same_outputs(model, images, tokens, zimg, ztxt, logits):
    """Embeddings and logits equal to 1e-5, relative to unit length and to the largest logit."""
    ours_img = np.asarray(encode_image(model.variables, jnp.asarray(images), model.spec))
    ours_txt = np.asarray(encode_text(model.variables, jnp.asarray(tokens), model.spec))
    np.testing.assert_allclose(ours_img, zimg, rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours_txt, ztxt, rtol=0, atol=1e-5)
    bias = float(model.params.get("logit_bias", 0.0))
    ours = np.exp(float(model.params["logit_scale"])) * ours_img @ ours_txt.T + bias
    np.testing.assert_allclose(ours, logits, rtol=0, atol=1e-5 * abs(logits).max())


def clip_outputs(model, images, tokens):
    with torch.no_grad():
        out = model.double().eval()(
            input_ids=torch.tensor(tokens).long(),
            pixel_values=torch.tensor(pixel_values(images)).double(),
        )
    return out.image_embeds.numpy(), out.text_embeds.numpy(), out.logits_per_image.numpy()


def siglip_outputs(model, version, case, images, tokens):
    with torch.no_grad():
        out = call_theirs(model.double().eval(), version, case, images, tokens)
    return out.image_embeds.numpy(), out.text_embeds.numpy(), out.logits_per_image.numpy()


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("saved", ["safetensors", "shards", "bin"])
def test_a_clip_that_transformers_wrote(activation, saved, tmp_path):
    config = transformers.CLIPConfig(**huggingface_config(CLIP_CASE, activation))
    theirs = randomised(transformers.CLIPModel(config))
    size = "50KB" if saved == "shards" else "5GB"
    theirs.save_pretrained(tmp_path, max_shard_size=size)
    if saved == "bin":
        torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    side = CLIP_CASE["vision"]["image_size"]
    processor(transformers.CLIPImageProcessorPil, side).save_pretrained(tmp_path)
    inputs = random_inputs(CLIP_CASE, BATCH_SIZE)
    model = flaxclip.load(tmp_path)
    assert model.config.vision.activation == activation
    assert_same_outputs(model, *inputs, *clip_outputs(theirs, *inputs))


@pytest.mark.parametrize("saved", ["before 1.6", "no checksums", "protocol 4", "shards", "variant"])
def test_a_clip_that_torch_wrote_otherwise(saved, tmp_path):
    config = transformers.CLIPConfig(**huggingface_config(CLIP_CASE, "gelu"))
    theirs = randomised(transformers.CLIPModel(config))
    theirs.save_pretrained(tmp_path, variant="fp16" if saved == "variant" else None)
    side = CLIP_CASE["vision"]["image_size"]
    processor(transformers.CLIPImageProcessorPil, side).save_pretrained(tmp_path)
    if saved != "variant":
        (tmp_path / "model.safetensors").unlink()
    path, state = tmp_path / "pytorch_model.bin", theirs.state_dict()
    if saved == "before 1.6":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif saved == "no checksums":
        torch.serialization.set_crc32_options(False)
        try:
            torch.save(state, path)
        finally:
            torch.serialization.set_crc32_options(True)
    elif saved == "protocol 4":
        torch.save(state, path, pickle_protocol=4)
    elif saved == "shards":  # as transformers before 5 wrote them, which 5 no longer does
        listed = {}
        for number, names in enumerate((sorted(state)[:5], sorted(state)[5:]), 1):
            file = f"pytorch_model-0000{number}-of-00002.bin"
            torch.save({name: state[name] for name in names}, tmp_path / file)
            listed |= dict.fromkeys(names, file)
        index = json.dumps({"metadata": {}, "weight_map": listed})
        (tmp_path / "pytorch_model.bin.index.json").write_text(index)
    inputs = random_inputs(CLIP_CASE, BATCH_SIZE)
    if saved != "protocol 4":  # which torch itself reads only with weights_only=False
        variant = "fp16" if saved == "variant" else None
        theirs = transformers.CLIPModel.from_pretrained(tmp_path, variant=variant)
    assert_same_outputs(flaxclip.load(tmp_path), *inputs, *clip_outputs(theirs, *inputs))


class Plain(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.visual = torch.nn.Linear(3, 2)
        self.bn = torch.nn.BatchNorm1d(2)


def test_names_that_wrappers_of_torch_give(tmp_path):
    plain, path = Plain(), tmp_path / "model.pt"
    expected = {name: tensor.numpy() for name, tensor in plain.state_dict().items()}
    compiled = Plain()
    compiled.load_state_dict(plain.state_dict())
    compiled.visual = torch.compile(compiled.visual)
    for model in (
        torch.compile(plain),
        torch.nn.DataParallel(plain),
        torch.compile(torch.nn.DataParallel(plain)),
        torch.nn.DataParallel(torch.compile(plain)),
        torch.optim.swa_utils.AveragedModel(plain),
        compiled,
    ):
        assert model.state_dict().keys() != expected.keys()
        torch.save({"model": model.state_dict(), "device": torch.device("cpu")}, path)
        tensors = open_archive(path)
        assert tensors.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(np.asarray(tensors[name]), array)


def test_every_type_that_torch_saves_has_its_numbers_or_is_refused(tmp_path):
    """Whatever `torch.load(weights_only=True)` takes."""
    numbers = torch.arange(1, 25).reshape(4, 6)
    path, taken, refused = tmp_path / "tensors.pt", set(), {}
    for dtype in torch.storage._new_dtypes() | {*torch.storage._dtype_to_storage_type_map()}:
        name = str(dtype)
        try:
            tensor = numbers.to(dtype)
        except (RuntimeError, NotImplementedError):  # packed types, which nothing converts to
            continue
        for view in (tensor, tensor.T, tensor[1:3, ::2], tensor[:0]):
            torch.save({"w": view}, path)
            torch.load(path, weights_only=True)
            try:
                ours = np.asarray(open_archive(path)["w"])
            except InputError as error:
                refused[name] = str(error)
                continue
            theirs = view.to(torch.complex128).numpy()
            np.testing.assert_array_equal(ours.astype(np.complex128), theirs, err_msg=name)
            taken.add(name)
    assert len(taken) >= 18
    assert not taken & refused.keys()
    assert all(name in message for name, message in refused.items())


def test_what_is_stored_negated_is_refused(tmp_path):
    torch.save({"w": torch._neg_view(torch.ones(3))}, tmp_path / "negated.pt")
    with pytest.raises(InputError, match="'w' in the file is of type a tensor that is stored neg"):
        open_archive(tmp_path / "negated.pt")


def processor(kind, side):
    if kind is transformers.CLIPImageProcessorPil:
        return kind(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    return kind(
        size={"height": side, "width": side},
        # What `pixel_values` does to the images of these tests.
        image_mean=transformers.CLIPImageProcessorPil.image_mean,
        image_std=transformers.CLIPImageProcessorPil.image_std,
    )


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("case", [SIGLIP_CASE, SO400M], ids=["tiny", "SO400M-width"])
def test_a_siglip_that_transformers_wrote(version, case, tmp_path):
    kind = transformers.SiglipModel if version == 1 else transformers.Siglip2Model
    theirs = randomised(kind(their_config(case, version)))
    theirs.save_pretrained(tmp_path)
    side = case["vision"]["image_size"]
    if version == 1:
        images = processor(transformers.SiglipImageProcessorPil, side)
    else:
        patch = case["vision"]["patch_size"]
        mean_and_std = {
            name: getattr(transformers.CLIPImageProcessorPil, name)
            for name in ("image_mean", "image_std")
        }
        images = transformers.Siglip2ImageProcessorPil(
            patch_size=patch, max_num_patches=(side // patch) ** 2, **mean_and_std
        )
    images.save_pretrained(tmp_path)
    inputs = random_inputs(case, BATCH_SIZE)
    outputs = siglip_outputs(theirs, version, case, *inputs)
    assert_same_outputs(flaxclip.load(tmp_path), *inputs, *outputs)


@pytest.mark.parametrize("spec", [CLIP, SIGLIP, SIGLIP2], ids=["clip", "siglip", "siglip2"])
def test_what_we_write_gives_the_same_logits_in_transformers(spec, vocabulary, tmp_path):
    if spec.tokenizer.name != "clip":
        spec = with_tokenizer(spec, file=vocabulary)
    ours = CLIPModel(spec, variables_of(spec))
    export(spec, ours.variables, tmp_path / "out", "huggingface", overwrite=False)
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "out").double().eval()
    rng = np.random.default_rng(0)
    photographs = [
        PIL.Image.fromarray(rng.integers(0, 256, (30, 41, 3), np.uint8)) for _ in range(3)
    ]
    captions = ["a red circle", "a photo of a cat", "two dogs at the beach"]
    images, tokens = ours.preprocess(photographs), ours.tokenize(captions)

    image_processor = transformers.AutoImageProcessor.from_pretrained(
        tmp_path / "out", backend="pil"
    )
    pixels = image_processor(photographs, return_tensors="np")["pixel_values"]
    mean, std = np.array(spec.preprocess.mean), np.array(spec.preprocess.std)
    expected = ((images / 255 - mean) / std).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(pixels, expected, rtol=0, atol=1e-6)
    with torch.no_grad():
        out = theirs(
            input_ids=torch.tensor(tokens).long(), pixel_values=torch.tensor(pixels).double()
        )
    assert_same_outputs(
        ours, images, tokens, out.image_embeds.numpy(), out.text_embeds.numpy(),
        out.logits_per_image.numpy(),
    )  # fmt: skip


TEXTS = [
    "a photo of a cat", "A Photo, of a CAT!", "two   dogs\tat the beach", "", "it's 3.14 o'clock",
    " World_wide", "fish &amp; chips <|endoftext|>",
    "naïve café — façade", "a very " * 40 + "long caption",
]  # fmt: skip


def test_the_tokenizer_that_we_write_gives_the_same_ids_in_transformers(tmp_path):
    export(CLIP, variables_of(CLIP), tmp_path / "out", "huggingface", overwrite=False)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    length = CLIP.model.text.context_length
    ids = theirs(TEXTS, padding="max_length", truncation=True, max_length=length)["input_ids"]
    ours = CLIPModel(as_transformers(CLIP), {}).tokenize(TEXTS)
    for mine, other in zip(ours, np.array(ids), strict=True):
        end = np.argmax(mine) + 1
        np.testing.assert_array_equal(mine[:end], other[:end])


def test_siglips_tokens_are_those_of_transformers(vocabulary, tmp_path):
    theirs = transformers.SiglipTokenizer(vocabulary)
    spec = with_tokenizer(as_transformers(SIGLIP), file=vocabulary)
    ours = CLIPModel(spec, {}).tokenize(TEXTS)
    length = spec.model.text.context_length
    ids = theirs(TEXTS, padding="max_length", truncation=True, max_length=length)["input_ids"]
    np.testing.assert_array_equal(ours, ids)
    export(spec, variables_of(spec), tmp_path / "out", "huggingface", overwrite=False)
    written = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = written(TEXTS, padding="max_length", truncation=True, max_length=length)["input_ids"]
    np.testing.assert_array_equal(ours, ids)


class Module(torch.nn.Module):
    """A tree of modules with the names of a state dict, for TorchScript."""

    def __init__(self, tensors):
        super().__init__()
        children = {}
        for name, tensor in tensors.items():
            first, _, rest = name.partition(".")
            if rest:
                children.setdefault(first, {})[rest] = tensor
            else:
                self.register_buffer(first, torch.tensor(tensor))
        for name, child in children.items():
            self.add_module(name, Module(child))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize("spec", [CLIP, RESNET], ids=["ViT", "ResNet"])
def test_torchscript_archives_as_openai_published_them(spec, tmp_path):
    config, variables = spec.model, variables_of(spec)
    tensors = open_clip_table(config).to_theirs(variables)
    sizes = {
        "input_resolution": np.array(config.vision.image_size),
        "context_length": np.array(config.text.context_length),
        "vocab_size": np.array(config.text.vocab_size),
    }
    half = {name: x.astype(np.float16) for name, x in tensors.items()}
    torch.jit.script(Module(half | sizes)).save(tmp_path / "model.pt")
    model = flaxclip.load(tmp_path / "model.pt")
    assert model.spec == spec
    back = open_clip_table(config).to_theirs(model.variables)
    for name, tensor in half.items():
        np.testing.assert_array_equal(back[name], tensor.astype(np.float32))
