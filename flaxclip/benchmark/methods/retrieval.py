"""Image–text retrieval: find the partner among all candidates."""

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from flaxclip.benchmark.between_hosts import gather_arrays
from flaxclip.benchmark.datasets import Captioned
from flaxclip.benchmark.embeddings import Embedder
from flaxclip.benchmark.intervals import share_of_hits
from flaxclip.benchmark.methods.zero_shot import note_cut_texts
from flaxclip.benchmark.results import Findings, Score
from flaxclip.numerics import similarity
from flaxclip.sharding import MeshConfig, batch_sharding, make_mesh

KS = (1, 5, 10)
QUERIES_AT_ONCE = 1024
CANDIDATES_AT_ONCE = 16_384
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])\s*|\n+")


def retrieve_task(embedder: Embedder, data: Captioned, sub_captions: bool = False) -> Findings:
    """Recall at 1, 5 and 10 in both directions: a query counts if one of its partners is found.

    With `sub_captions`, a caption is as similar to an image as its sentences are on average:
    nothing is lost of captions that are longer than the model's context.
    """
    parts = [sentences_of(text) if sub_captions else [text] for text in data.captions]
    texts = [text for of_caption in parts for text in of_caption]
    ztexts, cut = embedder.embed_texts(texts)
    # The mean of unit vectors, as it is: its product with an image is the mean of cosines.
    first = np.cumsum([0, *map(len, parts[:-1])])
    ztxt = np.add.reduceat(ztexts, first) / np.array([[len(part)] for part in parts], np.float32)
    zimg, unreadable = embedder.embed_images(data.images)
    scores: dict[str, Score] = {}
    arrays: dict[str, np.ndarray] = {"pairs": data.pairs.astype(np.int32)}
    for direction, (queries, candidates, pairs) in directions(zimg, ztxt, data.pairs).items():
        rivals = count_rivals(queries, candidates, pairs)
        partners = np.bincount(pairs[:, 0], minlength=len(queries))
        for k in KS:
            chance = np.mean([blind_recall(k, int(n), len(candidates)) for n in partners])
            scores[f"{direction}_recall@{k}"] = share_of_hits(rivals < k, float(chance))
        arrays[f"{direction}_rivals"] = rivals.astype(np.int32)
        shown = np.linspace(0, len(queries) - 1, min(12, len(queries))).astype(int)
        similar = queries[shown] @ candidates.T
        arrays[f"{direction}_shown"] = shown
        arrays[f"{direction}_found"] = np.argsort(-similar, axis=1, kind="stable")[:, :5]
    details: dict[str, Any] = {"texts": len(texts), "texts_cut": len(cut)}
    kind = "sentences" if sub_captions else "captions"
    return Findings(scores, details, arrays, unreadable, note_cut_texts(kind, cut, len(texts)))


def sentences_of(caption: str) -> list[str]:
    """Parts of a text that end with a full stop, question or exclamation mark, or with a line."""
    parts = [part.strip() for part in _SENTENCE_END.split(caption)]
    return [part for part in parts if part] or [caption]


def directions(
    zimg: Float[np.ndarray, "images d"],
    ztxt: Float[np.ndarray, "texts d"],
    pairs: Int[np.ndarray, "pairs 2"],
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Queries, candidates, and the pairs of both, of either direction of retrieval."""
    return {
        "image_to_text": (zimg, ztxt, pairs),
        "text_to_image": (ztxt, zimg, pairs[:, ::-1]),
    }


@functools.cache
def blind_recall(k: int, partners: int, candidates: int) -> float:
    """That k draws without replacement hold one of the partners."""
    if k > candidates - partners:
        return 1.0
    return 1 - math.comb(candidates - partners, k) / math.comb(candidates, k)


def count_rivals(
    queries: Float[np.ndarray, "queries d"],
    candidates: Float[np.ndarray, "candidates d"],
    pairs: Int[np.ndarray, "pairs 2"],
) -> Int[np.ndarray, " queries"]:
    """Candidates that come before the best partner of each query.

    Exact, in blocks: memory does not grow with queries times candidates, and hosts and their
    devices share the queries. Ties count against the query: a model that gives every candidate the
    same similarity must not look as if it had found the right one.
    """
    order = np.argsort(pairs[:, 0], kind="stable")
    pairs = pairs[order]
    starts = np.searchsorted(pairs[:, 0], np.arange(len(queries) + 1))
    most = int(np.diff(starts).max())
    # Slots that stay empty point beyond all candidates.
    partners = np.full((len(queries), most), np.iinfo(np.int32).max, np.int32)
    partners[pairs[:, 0], np.arange(len(pairs)) - starts[pairs[:, 0]]] = pairs[:, 1]

    mesh = make_mesh(MeshConfig(), jax.local_devices())
    at_once = -(-min(QUERIES_AT_ONCE, len(queries)) // mesh.size) * mesh.size
    everywhere = jax.device_put(candidates, jax.NamedSharding(mesh, jax.P()))
    rivals = np.zeros(len(queries), np.int32)
    for number, first in enumerate(range(0, len(queries), at_once)):
        if number % jax.process_count() != jax.process_index():
            continue
        # The last rows repeat the first ones, so that all blocks have one shape.
        rows = np.resize(np.arange(first, min(first + at_once, len(queries))), at_once)
        part = jax.device_put((queries[rows], partners[rows]), batch_sharding(mesh))
        block = min(CANDIDATES_AT_ONCE, len(candidates))
        rivals[rows] = np.asarray(_count_in_blocks(*part, everywhere, block))
    return gather_arrays(rivals).sum(axis=0)


@functools.partial(jax.jit, static_argnames="block")
def _count_in_blocks(
    zquery: Float[Array, "q d"],
    partners: Int[Array, "q partners"],
    candidates: Float[Array, "n d"],
    block: int,
) -> Int[Array, " q"]:
    """Of a block of queries, the rivals among all candidates.

    Similarities are computed twice, to find the best partner and to count what comes before it:
    sorting a block to keep its best would take longer. Both times by the same product, so that
    equal candidates tie exactly.
    """
    (queries, _), count = zquery.shape, candidates.shape[0]
    rows = jnp.arange(queries)[:, None]

    def compare(number: Int[Array, ""]) -> tuple[Array, Array, Array]:
        """Similarities with a block, and which of them are of partners, and of others."""
        # The last block overlaps the one before, so that all have one shape; what it has again
        # is of neither.
        start = jnp.minimum(number * block, count - block)
        part = jax.lax.dynamic_slice_in_dim(candidates, start, block)
        similar = similarity(zquery, part)
        is_fresh = (start + jnp.arange(block) >= number * block)[None, :]
        place = jnp.where(partners >= start, partners - start, block)
        is_partner = jnp.zeros(similar.shape, bool).at[rows, place].set(True, mode="drop")
        return similar, is_partner & is_fresh, ~is_partner & is_fresh

    def find_best(number: Int[Array, ""], best: Float[Array, " q"]) -> Float[Array, " q"]:
        similar, is_partner, _ = compare(number)
        return jnp.maximum(best, jnp.where(is_partner, similar, -jnp.inf).max(axis=1))

    def count_more(number: Int[Array, ""], rivals: Int[Array, " q"]) -> Int[Array, " q"]:
        similar, _, is_other = compare(number)
        return rivals + (is_other & (similar >= best[:, None])).sum(axis=1)

    blocks = -(-count // block)
    best = jax.lax.fori_loop(0, blocks, find_best, jnp.full(queries, -jnp.inf))
    return jax.lax.fori_loop(0, blocks, count_more, jnp.zeros(queries, jnp.int32))
