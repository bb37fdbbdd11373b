"""Images for TensorBoard and W&B that show how a run's model sees a few fixed pairs."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import PIL.Image
import PIL.ImageOps
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int32, UInt8

from flaxclip.config import TrainConfig
from flaxclip.data.images.eval_transform import make_transform, preprocess, stack_images
from flaxclip.data.images.native_size import PatchArrays
from flaxclip.data.loader import open_source
from flaxclip.data.sources.scenes import ScenesSource
from flaxclip.data.sources.source import Source, UnreadableExampleError
from flaxclip.data.tokenizers.load import load_tokenizer
from flaxclip.fine_tuning.lora import merged
from flaxclip.models.clip import CLIP
from flaxclip.models.patches import ImagePatches
from flaxclip.numerics import similarity
from flaxclip.train_state import TrainState

_GUESSES = 3


class RunImages:
    """Similarity matrix and predictions of the first pairs of the held-out data.

    Of the built-in data, these are pairs that training never shows. If nothing is held out, they
    are pairs of the training data itself.
    """

    def __init__(self, config: TrainConfig, source: Source, mesh: Mesh):
        self._config = config
        self._source = source
        self._mesh = mesh

    def draw(self, state: TrainState) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        """Draw the images, by name. Every host must call this, and only the first gets them."""
        images, tokens, pixels, captions = self._pairs
        params = {"params": merged(self._config.adapters, state.params)}
        stats = {"batch_stats": state.batch_stats} if state.batch_stats else {}
        similarities = jax.device_get(self._similarities(params | stats, images, tokens))
        if jax.process_index() != 0:
            return {}
        # Not before: to import matplotlib takes a second, at the start of every run.
        from flaxclip.figures import draw_predictions, draw_similarities, figure_pixels

        order = np.argsort(-similarities, axis=1, kind="stable")[:, :_GUESSES]
        guesses = [[captions[index] for index in row] for row in order]
        return {
            "similarities": figure_pixels(draw_similarities(pixels, captions, similarities)),
            "predictions": figure_pixels(draw_predictions(pixels, captions, guesses)),
        }

    @functools.cached_property
    def _pairs(
        self,
    ) -> tuple[
        UInt8[Array, "shown h w 3"] | ImagePatches,
        Int32[Array, "shown l"],
        list[UInt8[np.ndarray, "h w 3"]],
        list[str],
    ]:
        """What the model sees of the pairs, images and tokens; and what is drawn of them."""
        config, vision, text = self._config, self._config.model.vision, self._config.model.text
        transform = make_transform(vision.image_size, vision.patch_size, config.preprocess)
        source = self._shown_source()
        images, captions = [], []
        for index in range(len(source)):
            try:
                pair = source[index]
                images.append(preprocess(pair.image, transform))
                captions.append(pair.captions[0])
            except UnreadableExampleError:
                continue  # training reports it, should it ever come to it
            if len(images) == self._config.shown_pairs:
                break
        tokenize = load_tokenizer(config.tokenizer, text.context_length, text.vocab_size)
        everywhere = NamedSharding(self._mesh, PartitionSpec())
        stacked: Any = stack_images(images, transform, len(images))
        if isinstance(stacked, PatchArrays):
            patches: Any = stacked
            stacked = ImagePatches(*patches)
            images = [_on_square(image, vision.image_size) for image in images]
        return *jax.device_put((stacked, tokenize(captions)), everywhere), images, captions

    def _shown_source(self) -> Source:
        data, side = self._config.data, self._config.model.vision.image_size
        if data.heldout:
            heldout = dataclasses.replace(data, path=data.heldout, mixture=(), counts=None)
            return open_source(heldout, side)
        if isinstance(self._source, ScenesSource):
            return ScenesSource("unseen" if self._source.split == "train" else "wide", side)
        return self._source

    @functools.cached_property
    def _similarities(self) -> "jax.stages.Wrapped":
        config = self._config
        model = CLIP(config.model, config.compute, config.preprocess)

        def similarities(
            variables: dict,
            images: UInt8[Array, "b h w 3"] | ImagePatches,
            tokens: Int32[Array, "b l"],
        ) -> Float[Array, "b b"]:
            zimg: Any = model.apply(variables, images, method="encode_image")
            ztxt: Any = model.apply(variables, tokens, method="encode_text")
            return similarity(zimg, ztxt)

        return jax.jit(similarities, out_shardings=NamedSharding(self._mesh, PartitionSpec()))


def _on_square(image: UInt8[np.ndarray, "h w 3"], side: int) -> UInt8[np.ndarray, "side side 3"]:
    """The whole image, in the middle of a white square."""
    square = PIL.ImageOps.pad(PIL.Image.fromarray(image), (side, side), color="white")
    return np.asarray(square)
