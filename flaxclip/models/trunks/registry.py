"""The image towers that the modules of this folder declare."""

import importlib
import pkgutil
from types import ModuleType

from flaxclip.models import trunks
from flaxclip.models.trunks.trunk import TrunkConfig
from flaxclip.models.trunks.vit_family import ViTFamily


def _modules() -> list[ModuleType]:
    names = sorted(module.name for module in pkgutil.iter_modules(trunks.__path__))
    return [importlib.import_module(f"{trunks.__name__}.{n}") for n in names if n != "registry"]


_MODULES = _modules()

VIT_FAMILIES: dict[str, ViTFamily] = {
    name: family for module in _MODULES for name, family in getattr(module, "FAMILIES", {}).items()
}
"""Families of vision transformers by their names."""

TRUNKS: tuple[type[TrunkConfig], ...] = tuple(
    value
    for module in _MODULES
    for value in vars(module).values()
    if isinstance(value, type)
    and issubclass(value, TrunkConfig)
    and value.__module__ == module.__name__
    and value is not TrunkConfig
)
"""Configurations of image towers that are no vision transformers."""
