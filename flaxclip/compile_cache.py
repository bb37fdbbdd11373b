"""Compiled programs on disk, for the next process that needs them."""

import os
from typing import Any

import jax


def keep_compiled_programs(min_seconds: float | None = None) -> None:
    """Let JAX store compiled programs, so that the same command starts faster the next time.

    In `$XDG_CACHE_HOME/flaxclip/compiled` or `~/.cache/flaxclip/compiled`, unless JAX is configured
    with another folder; `JAX_ENABLE_COMPILATION_CACHE=0` turns it off.

    Args:
        min_seconds: what a program must take to compile to be stored. If None, what JAX is
            configured with, a second by default.
    """
    options: Any = jax.config  # gets its attributes at run time
    if options.jax_compilation_cache_dir is None:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        jax.config.update("jax_compilation_cache_dir", os.path.join(cache, "flaxclip", "compiled"))
        if min_seconds is not None:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", min_seconds)
