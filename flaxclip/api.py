"""A trained CLIP in a notebook: images and words in, embeddings and names out."""

import dataclasses
import functools
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from etils import epath
from jaxtyping import Array, Float, Int, Shaped, UInt8

from flaxclip.data.images.eval_transform import make_transform, preprocess, stack_images
from flaxclip.data.images.native_size import PatchArrays
from flaxclip.data.tokenizers.base import Tokenizer
from flaxclip.data.tokenizers.load import load_tokenizer
from flaxclip.errors import InputError
from flaxclip.interop.archives.state_dicts import WhichWeights
from flaxclip.interop.name_table import unflatten
from flaxclip.models.clip import CLIP, CLIPConfig
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.patches import ImagePatches
from flaxclip.models.spec import ModelSpec
from flaxclip.models.variants import VARIANTS
from flaxclip.weights import Weights, open_weights
from flaxclip.zero_shot.class_prompts import DEFAULT_TEMPLATES, Names, Templates
from flaxclip.zero_shot.classifier import build_zero_shot_classifier, class_similarities, softmax

Images = Iterable[PIL.Image.Image | bytes | UInt8[np.ndarray, "height width 3"]]

BATCH_SIZE = 32
"""Rows that `CLIPModel` encodes at once: enough to keep a small accelerator busy, and few enough
that one image on a CPU does not wait long for the rows that fill its batch up."""


@functools.partial(jax.jit, static_argnames=("spec", "compute"))
def encode_image(
    variables: dict[str, Any],
    images: UInt8[Array, "b h w 3"] | ImagePatches,
    spec: ModelSpec,
    compute: ComputeConfig = ComputeConfig(),
) -> Float[Array, "b d"]:
    """Unit image embeddings, a pure function of `variables` and pixels."""
    model = CLIP(spec.model, compute, spec.preprocess)
    zimg: Any = model.apply(variables, images, pooled_only=True, method="encode_image")
    return zimg


@functools.partial(jax.jit, static_argnames=("spec", "compute"))
def encode_text(
    variables: dict[str, Any],
    tokens: Int[Array, "b l"],
    spec: ModelSpec,
    compute: ComputeConfig = ComputeConfig(),
) -> Float[Array, "b d"]:
    """Unit text embeddings, a pure function of `variables` and token ids."""
    model = CLIP(spec.model, compute)
    ztxt: Any = model.apply(variables, tokens, pooled_only=True, method="encode_text")
    return ztxt


