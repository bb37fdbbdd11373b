"""Parameters from `CLIPModel`'s tensors and back: what tests of models and of names share."""

from flaxclip.interop.huggingface.names import huggingface_table
from flaxclip.interop.name_table import unflatten


def huggingface_shapes(config):
    return huggingface_table(config).their_shapes()


def params_from_huggingface(tensors, config):
    return unflatten(dict(huggingface_table(config).to_ours(tensors)))["params"]


def params_to_huggingface(params, config):
    return huggingface_table(config).to_theirs({"params": params})
