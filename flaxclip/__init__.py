"""Pretrain CLIP with JAX and Flax, and measure it.

model = flaxclip.load("runs/quickstart")
model.classify([image], ["a red circle", "a blue star"])
"""

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flaxclip.api import CLIPModel, available_models, load

__version__ = version("flaxclip")
__all__ = ["CLIPModel", "__version__", "available_models", "load"]


def __getattr__(name: str) -> Any:
    # On first use: the command lines print their help without loading JAX and Orbax twice over,
    # and `import flaxclip` in a notebook costs nothing.
    if name in ("CLIPModel", "available_models", "load"):
        return getattr(importlib.import_module("flaxclip.api"), name)
    raise AttributeError(f"module 'flaxclip' has no attribute {name!r}")
