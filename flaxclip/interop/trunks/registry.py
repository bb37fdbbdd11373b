"""The image towers of timm that the modules of this folder declare."""

import importlib
import pkgutil
from collections.abc import Mapping

from flaxclip.interop import trunks
from flaxclip.interop.trunks.timm_trunk import TimmTrunk
from flaxclip.models.trunks.trunk import TrunkConfig

TIMM_TRUNKS: tuple[TimmTrunk, ...] = tuple(
    trunk
    for name in sorted(module.name for module in pkgutil.iter_modules(trunks.__path__))
    if name != "registry"
    for trunk in getattr(importlib.import_module(f"{trunks.__name__}.{name}"), "TRUNKS", ())
)


def trunk_of(vision: TrunkConfig, native: bool = False) -> TimmTrunk | None:
    """The names of towers of that family, for squares or, if `native`, for images at their own
    aspect ratio; None if open_clip has no such towers, or from elsewhere than timm.
    """
    found = (t for t in TIMM_TRUNKS if vision.family in t.families and t.native == native)
    return next(found, None)


def tower_as_stored(vision: TrunkConfig, shapes: Mapping[str, tuple[int, ...]]) -> TrunkConfig:
    """The tower that a file with tensors of these shapes holds, where that decides."""
    trunk = trunk_of(vision)
    return vision if trunk is None or trunk.as_stored is None else trunk.as_stored(vision, shapes)
