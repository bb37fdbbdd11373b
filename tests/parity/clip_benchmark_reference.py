"""CLIP_benchmark's scores of random embeddings, which the tests of our scores compare with.

pip install clip-benchmark
python tests/parity/clip_benchmark_reference.py

writes tests/golden/clip_benchmark_scores.npz: embeddings of images, prompts and captions, and
what CLIP_benchmark's own `evaluate` functions score a model that would make these.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval

IMAGES, CLASSES, TEMPLATES, WIDTH = 203, 12, 3, 8


class Known(torch.nn.Module):
    """Its images are their embeddings already, and its texts are rows of `ztxt`."""

    def __init__(self, ztxt: np.ndarray):
        super().__init__()
        self._ztxt = torch.from_numpy(ztxt)

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """Pass on."""
        return images

    def encode_text(self, rows: torch.Tensor) -> torch.Tensor:
        """Look up."""
        return self._ztxt[rows]


class Loader(list):
    """Batches, with what CLIP_benchmark asks of a loader."""

    dataset = SimpleNamespace(classes=range(CLASSES))


def main() -> None:
    """Write the file."""
    rng = np.random.default_rng(0)

    def random(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    names = random(CLASSES, WIDTH)
    labels = rng.integers(CLASSES, size=IMAGES)
    arrays = {
        "labels": labels,
        "present": (rng.random((IMAGES, CLASSES)) < 0.15) | np.eye(CLASSES, dtype=bool)[labels],
        "zimg": names[labels] + 1.5 * random(IMAGES, WIDTH),
        "zprompts": np.repeat(names, TEMPLATES, 0) + random(CLASSES * TEMPLATES, WIDTH),
    }
    zimg = torch.from_numpy(arrays["zimg"])

    def classify(targets: np.ndarray) -> dict[str, float]:
        batches = zip(zimg.split(64), torch.from_numpy(targets).split(64), strict=True)
        return zeroshot_classification.evaluate(
            Known(arrays["zprompts"]),
            Loader(batches),
            lambda prompts: torch.tensor([int(prompt) for prompt in prompts]),
            [str(number) for number in range(CLASSES)],
            {str(c): range(c * TEMPLATES, (c + 1) * TEMPLATES) for c in range(CLASSES)},
            device="cpu",
            amp=False,
        )

    scores = classify(labels) | classify(arrays["present"].astype(int))
    counts = rng.integers(1, 6, size=IMAGES)  # captions of each image
    arrays["caption_of"] = np.repeat(np.arange(IMAGES), counts)
    arrays["zcaptions"] = arrays["zimg"][arrays["caption_of"]] + 1.5 * random(counts.sum(), WIDTH)
    captions = np.split(np.arange(counts.sum()), np.cumsum(counts)[:-1])
    scores |= zeroshot_retrieval.evaluate(
        Known(arrays["zcaptions"]),
        [(zimg[at : at + 64], captions[at : at + 64]) for at in range(0, IMAGES, 64)],
        lambda texts: torch.tensor([int(text) for text in texts]),
        device="cpu",
        amp=False,
        recall_k_list=[1, 5, 10],
    )
    out = Path(__file__).parent.parent / "golden" / "clip_benchmark_scores.npz"
    np.savez_compressed(out, **arrays, **{f"score {name}": v for name, v in scores.items()})
    print(scores)


if __name__ == "__main__":
    main()
