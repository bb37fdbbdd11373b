"""Write tests/golden/archives/: small files as torch writes them, and their numbers.

    pip install torch && python tests/parity/archives_reference.py

A TorchScript model, a training checkpoint, views that share a storage, and the format before 1.6.
"""

import pathlib
import warnings

import numpy as np
import torch

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "archives"


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(2, 3).half())
        self.blocks = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU())
        self.bn = torch.nn.BatchNorm2d(3)
        self.register_buffer("vocab_size", torch.tensor(49408))
        self.sizes = [1, 2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x)


def main():
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    GOLDEN.mkdir(exist_ok=True)
    model = Model()
    state = model.state_dict()
    torch.jit.script(model).save(GOLDEN / "torchscript.pt")
    checkpoint = {
        "epoch": 3,
        "name": "run",
        "state_dict": {f"module.{name}": tensor for name, tensor in state.items()},
        "optimizer": {"param_groups": [{"lr": 1e-3, "betas": (0.9, 0.98), "params": [0]}]},
        "scaler": None,
        "samples": 2**40,
        "amp": True,
    }
    torch.save(checkpoint, GOLDEN / "checkpoint.pt")
    table = torch.arange(24.0).reshape(4, 6)
    views = {
        "whole": table,
        "transposed": table.T,
        "part": table[1:3, 2:],
        "parameter": torch.nn.Parameter(table[0]),
        "bfloat16": table.bfloat16(),
        "float64": table[:1].double(),
        "empty": table[:0],
    }
    torch.save(views, GOLDEN / "views.pt")
    torch.save(state, GOLDEN / "before_1_6.pt", _use_new_zipfile_serialization=False)
    arrays = {f"model/{name}": tensor.numpy() for name, tensor in state.items()}
    arrays |= {f"views/{name}": tensor.detach().float().numpy() for name, tensor in views.items()}
    np.savez_compressed(GOLDEN / "numbers.npz", **arrays)
    for file in sorted(GOLDEN.iterdir()):
        print(file, file.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
