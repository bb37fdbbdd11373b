"""The text towers that the modules of this folder declare."""

import importlib
import pkgutil

from flaxclip.models import text_trunks
from flaxclip.models.text_trunks.text_family import TextFamily

TEXT_FAMILIES: dict[str, TextFamily] = {
    name: family
    for module in sorted(module.name for module in pkgutil.iter_modules(text_trunks.__path__))
    if module != "registry"
    for name, family in getattr(
        importlib.import_module(f"{text_trunks.__name__}.{module}"), "FAMILIES", {}
    ).items()
}
"""Families of text towers by their names."""
