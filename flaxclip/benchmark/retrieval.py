"""Image–text retrieval: find the partner among all candidates."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Bool, Float, Int

from flaxclip.benchmark.datasets import Captioned
from flaxclip.benchmark.embeddings import Embedder
from flaxclip.benchmark.scores import mean_of, with_interval
from flaxclip.benchmark.zero_shot import Result

KS = (1, 5, 10)
QUERIES_AT_ONCE = 1024
CANDIDATES_AT_ONCE = 16_384


def retrieve_task(embedder: Embedder, data: Captioned) -> Result:
    """Recall at 1, 5 and 10 in both directions: a query counts if one of its partners is found."""
    ztxt, truncated = embedder.embed_texts(data.captions)
    zimg, unreadable = embedder.embed_images(data.pictures)
    notes = ()
    if truncated:
        notes = (f"{truncated:,} captions were too long for the model and lost their end",)
    scores, arrays = {}, {"pairs": data.pairs.astype(np.int32)}
    directions = {
        "image_to_text": (zimg, ztxt, data.pairs),
        "text_to_image": (ztxt, zimg, data.pairs[:, ::-1]),
    }
    for direction, (queries, candidates, pairs) in directions.items():
        rivals = count_rivals(queries, candidates, pairs)
        partners = np.bincount(pairs[:, 0], minlength=len(queries))
        for k in KS:
            chance = np.mean([_blind_recall(k, n, len(candidates)) for n in partners])
            score = with_interval(mean_of(rivals < k), len(rivals), float(chance))
            scores[f"{direction}_recall@{k}"] = score
        arrays[f"{direction}_rivals"] = rivals.astype(np.int32)
        shown = np.linspace(0, len(queries) - 1, min(12, len(queries))).astype(int)
        similar = queries[shown] @ candidates.T
        arrays[f"{direction}_shown"] = shown
        arrays[f"{direction}_found"] = np.argsort(-similar, axis=1, kind="stable")[:, :5]
    return Result(scores, {}, arrays, unreadable, notes)


def _blind_recall(k: int, partners: int, candidates: int) -> float:
    """That k draws without replacement hold one of the partners."""
    if k > candidates - partners:
        return 1.0
    return 1 - math.comb(candidates - partners, k) / math.comb(candidates, k)


def count_rivals(
    queries: Float[np.ndarray, "queries d"],
    candidates: Float[np.ndarray, "candidates d"],
    pairs: Int[np.ndarray, "pairs 2"],
) -> Int[np.ndarray, " queries"]:
    """Candidates that come before the best partner of each query; all of ten or more are 10.

    Exact, in blocks: memory does not grow with queries times candidates, and hosts share the
    queries. Ties count against the query: a model that gives every candidate the same similarity
    must not look as if it had found the right one.
    """
    order = np.argsort(pairs[:, 0], kind="stable")
    pairs = pairs[order]
    starts = np.searchsorted(pairs[:, 0], np.arange(len(queries) + 1))
    most = int(np.diff(starts).max())
    # Slots that stay empty point beyond all candidates.
    partners = np.full((len(queries), most), np.iinfo(np.int32).max, np.int32)
    partners[pairs[:, 0], np.arange(len(pairs)) - starts[pairs[:, 0]]] = pairs[:, 1]

    block = min(CANDIDATES_AT_ONCE, len(candidates))
    rivals = np.zeros(len(queries), np.int32)
    for number, first in enumerate(range(0, len(queries), QUERIES_AT_ONCE)):
        if number % jax.process_count() != jax.process_index():
            continue
        rows = slice(first, min(first + QUERIES_AT_ONCE, len(queries)))
        zquery, wanted = jnp.asarray(queries[rows]), jnp.asarray(partners[rows])
        best = jnp.full(len(zquery), -jnp.inf)
        others = jnp.full((len(zquery), max(KS)), -jnp.inf)
        for at in range(0, len(candidates), block):
            # The last block overlaps the one before, so that all have one shape; what it has
            # again is masked.
            start = min(at, len(candidates) - block)
            part = jnp.asarray(candidates[start : start + block])
            best, others = _merge_block(zquery, part, wanted, best, others, start, at)
        rivals[rows] = np.asarray((others >= best[:, None]).sum(axis=1))
    if jax.process_count() > 1:
        rivals = np.asarray(multihost_utils.process_allgather(rivals)).sum(axis=0)
    return rivals


@functools.partial(jax.jit, donate_argnames=("best", "others"))
def _merge_block(
    zquery: Float[Array, "q d"],
    part: Float[Array, "c d"],
    wanted: Int[Array, "q partners"],
    best: Float[Array, " q"],
    others: Float[Array, "q k"],
    start: Int[Array, ""] | int,
    fresh_from: Int[Array, ""] | int,
) -> tuple[Float[Array, " q"], Float[Array, "q k"]]:
    """The best partner and the k best others, with those of this block."""
    similar = jnp.matmul(zquery, part.T, precision=jax.lax.Precision.HIGHEST)
    is_fresh: Bool[Array, " c"] = start + jnp.arange(part.shape[0]) >= fresh_from
    similar = jnp.where(is_fresh[None, :], similar, -jnp.inf)
    rows = jnp.arange(zquery.shape[0])[:, None]
    place = jnp.where(wanted >= start, wanted - start, part.shape[0])
    is_partner = jnp.zeros(similar.shape, bool).at[rows, place].set(True, mode="drop")
    best = jnp.maximum(best, jnp.where(is_partner, similar, -jnp.inf).max(axis=1))
    rest, _ = jax.lax.top_k(
        jnp.where(is_partner, -jnp.inf, similar), min(others.shape[1], part.shape[0])
    )
    merged, _ = jax.lax.top_k(jnp.concatenate([others, rest], axis=1), others.shape[1])
    return best, merged
