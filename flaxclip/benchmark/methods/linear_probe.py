"""What a linear classifier, neighbours, or a few examples get out of frozen embeddings."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from flaxclip.benchmark.datasets import Labelled
from flaxclip.benchmark.embeddings import Embedder
from flaxclip.benchmark.methods.zero_shot import score_ranking
from flaxclip.benchmark.prompts import Wording
from flaxclip.benchmark.readers import open_split
from flaxclip.benchmark.results import Findings, Score
from flaxclip.benchmark.scores import calibration
from flaxclip.benchmark.sets.place import DataPlace
from flaxclip.benchmark.tasks import DataSource, Task
from flaxclip.data.sources.left_out import describe_counts
from flaxclip.errors import InputError
from flaxclip.numerics import matmul, similarity
from flaxclip.zero_shot.classifier import best_classes, softmax

STEPS_PER_DECADE = 8
DECADES = (-6, 6)
"""Radford et al. 2021, appendix A.3: regularisation from 1e-6 to 1e6, 8 values a decade."""
MAX_ITERATIONS = 1000
"""The same appendix."""
TOLERANCE = 1e-7
"""Largest gradient entry at which L-BFGS stops. With next to no regularisation the optimum is flat:
at 1e-5, logits were still a third away from it, and accuracy depended on the machine's rounding."""
SHOTS = (1, 2, 4, 8, 16)
DRAWS = 5
NEIGHBOURS = 20
TEMPERATURE = 0.07
"""Of the votes of neighbours: Wu et al. 2018, section 3.4."""


Probe = Literal["linear-probe", "few-shot", "knn"]
PROBE_METRICS: dict[Probe, str] = {
    "linear-probe": "top1", "few-shot": "top1_16_shot", "knn": "top1"
}  # fmt: skip
"""The score of each that is quoted; of classes with fewer examples, that of the most shots."""


class Split(NamedTuple):
    """Unit embeddings and their classes."""

    z: Float[np.ndarray, "n d"]
    labels: Int[np.ndarray, " n"]


def probe_task(
    embedder: Embedder,
    task: Task,
    source: DataSource,
    data: Labelled,
    wording: Wording,
    probe: Probe,
    place: DataPlace | Path,
) -> Findings:
    """Scores of a probe on `task`, trained on the other splits of its source.

    Raises:
        InputError: there is no training split, it is too small, a label of one is out of range, or
            splits number other classes.
    """
    if source.train is None:
        raise InputError(f"{task.name} has no training split\na probe needs one")
    size, classes = embedder.model.transform.size, len(wording.class_names)
    unreadable: list[str] = []
    notes: list[str] = []

    def embed(part: Labelled, split: str = "") -> Split:
        if split and part.left_out:
            notes.append(f"{split}left out of the set: {describe_counts(part.left_out)}")
        if part.class_names and data.class_names and part.class_names != data.class_names:
            raise InputError(
                f"{task.name}: {split}numbers other classes than the test split: "
                f"{_first_difference(part.class_names, data.class_names)}\n"
                "a label must be of the same class in both: give every split the same classes"
            )
        zimg, broken = embedder.embed_images(part.images)
        unreadable.extend(f"{split}{line}" for line in broken)
        if part.labels.min() < 0 or part.labels.max() >= classes:
            raise InputError(
                f"{task.name}: a training label is out of range 0 to {classes - 1}\nfix the set"
            )
        return Split(zimg, part.labels)

    train = embed(open_split(task, source, source.train, place, size), "training split, ")
    held_out = None
    if source.validation is not None:
        held_out = open_split(task, source, source.validation, place, size)
    test = embed(data)
    if probe == "knn":
        findings = nearest_neighbours(train, test, classes)
    else:
        if held_out is None:
            train, validation = set_aside(train)
        else:
            validation = embed(held_out, "validation split, ")
        fit = linear_probe if probe == "linear-probe" else few_shot
        findings = fit(train, validation, test, classes)
    return dataclasses.replace(
        findings, unreadable=tuple(unreadable), notes=(*findings.notes, *notes)
    )


