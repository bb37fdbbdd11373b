"""The same images asked in many languages: a score for each, and their mean."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Int

from flaxclip.benchmark.datasets import Captioned, Multilingual, Translated
from flaxclip.benchmark.embeddings import Embedder
from flaxclip.benchmark.intervals import lowest_share, with_exact_end, with_interval
from flaxclip.benchmark.methods.averages import mean_over_languages
from flaxclip.benchmark.methods.retrieval import (
    KS,
    blind_recall,
    count_rivals,
    directions,
)
from flaxclip.benchmark.methods.zero_shot import note_cut_texts, task_classifier
from flaxclip.benchmark.results import Findings, Score
from flaxclip.errors import InputError
from flaxclip.zero_shot.classifier import guess_classes


def retrieve_in_languages(embedder: Embedder, data: Translated) -> Findings:
    """Recall at 1, 5 and 10 of every language, and the mean over languages.

    Every language counts the same, however many captions it has. Intervals are over images, which
    all languages share.
    """
    zimg, unreadable = embedder.embed_images(data.images)
    cut: list[str] = []
    hits: dict[str, dict[str, Bool[np.ndarray, " queries"]]] = {}
    images_of: dict[str, dict[str, Int[np.ndarray, " queries"]]] = {}
    chances: dict[str, list[float]] = {}
    arrays: dict[str, np.ndarray] = {}
    for language, captioned in data.captions.items():
        ztxt, lost_their_end = embedder.embed_texts(captioned.captions)
        cut.extend(lost_their_end)
        for direction, (queries, candidates, pairs) in directions(
            zimg, ztxt, captioned.pairs
        ).items():
            rivals = count_rivals(queries, candidates, pairs)
            arrays[f"{direction}_rivals_{language}"] = rivals.astype(np.int32)
            partners = np.bincount(pairs[:, 0], minlength=len(queries))
            for k in KS:
                name = f"{direction}_recall@{k}"
                hits.setdefault(name, {})[language] = rivals < k
                images_of.setdefault(name, {})[language] = _image_of(captioned, direction)
                blind = np.mean([blind_recall(k, int(n), len(candidates)) for n in partners])
                chances.setdefault(name, []).append(float(blind))
    scores, by_language, counts = _score_languages(hits, images_of, chances, len(data.images))
    notes = note_cut_texts("captions", cut)
    details = {"languages": by_language, "captions_cut": len(cut)}
    return Findings(scores, details, arrays | counts, unreadable, notes)


def classify_in_languages(embedder: Embedder, data: Multilingual) -> Findings:
    """Accuracy in every language on the images of the classes that it names, and the mean.

    A language that names the class of no image has no accuracy, and is not in the mean; a note
    says so.

    Raises:
        InputError: no language names the class of any image.
    """
    zimg, unreadable = embedder.embed_images(data.images)
    cut: list[str] = []
    hits, rows_of, chances, arrays = {}, {}, [], {}
    silent = [
        language
        for language, (classes, _, _) in data.languages.items()
        if not np.isin(data.labels, classes).any()
    ]
    if len(silent) == len(data.languages):
        raise InputError(
            f"all languages of the set name the class of no image: {', '.join(silent)}\n"
            "give images of classes that one of them names"
        )
    for language, (classes, names, templates) in data.languages.items():
        if language in silent:
            continue
        classifier, lost_their_end = task_classifier(embedder, names, templates)
        cut.extend(lost_their_end)
        rows = np.flatnonzero(np.isin(data.labels, classes))
        found = guess_classes(zimg[rows], classifier, len(names), embedder.model.logit_scale)
        guesses = classes[found.ranking[:, 0]]
        hits[language] = guesses == data.labels[rows]
        rows_of[language] = rows
        chances.append(1 / len(classes))
        arrays[f"guesses_{language}"] = guesses.astype(np.int16)
    scores, by_language, counts = _score_languages(
        {"top1": hits}, {"top1": rows_of}, {"top1": chances}, len(data.images)
    )
    for language, (classes, names, _) in data.languages.items():
        of_language = by_language.setdefault(language, {})
        of_language |= {"classes": len(classes), "different_names": len(set(names))}
    details = {"languages": by_language, "prompts_cut": len(cut)}
    arrays["labels"] = data.labels.astype(np.int16)
    notes = note_cut_texts("prompts", cut)
    if silent:
        notes += (
            f"{len(silent):,} of {len(data.languages):,} languages name the class of no image and "
            f"do not count: {', '.join(silent)}",
        )
    return Findings(scores, details, arrays | counts, unreadable, notes)


def _image_of(captioned: Captioned, direction: str) -> Int[np.ndarray, " queries"]:
    if direction == "image_to_text":
        return np.arange(len(captioned.images))
    image_of = np.zeros(len(captioned.captions), int)
    image_of[captioned.pairs[:, 1]] = captioned.pairs[:, 0]
    return image_of


def _score_languages(
    hits: Mapping[str, Mapping[str, Bool[np.ndarray, " queries"]]],
    images_of: Mapping[str, Mapping[str, Int[np.ndarray, " queries"]]],
    chances: Mapping[str, list[float]],
    images: int,
) -> tuple[dict[str, Score], dict[str, dict[str, float]], dict[str, np.ndarray]]:
    """Means over languages, and the share of hits of each; keys are scores, then languages.

    And of every score how often each image was got right, and how often it was asked for.
    """
    scores: dict[str, Score] = {}
    arrays: dict[str, np.ndarray] = {}
    by_language: dict[str, dict[str, float]] = {}
    for name, of_languages in hits.items():
        right, asked = (
            np.stack(
                [
                    np.bincount(images_of[name][language], weights, images)
                    for language, weights in table.items()
                ]
            ).astype(np.uint16)
            for table in (of_languages, dict.fromkeys(of_languages))
        )
        mean = float(np.mean(chances[name]))
        score = with_interval(mean_over_languages(right, asked), images, mean)
        # Languages share images, so that right answers in all of them count for each image once.
        asked_for = int((asked > 0).any(axis=0).sum())
        scores[name] = with_exact_end(score, lowest_share(asked_for))
        arrays |= {f"{name}_right": right, f"{name}_asked": asked}
        for language, of_language in of_languages.items():
            by_language.setdefault(language, {})[name] = float(of_language.mean())
    return scores, by_language, arrays
