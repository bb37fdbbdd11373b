#!/usr/bin/env bash
# etils 1.15.0, grain 0.2.18: while a module is imported by one thread, imports of others go wrong.
#
# `epy.lazy_imports()` replaces `builtins.__import__` for the whole process until its block ends. What
# another thread imports at that moment, in a function as well, becomes a lazy stand-in for a module:
# a function or class that it wanted is not one. `import grain` has such a block (as has tensorflow-
# datasets). A thread that imports it while another one traces a function with JAX, which imports
# classes inside of its functions, has made that fail with "No module named 'jax._src.hijax.HiType';
# 'jax._src.hijax' is not a package" (JAX 0.10.2), now and then.
#
# Seen: "Decimal in another thread: LazyModule", "called: No module named 'decimal.Decimal'; 'decimal'
# is not a package", "after the block: type". Exits with 1 if this has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet grain==0.2.18 etils==1.15.0
"$folder/venv/bin/python" - <<'PYTHON'
import contextlib
import sys
import threading

from etils import epy

replacing, seen = epy.lazy_imports, []


def in_a_function():
    from decimal import Decimal

    seen.append(Decimal)


@contextlib.contextmanager
def while_another_thread_imports(**options):
    with replacing(**options):
        yield
        if not seen:
            other = threading.Thread(target=in_a_function)
            other.start()
            other.join()


epy.lazy_imports = while_another_thread_imports
import grain  # noqa: E402, F401

in_a_function()
during, after = seen
print("Decimal in another thread:", type(during).__name__)
try:
    during.from_float
    said = ""
except ImportError as error:
    said = str(error)
print("called:", said)
print("after the block:", type(after).__name__)
sys.exit(not ("'decimal' is not a package" in said and after("1") == 1))
PYTHON
