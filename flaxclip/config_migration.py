"""Configurations of older formats -> the present one: plain JSON objects in and out.

Format 0, which has no number, had everything about a model in `model`: what images and texts go
through before it, and how it is computed. Its `pool` said which family a tower is of.
"""

from typing import Any

FORMAT = 1
"""Of the files that are written now; the field `format` of `config.json`."""

_PREPROCESS = {
    "resize": "resize",
    "interpolation": "interpolation",
    "transparency": "transparency",
    "crop_rounding": "crop_rounding",
    "image_mean": "mean",
    "image_std": "std",
}
_TOKENIZER = {"tokenizer": "name", "text_cleaning": "cleaning", "tokenizer_file": "file"}
_COMPUTE = {name: name for name in ("dtype", "unroll", "remat", "attention")}
_FAMILIES = {
    "vision": {"class": "clip", "map": "siglip", "token": "vit"},
    "text": {"end": "clip", "last": "siglip", "class": "bert"},
}


def migrate(config: dict[str, Any]) -> dict[str, Any]:
    """`config`, of any format up to the present one, in the present format and without its number.

    What format 0 lacked is left out: the defaults mean what it did.
    """
    config = dict(config)
    if config.pop("format", 0) >= FORMAT or not isinstance(config.get("model"), dict):
        return config
    model = dict(config["model"])
    for part, names in (
        ("preprocess", _PREPROCESS), ("tokenizer", _TOKENIZER), ("compute", _COMPUTE),
    ):  # fmt: skip
        config[part] = {new: model.pop(old) for old, new in names.items() if old in model}
    for tower, families in _FAMILIES.items():
        fields = model.get(tower)
        if isinstance(fields, dict) and "pool" in fields:
            pool = fields["pool"]
            others = {name: value for name, value in fields.items() if name != "pool"}
            model[tower] = others | {"family": families.get(pool, pool)}
    return config | {"model": model}
