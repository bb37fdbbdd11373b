"""Write tests/golden/clip_reference.npz: what `transformers` computes from random weights.

    pip install torch transformers && python tests/parity/clip_reference.py

Needs nothing of flaxclip, so that the expected numbers cannot come from the code under test.
"""

import pathlib

import numpy as np
import torch
from clip_cases import TINY, huggingface_config, pixel_values, random_inputs, random_tensors
from transformers import CLIPConfig, CLIPModel


def main():
    images, tokens = random_inputs(TINY, batch_size=6)
    arrays = {"images": images, "tokens": tokens}
    for activation in ("quick_gelu", "gelu"):
        # float64: the reference has no rounding of its own.
        model = CLIPModel(CLIPConfig(**huggingface_config(TINY, activation))).double().eval()
        weights = random_tensors({n: tuple(t.shape) for n, t in model.state_dict().items()})
        model.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
        with torch.no_grad():
            out = model(
                input_ids=torch.tensor(tokens).long(),
                pixel_values=torch.tensor(pixel_values(images)).double(),
            )
        arrays[f"{activation}/zimg"] = out.image_embeds.numpy()
        arrays[f"{activation}/ztxt"] = out.text_embeds.numpy()
        arrays[f"{activation}/logits_per_image"] = out.logits_per_image.numpy()
    path = pathlib.Path(__file__).parents[1] / "golden" / "clip_reference.npz"
    np.savez_compressed(path, **arrays)
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