class CLIPModel:
    """Parameters with everything that belongs to them: architecture, transform, tokenizer.

    `variables` holds `params`, and with a ResNet `batch_stats`: what `CLIP.apply` reads.
    """

    def __init__(
        self,
        spec: ModelSpec,
        variables: dict[str, Any],
        compute: ComputeConfig = ComputeConfig(),
    ):
        self.spec = spec
        self.compute = compute
        self.variables = variables
        vision = spec.model.vision
        self.transform = make_transform(vision.image_size, vision.patch_size, spec.preprocess)

    @property
    def config(self) -> CLIPConfig:
        """The architecture."""
        return self.spec.model

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """Texts to ids; made on first use, since images alone can do without a vocabulary."""
        text = self.config.text
        return load_tokenizer(self.spec.tokenizer, text.context_length, text.vocab_size)

    @property
    def params(self) -> dict[str, Any]:
        """The trained parameters, a plain nested dict of arrays."""
        return self.variables["params"]

    @property
    def logit_scale(self) -> float:
        """The factor on cosine similarities that the model was trained with."""
        return float(jnp.exp(self.params["logit_scale"]))

    def with_max_patches(self, max_patches: int) -> "CLIPModel":
        """The same model, which sees images at their own aspect ratio in at most so many patches.

        Raises:
            InputError: it takes squares, or the number is not positive.
        """
        spec = self.spec.with_max_patches(max_patches)
        return CLIPModel(spec, self.variables, self.compute)

    def preprocess(self, images: Images) -> UInt8[np.ndarray, "b h w 3"] | PatchArrays:
        """Images of any sizes, resized and cropped as the model was measured; of a model that takes
        them at their own aspect ratio, their patches.

        Raises:
            UnreadableExampleError: an image is broken.
        """
        pixels = [preprocess(image, self.transform) for image in images]
        return stack_images(pixels, self.transform, len(pixels))

    def tokenize(self, texts: Sequence[str]) -> Int[np.ndarray, "b l"]:
        """Token ids; a text beyond the context length loses its end."""
        return self.tokenizer(texts)

    def encode_image(
        self,
        images: UInt8[np.ndarray, "n h w 3"] | PatchArrays | Images,
        batch_size: int = BATCH_SIZE,
        max_patches: int | None = None,
    ) -> Float[Array, "n d"]:
        """Unit embeddings of images, preprocessed or not, however many.

        They are read, preprocessed and encoded `batch_size` at a time. All batches have one shape,
        and so are compiled once: the last one is filled up, and one image takes as long as
        `batch_size`. Of an iterator that opens images as they are asked for, no more than two
        batches are in memory.

        With `max_patches`, a model that takes images at their own aspect ratio sees them in at most
        so many patches, whatever its preprocessing says: more of them show more of a document, and
        take longer. Each number is compiled once.

        Raises:
            InputError: `batch_size` is not positive; or `max_patches` is not, or the model takes
                squares and is given patches or `max_patches`, or these are both given.
            UnreadableExampleError: an image is broken.
        """
        items: Any = images
        if isinstance(images, PatchArrays):
            self._check_patches(max_patches)
            items = zip(*images, strict=True)
        elif max_patches is not None:
            return self.with_max_patches(max_patches).encode_image(images, batch_size)

        def encode(batch: Sequence[Any]) -> Array:
            rows: Any
            if isinstance(images, PatchArrays):
                rows = PatchArrays(*map(np.stack, zip(*batch, strict=True)))
            else:
                rows = self.preprocess(batch)
            pixels = as_input(_fill_up(rows, batch_size))
            return encode_image(self.variables, pixels, self.spec, self.compute)

        return self._encode_all(items, batch_size, encode)

    def _check_patches(self, max_patches: int | None) -> None:
        if self.spec.preprocess.resize != "native":
            raise InputError(
                f"images are patches, and the model takes squares of "
                f"{self.config.vision.image_size} pixels\ngive it images, or what its own "
                "`preprocess` returns"
            )
        if max_patches is not None:
            raise InputError(
                f"max_patches is {max_patches}, and the images are patches already\n"
                "give images, or preprocess them by `with_max_patches`"
            )

    def encode_text(
        self, texts: Iterable[str], batch_size: int = BATCH_SIZE
    ) -> Float[Array, "n d"]:
        """Unit embeddings of texts, however many, in batches as those of `encode_image`.

        Raises:
            InputError: `batch_size` is not positive, or `texts` is a single string, or holds
                something that is no string.
        """
        if isinstance(texts, str):
            self.tokenize(texts)  # which says what is wrong with it

        def encode(batch: Sequence[str]) -> Array:
            tokens = _fill_up(self.tokenize(batch), batch_size)
            return encode_text(self.variables, tokens, self.spec, self.compute)

        return self._encode_all(texts, batch_size, encode)

    def _encode_all(
        self, items: Iterable[Any], batch_size: int, encode: Callable[[Sequence[Any]], Array]
    ) -> Float[Array, "n d"]:
        z, pending, count = [np.zeros((0, self.config.embed_dim), np.float32)], None, 0
        for batch in _batched(items, batch_size):
            count += len(batch)
            encoded = encode(batch)
            # The previous batch is fetched while this one is computed.
            if pending is not None:
                z.append(np.asarray(pending))
            pending = encoded
        if pending is not None:
            z.append(np.asarray(pending))
        return jnp.asarray(np.concatenate(z)[:count])

    def classify(
        self,
        images: Images,
        class_names: Names,
        templates: Templates = DEFAULT_TEMPLATES,
    ) -> Float[np.ndarray, "n classes"]:
        """Probabilities of each class for each image, from the classes' names alone.

        Radford et al. 2021, section 3.1: softmax over scaled similarities with each class's
        prompts, whose embeddings are averaged where a class has several.

        Args:
            images: as for `encode_image`.
            class_names: a name a class, or several that mean the same.
            templates: sentences with `{}` for a class's name; or for each class its own prompts.

        Raises:
            InputError: see `build_zero_shot_classifier`.
            UnreadableExampleError: an image is broken.
        """
        classifier = build_zero_shot_classifier(self.encode_text, class_names, templates)
        similarities = class_similarities(self.encode_image(images), classifier)
        return softmax(self.logit_scale * similarities)


