"""A small corpus with teachers' vectors, and all that it is made from."""

import dataclasses
import json
import tarfile
from pathlib import Path

import jax

from flaxclip.data.images.train_transform import AugmentConfig
from flaxclip.data.prepare.scan import Recipe, scan_examples, shard_numbers
from flaxclip.data.prepare.write_shards import write_shard
from flaxclip.data.reinforced.reinforce import Reinforcing
from flaxclip.data.sources.captions import CaptionConfig
from flaxclip.data.sources.corpus import CorpusConfig, open_corpus
from flaxclip.interop.export import export
from flaxclip.models.clip import init_variables
from flaxclip.models.spec import ModelSpec
from flaxclip.teachers.encoder import open_encoder
from tests.helpers.image_tars import add_members
from tests.helpers.pair_shards import image
from tests.helpers.tiny_run import TINY_MODEL

AUGMENT = AugmentConfig((0.3, 1.0), flip=0.5, color_jitter=(0.4, 0.3, 0.2, 0.1), grayscale=0.2)
EXAMPLES = 20


def write_teacher(path: Path, seed: int, **fields) -> str:
    """Weights of `TINY_MODEL`, but for `fields`, as open_clip's; returns their path."""
    model = dataclasses.replace(TINY_MODEL, **fields)
    variables = init_variables(jax.random.key(seed), model)
    export(ModelSpec(model), variables, path, "open_clip", overwrite=False)
    return str(path)


def write_captioned_tars(folder: Path) -> Path:
    """Each image has a caption of its own, and two or none that were made up for it."""
    with tarfile.open(folder / "0.tar", "w") as tar:
        for n in range(EXAMPLES):
            made_up = {"syn_text": [f"made up {n} {k}" for k in range(2)]} if n % 4 else {}
            kind = "PNG" if n == 3 else "JPEG"
            data = image(n, 40 + n, 60 - n, kind)
            add_members(tar, f"{n:03}", jpg=data, txt=f"true {n}".encode(),
                        json=json.dumps(made_up).encode())  # fmt: skip
    return folder


def teachers_recipe(tars: Path, *checkpoints: str, **options) -> Recipe:
    """What is stored with the examples of `tars`; `options` are fields of `Reinforcing`."""
    fields = {"crops": 3, "captions": 2, "vectors": "bfloat16", "augment": AUGMENT}
    fields |= {"seed": 5, "batch_size": 8, **options}
    encoders = tuple(map(open_encoder, checkpoints))
    captions = CaptionConfig(("txt", "syn_text"), (1.0, 3.0))
    return Recipe(
        CorpusConfig((str(tars / "*.tar"),), captions=captions),
        reinforcing=Reinforcing(encoders, **fields),
    )


def prepare_shards(recipe: Recipe, folder: Path, shards: int = 2) -> list[Path]:
    """The shards of a preparation, without Beam, and without the files that describe them."""
    source = open_corpus(recipe.corpus, 32)
    rows = scan_examples(source, recipe, range(len(source))).rows
    numbers, paths = shard_numbers(rows, shards), []
    folder.mkdir(exist_ok=True, parents=True)
    for shard in range(shards):
        paths.append(folder / f"{shard}.array_record")
        report = write_shard(source, recipe, rows[numbers == shard], paths[-1])
        assert not report.dropped
    return paths
