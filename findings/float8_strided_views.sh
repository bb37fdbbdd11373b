#!/usr/bin/env bash
# numpy 2.4.6 with ml_dtypes 0.6.0: views by `np.lib.stride_tricks.as_strided` of 8-bit floats.
#
# `as_strided` goes through the array interface, which names a type by a string. bfloat16 and
# float8_e4m3fn come as void types, "<V2" and "<V1", and their views keep the type. float8_e5m2
# comes as "<f1", a float of one byte, which numpy does not know: TypeError. `np.ndarray(shape,
# dtype, buffer, offset, strides)` makes the same view of all three.
#
# Seen: "bfloat16 <V2 view", "float8_e4m3fn <V1 view", "float8_e5m2 <f1 TypeError: data type '<f1'
# not understood", and three views by np.ndarray. Exits with 1 if this has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet numpy==2.4.6 ml_dtypes==0.6.0
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import ml_dtypes
import numpy as np

seen = []
for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
    flat = np.arange(6).astype(getattr(ml_dtypes, name))
    step = flat.itemsize
    direct = np.ndarray((3, 2), flat.dtype, flat.view(np.uint8), 0, (step, 3 * step))
    assert direct.astype(int).tolist() == [[0, 3], [1, 4], [2, 5]]
    try:
        view = np.lib.stride_tricks.as_strided(flat, (3, 2), (step, 3 * step))
        assert view.dtype == flat.dtype and (view == direct).all()
        outcome = "view"
    except TypeError as error:
        outcome = f"TypeError: {error}"
    seen.append((flat.dtype.str, outcome))
    print(name, *seen[-1])
expected = [("<V2", "view"), ("<V1", "view"), ("<f1", "TypeError: data type '<f1' not understood")]
sys.exit(seen != expected)
PYTHON
