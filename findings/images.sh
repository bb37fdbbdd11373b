#!/usr/bin/env bash
# transformers 5.24.0, its CLIP image processor on Pillow 13.0.0: two things that differ from
# torchvision's CenterCrop and from openai/CLIP's transform, on the same weights.
#   - A centre crop with an odd margin begins half a pixel before the middle: at 39 for a margin of
#     79, where torchvision's round((303 - 224) / 2) is 40.
#   - An image with alpha is laid over white before it is resized: black under full transparency
#     comes out 255. Image.convert("RGB") leaves 0.
# Seen: "crop begins at 39", "transparent black becomes 255".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q transformers==5.24.0 pillow==13.0.0 numpy==2.4.0
HF_HUB_OFFLINE=1 "$work/env/bin/python" - <<'PYTHON'
import numpy as np
import PIL.Image
from transformers import CLIPImageProcessorPil

processor = CLIPImageProcessorPil(do_rescale=False, do_normalize=False)


def prepared(image):
    return processor(image, return_tensors="np")["pixel_values"][0]


columns = np.broadcast_to((np.arange(303) % 256).astype(np.uint8)[None, :, None], (224, 303, 3))
start = int(prepared(PIL.Image.fromarray(np.ascontiguousarray(columns)))[0, 0, 0])
print("crop begins at", start)
clear = int(prepared(PIL.Image.new("LA", (300, 240)))[0, 100, 100])
print("transparent black becomes", clear)
assert start == 39 and round((303 - 224) / 2) == 40
assert clear == 255 and PIL.Image.new("LA", (300, 240)).convert("RGB").getpixel((0, 0)) == (0, 0, 0)
PYTHON
