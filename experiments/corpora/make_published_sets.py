r"""Small sets in the layouts in which their authors publish them, of the built-in scenes.

    python experiments/corpora/make_published_sets.py --out sets
    python -m flaxclip.benchmark CHECKPOINT --data sets --tasks sugarcrepe_add_att docci xtd10

tries a reader before the set itself has been downloaded: files, folders and fields are those of the
published set, and scores mean nothing. `make_small_sets.py` has the layouts that many sets share.
"""

from pathlib import Path

import published_labels
import published_texts
import tyro
from published_files import draw

WRITERS = {
    "retrieval:pairs.tar": published_texts.pairs,
    "sugarcrepe_add_att": published_texts.sugarcrepe,
    "sugarcrepe++_swap_obj": published_texts.sugarcrepe_pp,
    "aro_relation": published_texts.aro,
    "aro_coco_order": published_texts.aro_order,
    "valse": published_texts.valse,
    "negbench_voc_choices": published_texts.negbench_choices,
    "negbench_coco_retrieval_plain": published_texts.negbench_retrieval,
    "winoground": published_texts.winoground,
    "mmvp_vlm": published_texts.mmvp,
    "winogavil": published_texts.winogavil,
    "docci": published_texts.docci,
    "dci": published_texts.dci,
    "urban1k": published_texts.urban1k,
    "flickr8k-zh": published_texts.flickr_annotations,
    "crossmodal3600": published_texts.crossmodal3600,
    "xtd10": published_texts.lined_captions,
    "imagenet-w": published_labels.imagenet_w,
    f"imagenet-c-{published_labels.LEVEL}": published_labels.imagenet_c,
    "waterbirds": published_labels.waterbirds,
    "celeba": published_labels.celeba,
    "fairface": published_labels.faces,
    "babel-imagenet:DE,QU": published_labels.babel_imagenet,
    "ood_imagenet": published_labels.imagenet_ood,
    "ood_cifar10": published_labels.wds_ood,
}
"""Task -> what writes its set. Sets that share `wds_imagenet1k` are given the same images."""


def make_published_sets(out: Path, images: int = 48) -> None:
    """Write the sets.

    Args:
        out: folder of data sets to write into.
        images: of each set.
    """
    drawn = draw(images)
    for writer in WRITERS.values():
        writer(out, drawn)
    print(f"{out}: {images:,} images for each of {', '.join(WRITERS)}")


if __name__ == "__main__":
    tyro.cli(make_published_sets)
