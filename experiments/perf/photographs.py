"""JPEGs to measure by: crops of scikit-learn's sample photographs, each of its own."""

import io
from collections.abc import Iterator

import numpy as np
import PIL.Image
from sklearn.datasets import load_sample_images

HEIGHT, WIDTH = 375, 500


def photographs(count: int, rng: np.random.Generator) -> Iterator[bytes]:
    """`count` JPEGs of `HEIGHT` x `WIDTH` pixels."""
    samples = load_sample_images().images
    for number in range(count):
        sample = samples[number % len(samples)]
        top = rng.integers(sample.shape[0] - HEIGHT)
        left = rng.integers(sample.shape[1] - WIDTH)
        file = io.BytesIO()
        crop = sample[top : top + HEIGHT, left : left + WIDTH]
        PIL.Image.fromarray(crop).save(file, "JPEG", quality=90)
        yield file.getvalue()
