"""Which images are of none of the known classes, told from the names of these alone."""

import numpy as np
from jaxtyping import Float

from flaxclip.benchmark.datasets import OpenSet
from flaxclip.benchmark.embeddings import Embedder
from flaxclip.benchmark.intervals import with_interval
from flaxclip.benchmark.methods.averages import mean_of_all, of_each_outside
from flaxclip.benchmark.methods.zero_shot import note_cut_texts, task_classifier
from flaxclip.benchmark.prompts import Wording
from flaxclip.benchmark.results import Findings
from flaxclip.benchmark.scores import fpr_at_recall, roc_auc
from flaxclip.zero_shot.classifier import similarity_blocks, softmax

TEMPERATURE = 1.0
"""Of the softmax over cosines: Ming et al. 2022, section 3; not the scale of the model."""


def detect_task(embedder: Embedder, data: OpenSet, wording: Wording) -> Findings:
    """AUROC, and false positives at a recall of 95%, of maximum concept matching.

    Ming et al. 2022 (MCM): the highest probability of a known class tells images of known classes
    from others. `auroc` and `fpr95` are the means over sets of others, which have their own scores
    beside them. A false positive is an image of another class taken for one of a known class, so
    that the lower `fpr95` is the better.
    """
    classifier, cut = task_classifier(embedder, wording.class_names, wording.templates)
    confidence: dict[str, Float[np.ndarray, " n"]] = {}
    unreadable: tuple[str, ...] = ()
    for name, images in {"inside": data.images, **data.outside}.items():
        zimg, remarks = embedder.embed_images(images)
        unreadable += remarks
        cosines = similarity_blocks(zimg, classifier)
        parts = [softmax(block.astype(np.float64) / TEMPERATURE).max(axis=1) for block in cosines]
        confidence[name] = np.concatenate(parts)
    # Examples of all scores: those of known classes, then each set of others.
    source = np.repeat(np.arange(len(confidence)), [len(values) for values in confidence.values()])
    everything = np.concatenate(list(confidence.values()))
    scores = {}
    for name, measure, chance in (("auroc", roc_auc, 0.5), ("fpr95", fpr_at_recall, 0.95)):
        statistics = of_each_outside(measure, everything, source)
        scores[name] = with_interval(mean_of_all(statistics), len(source), chance)
        for outside, statistic in zip(data.outside, statistics, strict=True):
            scores[f"{name}_{outside}"] = with_interval(statistic, len(source), chance)
    details = {
        "temperature": TEMPERATURE,
        "examples_outside": {name: len(images) for name, images in data.outside.items()},
    }
    arrays = {f"confidence_{name}": values for name, values in confidence.items()}
    arrays |= {"known_probability": everything, "source": source.astype(np.int32)}
    notes = wording.notes + note_cut_texts("prompts", cut)
    return Findings(scores, details, arrays, unreadable, notes)
