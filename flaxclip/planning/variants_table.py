"""The named architectures, with their cost: `python -m flaxclip.plan --list`."""

from rich.box import SIMPLE_HEAD
from rich.table import Table

from flaxclip.models.cost import model_cost, published_flops
from flaxclip.models.inputs import CENTRED_MEAN, IMAGENET_MEAN, OPENAI_MEAN
from flaxclip.models.variants import VARIANTS

_STATISTICS = {
    OPENAI_MEAN: "OpenAI's mean",
    IMAGENET_MEAN: "ImageNet's mean",
    CENTRED_MEAN: "mean 0.5",
}


def variants_table() -> Table:
    """Every named architecture, with its cost and its demand for data."""
    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        caption="GFLOPs: forward, of a pair, as open_clip counts them. Its ResNets pool from every "
        "position and drop all but one; ours pool from that one, in 1.6 to 3.5% fewer.",
        caption_justify="left",
    )
    table.add_column("name", no_wrap=True)
    for column in ("M params", "GFLOPs/pair", "px/patch", "context"):
        table.add_column(column, justify="right", no_wrap=True)
    for column in ("activation", "preprocessing", "tokenizer"):
        table.add_column(column, no_wrap=True)
    for name, (config, preprocess, tokenizer) in VARIANTS.items():
        cost, vision = model_cost(config), config.vision
        patch = f"/{vision.patch_size}" if vision.is_transformer else ""
        statistics = _STATISTICS.get(preprocess.mean, f"mean {preprocess.mean[0]:g}")
        table.add_row(
            name,
            f"{cost.parameters / 1e6:,.2f}",
            f"{published_flops(config) / 1e9:,.2f}",
            f"{vision.image_size}{patch}",
            str(config.text.context_length),
            config.text.activation,
            f"{preprocess.resize}, {statistics}",
            tokenizer.name,
        )
    return table
