"""Images a second of `flaxclip.benchmark embed`, against the forward pass alone.

    python experiments/perf/embed_throughput.py --images 512

A ViT-B/32 of random weights embeds JPEG photographs (500 x 375, crops of scikit-learn's samples)
from a folder into a shard on disk. The forward pass is timed on a batch that lies in memory. The
two take turns; the first round, which compiles, does not count.
"""

import dataclasses
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import tyro
from photographs import photographs

from flaxclip.api import CLIPModel
from flaxclip.benchmark.embed.embed_corpus import embed_corpus
from flaxclip.benchmark.embed.layout import EmbeddingFolder, Manifest
from flaxclip.benchmark.embed.pairs import open_pairs
from flaxclip.benchmark.embeddings import Embedder
from flaxclip.data.sources.corpus import CorpusConfig
from flaxclip.errors import exit_on_input_error
from flaxclip.models.clip import init_variables
from flaxclip.models.variants import VARIANTS


@dataclasses.dataclass(frozen=True)
class Command:
    """Throughput of embedding."""

    model: str = "ViT-B-32"
    images: int = 512
    batch_size: int = 64
    rounds: int = 3


def main(command: Command) -> None:
    """Print rates and their ratio."""
    spec = VARIANTS[command.model]
    variables = jax.jit(init_variables, static_argnums=1)(jax.random.key(0), spec.model)
    model = CLIPModel(spec, variables)
    rates: dict[str, list[float]] = {"embed": [], "forward pass alone": []}
    with tempfile.TemporaryDirectory() as name:
        corpus = Path(name) / "photographs"
        corpus.mkdir()
        for number, jpeg in enumerate(photographs(command.images, np.random.default_rng(0))):
            (corpus / f"{number:05}.jpg").write_bytes(jpeg)
        embedder = Embedder(model, command.batch_size, Path(name) / "cache")
        source = open_pairs(CorpusConfig((str(corpus),)), model.transform.size)
        manifest = Manifest(
            checkpoint="", step=None, weights=None, model=None, tokenizer=None,
            parameters_sha256="", preprocessing="", source="", source_sha256="",
            examples=len(source), shard_size=-(-len(source) // embedder.batch_size)
            * embedder.batch_size, layout="clip-retrieval", precision="float16", texts=False,
            embed_dim=model.config.embed_dim,
        )  # fmt: skip
        side = model.transform.size
        pixels = np.zeros((embedder.batch_size, side, side, 3), np.uint8)
        for number in range(command.rounds + 1):
            start = time.perf_counter()
            folder = EmbeddingFolder(Path(name) / f"out{number}", manifest)
            embed_corpus(embedder, source, folder, [0], lambda line: None, lambda *counts: None)
            embedded = time.perf_counter()
            for _ in range(0, len(source), embedder.batch_size):
                embedder.encode_pixels(pixels).block_until_ready()
            ended = time.perf_counter()
            if number:
                rates["embed"].append(len(source) / (embedded - start))
                rates["forward pass alone"].append(len(source) / (ended - embedded))
    for name, values in rates.items():
        print(f"{name:20} {np.median(values):7.1f} images/s  {[round(v, 1) for v in values]}")
    ratios = np.array(rates["embed"]) / np.array(rates["forward pass alone"])
    print(f"embed / forward pass alone: {np.median(ratios):.3f}")


if __name__ == "__main__":
    with exit_on_input_error("embed_throughput"):
        main(tyro.cli(Command, description=__doc__))