def _first_difference(names: Sequence[str], others: Sequence[str]) -> str:
    pairs = enumerate(itertools.zip_longest(names, others, fillvalue="none"))
    number, (name, other) = next((n, pair) for n, pair in pairs if pair[0] != pair[1])
    return f"class {number} is {name!r} there, {other!r} here"


@functools.partial(jax.jit, static_argnames="classes")
def fit_logistic(
    z: Float[Array, "n d"], labels: Int[Array, " n"], cost: Float[Array, ""] | float, classes: int
) -> Float[Array, "d_1 classes"]:
    """Multinomial logistic regression by L-BFGS; the last row is the bias.

    Minimises `|W|^2 / 2 + cost * sum(cross entropy)`, the bias free: scikit-learn's
    `LogisticRegression(C=cost)`. Divided by `cost * n` here, so that tolerances mean the same for
    any number of examples.
    """
    n, d = z.shape

    def objective(w: Float[Array, "d_1 classes"]) -> Float[Array, ""]:
        logits = matmul(z, w[:-1]) + w[-1][None, :]
        loss = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss + (w[:-1] ** 2).sum() / (2 * cost * n)

    tx = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(objective)

    def step(carry: tuple) -> tuple:
        w, state, _, count = carry
        value, grads = value_and_grad(w, state=state)
        updates, state = tx.update(grads, state, w, value=value, grad=grads, value_fn=objective)
        return optax.apply_updates(w, updates), state, jnp.abs(grads).max(), count + 1

    def is_unfinished(carry: tuple) -> Array:
        return (carry[2] > TOLERANCE) & (carry[3] < MAX_ITERATIONS)

    start = jnp.zeros((d + 1, classes))
    return jax.lax.while_loop(is_unfinished, step, (start, tx.init(start), jnp.inf, 0))[0]


def predict(w: Float[Array, "d_1 classes"], z: Float[np.ndarray, "n d"]) -> np.ndarray:
    """[n, classes] logits."""
    return np.asarray(matmul(z, w[:-1])) + np.asarray(w[-1])


def choose_cost(train: Split, validation: Split, classes: int) -> tuple[float, dict[float, float]]:
    """The cost with the best accuracy on `validation`, and the accuracies that were tried.

    The paper's search (appendix A.3): every second decade, then around the best one at half the
    distance, until values are an eighth of a decade apart. Of equals, the smallest cost.
    """
    tried: dict[int, float] = {}

    def accuracy(place: int) -> float:
        if place not in tried:
            cost = 10.0 ** (place / STEPS_PER_DECADE)
            w = fit_logistic(train.z, train.labels, cost, classes)
            hits = predict(w, validation.z).argmax(axis=1) == validation.labels
            tried[place] = float(hits.mean())
        return tried[place]

    low, high = (decade * STEPS_PER_DECADE for decade in DECADES)
    distance = 2 * STEPS_PER_DECADE
    best = max(range(low, high + 1, distance), key=accuracy)
    while distance > 1:
        distance //= 2
        near = [p for p in (best - distance, best, best + distance) if low <= p <= high]
        best = max(near, key=accuracy)
    costs = {10.0 ** (place / STEPS_PER_DECADE): tried[place] for place in sorted(tried)}
    return 10.0 ** (best / STEPS_PER_DECADE), costs


def set_aside(train: Split, share: float = 0.2, seed: int = 0) -> tuple[Split, Split]:
    """`train` without a random share of it, one example at least, and that share: for sets without
    a validation split.

    Raises:
        InputError: there are not two examples.
    """
    order = np.random.default_rng(seed).permutation(len(train.labels))
    if len(order) < 2:
        raise InputError(
            f"the training split has {len(order)} image, and there is no validation split\n"
            "a probe needs one image at least to train on, and another to choose by"
        )
    cut = max(round(share * len(order)), 1)
    rest, share_of_it = order[cut:], order[:cut]
    return (
        Split(train.z[rest], train.labels[rest]),
        Split(train.z[share_of_it], train.labels[share_of_it]),
    )


