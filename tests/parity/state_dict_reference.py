"""Makes tests/golden/open_clip_state_dicts.json: what every variant's file holds, by open_clip.

pip install open_clip_torch torchvision transformers
python -m tests.parity.state_dict_reference

For each name that flaxclip and open_clip share, a hash of the names and shapes in the state dict of
open_clip's own model, which is made on torch's `meta` device and takes no memory.
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flaxclip.models.text_transformer import TextConfig

GOLDEN = Path(__file__).parent.parent / "golden" / "open_clip_state_dicts.json"


def fingerprint(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """A hash of names and shapes."""
    lines = [f"{name} {list(shape)}" for name, shape in sorted(shapes.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _without_the_hub(text: TextConfig) -> dict[str, Any]:
    """The fields that make open_clip build a tower from a configuration on this machine."""
    from tests.parity.hf_text_configs import their_config

    folder = tempfile.mkdtemp()
    their_config(text).save_pretrained(folder)
    return {"hf_model_name": folder, "hf_model_pretrained": False}


def main() -> None:
    """The command line."""
    import open_clip
    import torch

    from flaxclip.models.variants import VARIANTS

    result = {}
    for name in VARIANTS:
        config = open_clip.get_model_config(name)
        if config is None:
            continue
        custom = config.pop("custom_text", False) or "hf_model_name" in config["text_cfg"]
        if "hf_model_name" in config["text_cfg"]:
            config["text_cfg"] |= _without_the_hub(VARIANTS[name].model.text)
        kind = open_clip.model.CustomTextCLIP if custom else open_clip.model.CLIP
        with torch.device("meta"):
            state = kind(**config).state_dict()
        result[name] = fingerprint(
            {
                tensor: tuple(x.shape)
                for tensor, x in state.items()
                if not tensor.endswith("num_batches_tracked")
            }
        )
    GOLDEN.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{len(result)} models in {GOLDEN}")


if __name__ == "__main__":
    main()
