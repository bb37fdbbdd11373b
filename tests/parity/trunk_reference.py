"""Write tests/golden/trunk_reference.npz: what timm's image towers compute from random weights.

    pip install open_clip_torch torchvision && python -m tests.parity.trunk_reference

Needs nothing of flaxclip, so that the expected numbers cannot come from the code under test.
Everything is computed in float64: the reference has no rounding of its own.
"""

import json
import pathlib

import numpy as np
import torch

from tests.parity.clip_cases import pixel_values, random_inputs
from tests.parity.trunk_cases import BATCH_SIZE, CASES, STEPS, TEXT
from tests.parity.trunk_peer import embeddings, make_peer, one_adamw_step


def main():
    arrays = {}
    for name in CASES:
        model = make_peer(name)
        shapes = {tensor: tuple(x.shape) for tensor, x in model.state_dict().items()}
        side = {"image_size": CASES[name]}
        images, tokens = random_inputs({"vision": side, "text": TEXT}, BATCH_SIZE)
        with torch.no_grad():
            zimg, ztxt = embeddings(model, pixel_values(images), tokens)
        arrays[f"{name}/shapes"] = np.array(json.dumps(shapes))
        arrays[f"{name}/zimg"] = zimg.numpy().astype(np.float32)
        arrays[f"{name}/ztxt"] = ztxt.numpy().astype(np.float32)
        if name in STEPS:
            for key, value in one_adamw_step(model, pixel_values(images), tokens):
                arrays[f"{name}/step/{key}"] = np.asarray(value)
    path = pathlib.Path(__file__).parents[1] / "golden" / "trunk_reference.npz"
    np.savez_compressed(path, **arrays)
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