def linear_probe(train: Split, validation: Split, test: Split, classes: int) -> Findings:
    """Accuracy on `test` of a linear classifier of `train` and `validation` together.

    Regularisation is chosen by `validation`, never by `test`.
    """
    cost, tried = choose_cost(train, validation, classes)
    both = Split(*(np.concatenate(parts) for parts in zip(train, validation, strict=True)))
    w = fit_logistic(both.z, both.labels, cost, classes)
    logits = predict(w, test.z)
    findings = _score(logits, test.labels, softmax(logits).max(axis=1))
    details = findings.details | {
        "regularisation": cost,
        "validation_accuracy": [{"cost": c, "accuracy": a} for c, a in tried.items()],
        "train_examples": len(both.labels),
    }
    return dataclasses.replace(findings, details=details)


def few_shot(train: Split, validation: Split, test: Split, classes: int) -> Findings:
    """Accuracy from 1 to 16 examples a class: mean of `DRAWS` draws, with the lowest and highest.

    Regularisation is chosen by `validation` for the first draw of each number of examples.

    Raises:
        InputError: a class has no example in `train`.
    """
    counts = np.bincount(train.labels, minlength=classes)
    if len(without := np.flatnonzero(counts == 0)):
        raise InputError(
            f"{len(without):,} of {classes:,} classes have no training image, the first is number "
            f"{without[0]}\nfew-shot needs one of each class at least, beside those that are set "
            "aside where there is no validation split"
        )
    scores, draws, arrays = {}, {}, {}
    for shots in SHOTS:
        if counts.min() < shots:
            continue
        accuracies, cost = [], None
        right = np.zeros(len(test.labels))
        for draw in range(DRAWS):
            rng = np.random.default_rng([draw, shots])
            order = rng.permutation(len(train.labels))
            by_class = order[np.argsort(train.labels[order], kind="stable")]
            firsts = np.cumsum(counts) - counts
            rows = by_class[(firsts[:, None] + np.arange(shots)).ravel()]
            few = Split(train.z[rows], train.labels[rows])
            if cost is None:
                cost, _ = choose_cost(few, validation, classes)
            w = fit_logistic(few.z, few.labels, cost, classes)
            hits = predict(w, test.z).argmax(axis=1) == test.labels
            accuracies.append(float(hits.mean()))
            right += hits / DRAWS
        name = f"top1_{shots}_shot"
        scores[name] = Score(
            float(np.mean(accuracies)), 1 / classes, min(accuracies), max(accuracies)
        )
        arrays[name] = right
        draws[name] = {"accuracies": accuracies, "regularisation": cost}
    notes = [f"intervals of few-shot scores are the lowest and highest of {DRAWS} draws"]
    if len(scores) < len(SHOTS):
        notes.append(
            f"the smallest class has {counts.min()} examples: larger numbers of shots left out"
        )
    return Findings(scores, {"draws": draws}, arrays, notes=tuple(notes))


def nearest_neighbours(train: Split, test: Split, classes: int) -> Findings:
    """Accuracy of a vote of the `NEIGHBOURS` most similar training images, by similarity."""
    k = min(NEIGHBOURS, len(train.labels))

    @jax.jit
    def vote(z: Float[Array, "n d"]) -> Float[Array, "n classes"]:
        similar = similarity(z, train.z)
        best, rows = jax.lax.top_k(similar, k)
        votes = jax.nn.one_hot(jnp.asarray(train.labels)[rows], classes)
        return jnp.einsum("nk,nkc->nc", jnp.exp((best - 1) / TEMPERATURE), votes)

    votes = np.concatenate(
        [np.asarray(vote(test.z[at : at + 1024])) for at in range(0, len(test.z), 1024)]
    )
    findings = _score(votes, test.labels, votes.max(axis=1) / votes.sum(axis=1))
    details = findings.details | {"neighbours": k, "temperature": TEMPERATURE}
    return dataclasses.replace(findings, details=details)


def _score(logits: np.ndarray, labels: np.ndarray, confidence: np.ndarray) -> Findings:
    ranking = np.asarray(best_classes(logits)[1])
    arrays = {
        "labels": labels.astype(np.int32),
        "ranking": ranking.astype(np.int32),
        "confidence": confidence.astype(np.float32),
    }
    scores = score_ranking(ranking, labels, logits.shape[1])
    return Findings(scores, calibration(confidence, ranking[:, 0] == labels), arrays)