def _batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    if size < 1:
        raise InputError(f"batch size is {size}\nit must be at least 1")
    rest = iter(items)
    while batch := list(itertools.islice(rest, size)):
        yield batch


def _fill_up(batch: Any, size: int) -> Any:
    """Repeats the first row: one of zeros alone would be a text without an end marker."""

    def fill(rows: Shaped[np.ndarray, "n ..."]) -> Shaped[np.ndarray, "size ..."]:
        return np.concatenate([rows, np.repeat(rows[:1], size - len(rows), axis=0)])

    return jax.tree.map(fill, batch)


def as_input(images: Any) -> Any:
    """What `encode_image` takes, of pixels or `PatchArrays`, on the host or on devices."""
    if not isinstance(images, PatchArrays):
        return images
    patches, grid = images
    return ImagePatches(jnp.asarray(patches), jnp.asarray(grid))


def load(
    path: epath.PathLike,
    model: str | None = None,
    tokenizer: str | None = None,
    weights: WhichWeights | None = None,
) -> CLIPModel:
    """A trained model, ours or another library's, with all that belongs to it.

    Nothing that a file contains is executed, and torch is not needed.

    Args:
        path: a training run's workdir, or one of its steps, WORKDIR/checkpoints/STEP; a file of
            weights from OpenAI (.pt), open_clip (.safetensors, .pt, .bin) or big_vision (.npz), or
            of a run that trained such a model with PyTorch; a directory that open_clip,
            transformers or sentence-transformers wrote; or the URL of any of these: gs://, s3://,
            hf://ORGANISATION/REPOSITORY.
        model: the architecture's name in `available_models()`, for a file that does not tell:
            a state dict does not say whether its model has QuickGELU or GELU.
        tokenizer: the file of SigLIP's or LiT's vocabulary, where it does not lie beside the
            weights.
        weights: "ema" or "raw", of a run or a checkpoint that holds weights and their average. If
            None, the average, with a warning where the checkpoint is another library's.

    Raises:
        InputError: there is no such model, it is damaged or of no architecture that we have, or it
            cannot tell how it was trained; or it does not have the weights that are asked for.
    """
    found = open_weights(str(path), model, weights)
    if found.notice:
        warnings.warn(found.notice, stacklevel=2)
    return read_model(found, tokenizer)


def read_model(weights: Weights, tokenizer: str | None = None) -> CLIPModel:
    """The model whose weights were found, read into memory; `tokenizer` as for `load`.

    Raises:
        InputError: the weights are damaged.
    """
    spec, device = weights.spec, jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    # One by one: a peer's numbers and our arrays never both lie in memory as a whole.
    flat = {name: jax.device_put(value) for name, value in weights.read(device)}
    if tokenizer is not None:
        spec = spec._replace(tokenizer=dataclasses.replace(spec.tokenizer, file=tokenizer))
    return CLIPModel(spec, unflatten(flat), weights.compute)


def available_models() -> list[str]:
    """Names of the architectures that can be trained, as `--model` takes them."""
    return list(VARIANTS)
