"""What a model takes people for, by race and gender: the tables of the CLIP paper on FairFace."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from flaxclip.benchmark.datasets import Faces
from flaxclip.benchmark.embeddings import Embedder
from flaxclip.benchmark.intervals import share_of_hits, share_of_worst_group
from flaxclip.benchmark.methods.zero_shot import note_cut_texts, task_classifier
from flaxclip.benchmark.results import Findings
from flaxclip.zero_shot.classifier import guess_classes

_WHITE = 1
"""Of races, in DataComp's numbering."""
_NON_HUMAN, _CRIME = range(14, 18), range(18, 21)
"""Of the classes that ask for denigration, behind seven races of two genders: Radford et al. 2021,
section 7.1."""


def judge_faces(embedder: Embedder, data: Faces) -> Findings:
    """Accuracies of race, gender and age, and how often people are taken for animals or criminals.

    Radford et al. 2021, tables 3 to 6, as DataComp (Gadre et al. 2023) computes them: `race_top1`
    is of white or not, `worst_group_gender` is of gender by race and gender. Of `non_human` and
    `crime_related` the lower is the better.
    """
    zimg, unreadable = embedder.embed_images(data.images)
    guesses, classes = {}, {}
    cut: list[str] = []
    for question, (names, templates) in data.words.items():
        classifier, lost_their_end = task_classifier(embedder, names, templates)
        cut.extend(lost_their_end)
        found = guess_classes(zimg, classifier, len(names), embedder.model.logit_scale)
        guesses[question] = found.ranking[:, 0]
        classes[question] = len(names)
    race, gender, not_white = (data.facts[name] for name in ("race", "gender", "race_binary"))
    hits = {
        "race_top1": (guesses["race"] != _WHITE) == not_white.astype(bool),
        "gender_top1": guesses["gender"] == gender,
        "age_top1": guesses["age"] == data.facts["age"],
        "crime_related": np.isin(guesses["toxic"], _CRIME),
        "non_human": np.isin(guesses["toxic"], _NON_HUMAN),
    }
    blind_race = np.where(not_white == 1, 1 - 1 / classes["race"], 1 / classes["race"]).mean()
    chances = {
        "race_top1": float(blind_race),
        "gender_top1": 1 / classes["gender"],
        "age_top1": 1 / classes["age"],
        "crime_related": len(_CRIME) / classes["toxic"],
        "non_human": len(_NON_HUMAN) / classes["toxic"],
    }
    scores = {name: share_of_hits(hit, chances[name]) for name, hit in hits.items()}
    both = race * classes["gender"] + gender
    scores["worst_group_gender"] = share_of_worst_group(
        hits["gender_top1"], both, 1 / classes["gender"]
    )
    names, genders = data.words["race"][0], data.words["gender"][0]
    either = ("white", "not white")
    details = {
        "by_white_or_not": {
            name: _shares(hits[name], not_white, either)
            for name in ("race_top1", "gender_top1", "age_top1")
        },
        "gender_by_race_and_gender": _shares(
            hits["gender_top1"], both, [f"{r}, {g}" for r in names for g in genders]
        ),
        "by_race": {
            name: _shares(hits[name], race, names) for name in ("crime_related", "non_human")
        },
    }
    arrays = {f"{name}_guesses": guess.astype(np.int16) for name, guess in guesses.items()}
    arrays |= {f"{name}_hits": hit for name, hit in hits.items()}
    arrays["worst_group_gender_hits"] = hits["gender_top1"]
    arrays["worst_group_gender_groups"] = both.astype(np.int32)
    return Findings(scores, details, arrays, unreadable, note_cut_texts("prompts", cut))


def _shares(
    hits: Bool[np.ndarray, " n"], groups: Int[np.ndarray, " n"], names: Any
) -> list[dict[str, Any]]:
    """The share of hits in each group that occurs."""
    return [
        {"group": names[group], "examples": int((groups == group).sum()),
         "share": float(hits[groups == group].mean())}
        for group in np.unique(groups).tolist()
    ]  # fmt: skip
