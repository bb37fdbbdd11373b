"""Any checkpoint as a model of mteb: its image and text tasks, and what mteb makes of them.

    import mteb
    from flaxclip.benchmark.embed.mteb_encoder import MtebEncoder

    model = MtebEncoder("runs/mine")
    mteb.evaluate(model, mteb.get_tasks(tasks=["CIFAR10ZeroShot", "Flickr30kT2IRetrieval"]))

mteb is an extra, `pip install 'flaxclip[mteb]'`, and brings torch. `MtebEncoder` follows mteb's
`EncoderProtocol` (mteb 2, models/models_protocols.py); images and texts go through flaxclip alone.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from flaxclip.api import CLIPModel, read_model
from flaxclip.benchmark.checkpoint import find_checkpoint
from flaxclip.benchmark.kept_embeddings import model_digest
from flaxclip.benchmark.results import short_name
from flaxclip.errors import InputError
from flaxclip.interop.archives.state_dicts import WhichWeights

BATCH_SIZE = 64
Batches = Iterable[Mapping[str, Any]]
"""What mteb's data loaders give: lists of images, of texts, or both."""


class MtebEncoder:
    """A model that mteb takes."""

    def __init__(
        self,
        model_name: str,
        revision: str | None = None,
        *,
        device: str | None = None,
        model: str | None = None,
        tokenizer: str | None = None,
        weights: WhichWeights | None = None,
        batch_size: int = BATCH_SIZE,
    ):
        """Load a checkpoint.

        Args:
            model_name: as `flaxclip.load` takes it.
            revision: none is known: of a run, name the step, WORKDIR/checkpoints/STEP.
            device: none can be chosen: JAX's first is taken.
            model: see `flaxclip.load`, as for the next two.
            tokenizer: likewise.
            weights: likewise.
            batch_size: images or texts that are encoded at once, whatever mteb's loaders give.

        Raises:
            InputError: the checkpoint cannot be read, or a revision or a device is asked for.
        """
        for name, value in (("revision", revision), ("device", device)):
            if value is not None:
                raise InputError(f"{name} {value!r} cannot be chosen\nleave it out")
        checkpoint = find_checkpoint(model_name, model, weights)
        self._named = checkpoint.named()
        self.model: CLIPModel = read_model(checkpoint.weights, tokenizer)
        self._batch_size = batch_size

    @functools.cached_property
    def mteb_model_meta(self) -> Any:
        """Name, size and kind, a `ModelMeta`; the revision is the hash of the parameters."""
        from mteb.models.model_meta import ModelMeta, ScoringFunction  # an extra, slow to import

        leaves = jax.tree.leaves(self.model.variables)
        name = short_name(self._named).replace("/", "_").replace(" ", "_")
        return ModelMeta.create_empty(
            {
                "name": f"flaxclip/{name}",
                "revision": model_digest(self.model)[:40],
                "n_parameters": sum(leaf.size for leaf in leaves),
                "memory_usage_mb": sum(leaf.nbytes for leaf in leaves) / 2**20,
                "max_tokens": self.model.config.text.context_length,
                "embed_dim": self.model.config.embed_dim,
                "framework": ["JAX"],
                "similarity_fn_name": ScoringFunction.COSINE,
                "use_instructions": False,
                "modalities": ["image", "text"],
            }
        )

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any = None,
        hf_split: str = "",
        hf_subset: str = "",
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> Float[np.ndarray, "n d"]:
        """Unit embeddings of a loader's images or texts; where it has both, see `fused`.

        Raises:
            InputError: it has neither.
        """
        del task_metadata, hf_split, hf_subset, prompt_type, kwargs
        features = inputs.dataset.features
        if "image" in features and "text" in features:
            return self.get_fused_embeddings(inputs)
        if "image" in features:
            return self.get_image_embeddings(inputs)
        if "text" in features:
            return self.get_text_embeddings(inputs)
        raise InputError(f"a task of {', '.join(features)}\nflaxclip embeds images and texts")

    def get_image_embeddings(self, images: Batches, **_: Any) -> Float[np.ndarray, "n d"]:
        """Unit embeddings of `image` of every example."""
        return np.asarray(self.model.encode_image(_each(images, "image"), self._batch_size))

    def get_text_embeddings(self, texts: Batches, **_: Any) -> Float[np.ndarray, "n d"]:
        """Unit embeddings of `text` of every example."""
        return np.asarray(self.model.encode_text(_each(texts, "text"), self._batch_size))

    def get_fused_embeddings(self, pairs: Batches, **_: Any) -> Float[np.ndarray, "n d"]:
        """Of examples with an image and a text: the sum of both, as mteb's own CLIP has it."""
        return self.get_image_embeddings(pairs) + self.get_text_embeddings(pairs)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines of each with each, as mteb's tensors."""
        return _similarity_functions("cos_sim")(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines of each with its partner."""
        return _similarity_functions("pairwise_cos_sim")(embeddings1, embeddings2)


def _each(batches: Batches, field: str) -> Iterator[Any]:
    for batch in batches:
        yield from batch[field]


def _similarity_functions(name: str) -> Callable[[Any, Any], Any]:
    from mteb import similarity_functions

    function: Callable[[Any, Any], Any] = getattr(similarity_functions, name)
    return function
