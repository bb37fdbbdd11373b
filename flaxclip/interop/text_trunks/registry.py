"""The text towers of transformers that the modules of this folder declare."""

import importlib
import pkgutil

from flaxclip.interop import text_trunks
from flaxclip.interop.text_trunks.hf_trunk import HFTrunk

HF_TRUNKS: dict[str, HFTrunk] = {
    trunk.family: trunk
    for name in sorted(module.name for module in pkgutil.iter_modules(text_trunks.__path__))
    if name != "registry"
    for trunk in getattr(importlib.import_module(f"{text_trunks.__name__}.{name}"), "TRUNKS", ())
}
"""By our family."""
