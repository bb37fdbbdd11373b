"""Write tests/golden/archives/: small files as torch writes them, and their numbers.

    pip install torch && python tests/parity/archives_reference.py

A TorchScript model, a training checkpoint, views that share a storage, and the format before 1.6.
By torch 2.14.1: a checkpoint of new types with all that torch.load(weights_only=True) takes beside
weights, and a state dict without checksums.
"""

import collections
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


NEW_TYPES = (
    "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "uint16", "uint32",
    "uint64",
)  # fmt: skip


def new_types():
    """Tensors in storages that have no type, one of them a part."""
    tensors = {name: torch.arange(8).to(getattr(torch, name)) for name in NEW_TYPES}
    powers = torch.tensor([0.5, 1, 4]).to(torch.float8_e8m0fnu)
    part = torch.arange(24).reshape(4, 6).to(torch.uint16).T[1:3]
    return tensors | {"float8_e8m0fnu": powers, "part": part}


def beside_weights():
    """What a checkpoint of training may hold, and `torch.load(weights_only=True)` takes."""
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.note = "an attribute"
    return {
        "devices": [torch.device("cpu"), torch.device("cuda:0")],
        "size": torch.Size([1, 2]),
        "types": [torch.bfloat16, torch.int4],
        "set": {1, 2},
        "bytes": [b"ab\xff", bytearray(b"x")],
        "complex": 1 + 2j,
        "counter": collections.Counter("aab"),
        "layout": torch.strided,
        "keys": {(1, 2): 3, None: 1, 1.5: 2},
        "large": 2**70,
        "parameter": parameter,
        "sparse": torch.eye(3).to_sparse(),
        "meta": torch.ones(2, device="meta"),
        "storage": torch.ones(3).untyped_storage(),
        "optimizer": torch.optim.AdamW([parameter]).state_dict(),
    }


def write_modern():
    checkpoint = {"state_dict": new_types()} | beside_weights()
    torch.save(checkpoint, GOLDEN / "weights_only.pt")
    torch.load(GOLDEN / "weights_only.pt", weights_only=True)
    arrays = {name: tensor.float().numpy() for name, tensor in new_types().items()}
    np.savez_compressed(GOLDEN / "new_types.npz", **arrays)
    torch.serialization.set_crc32_options(False)
    torch.save({"w": torch.arange(6.0)}, GOLDEN / "no_checksums.pt")
    torch.serialization.set_crc32_options(True)


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
    write_modern()
    for file in sorted(GOLDEN.iterdir()):
        print(file, file.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
