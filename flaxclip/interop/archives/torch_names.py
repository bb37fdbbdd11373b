"""Names that pickles of torch may use, and their meaning; nothing is ever called.

Those of `torch.load(weights_only=True)` (torch 2.14, `_weights_only_unpickler.py`), of TorchScript,
and `argparse.Namespace`, in which timm saves the flags of a run beside its weights.
"""

import ml_dtypes
import numpy as np

_STORAGES = {
    "Double": np.float64, "Float": np.float32, "Half": np.float16,
    "BFloat16": ml_dtypes.bfloat16, "Long": np.int64, "Int": np.int32, "Short": np.int16,
    "Char": np.int8, "Byte": np.uint8, "Bool": np.bool_,
    "ComplexFloat": np.complex64, "ComplexDouble": np.complex128,
}  # fmt: skip
STORAGES = {
    f"{place}.{name}Storage": np.dtype(dtype)
    for name, dtype in _STORAGES.items()
    for place in ("torch", "torch.cuda")
} | {"torch.storage.UntypedStorage": np.dtype(np.uint8)}
"""Kinds of storages and the numbers in them."""

DTYPES = {
    f"torch.{name}": np.dtype(getattr(ml_dtypes, name, None) or name)
    for name in (
        "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2",
        "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "complex64", "complex128",
        "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool",
    )
}  # fmt: skip
"""Types that numbers of torch can have, and NumPy's too."""

_PACKED_DTYPES = {
    "torch.float4_e2m1fn_x2", "torch.complex32", "torch.bcomplex32",
    *(f"torch.bits{kind}" for kind in ("16", "1x8", "2x4", "4x2", "8")),
    *(f"torch.{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)),
}  # fmt: skip

SCRIPT_CLASSES = "__torch__."
"""Prefix of the names of TorchScript's classes."""

RECORDS = {"argparse.Namespace"}
"""Classes of objects that have only attributes."""

DICTS = {"collections.OrderedDict", "collections.Counter"}

REBUILD_TENSOR = {
    "torch._utils._rebuild_tensor": 1,
    "torch._utils._rebuild_tensor_v2": 2,
    "torch._utils._rebuild_tensor_v3": 3,
}
"""Functions that make a tensor of a storage, and their versions."""

REBUILD_FROM_TYPE = "torch._tensor._rebuild_from_type_v2"

WRAPPERS = {
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor",
    "torch.jit._pickle.restore_type_tag",
    *(f"torch.jit._pickle.build_{kind}list" for kind in ("int", "double", "bool", "tensor")),
    "torch.Size",
    "builtins.set",
    "builtins.frozenset",
}
"""Functions whose first argument is all that matters: a parameter's tensor, a list."""

OTHERS = {
    "_codecs.encode": "bytes",
    "builtins.bytes": "bytes",
    "builtins.bytearray": "bytes",
    "builtins.complex": "a complex number",
    "torch.device": "a device",
    "torch.serialization._get_layout": "a layout",
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor without numbers",
    "torch._utils._rebuild_wrapper_subclass": "a tensor without numbers",
}
"""Functions that make no weights, and the kind of their results."""

QUANTISED = {
    "torch._utils._rebuild_qtensor",
    *(f"torch.Q{kind}Storage" for kind in ("Int8", "Int32", "UInt8", "UInt4x2", "UInt2x4")),
}

_VALUES = {
    "torch.Tensor", "torch.nn.parameter.Parameter",
    *(f"torch.per_{kind}" for kind in (
        "tensor_affine", "tensor_symmetric", "channel_affine", "channel_symmetric",
        "channel_affine_float_qparams",
    )),
    *(f"torch.{kind}" for kind in ("qint8", "qint32", "quint8", "quint4x2", "quint2x4")),
    *(
        f"{place}.{name}Tensor"
        for name in _STORAGES
        for place in ("torch", "torch.cuda", "torch.sparse", "torch.cuda.sparse")
    ),
}  # fmt: skip

KNOWN = frozenset().union(
    STORAGES, DTYPES, _PACKED_DTYPES, RECORDS, DICTS, REBUILD_TENSOR, [REBUILD_FROM_TYPE],
    WRAPPERS, OTHERS, _VALUES,
)  # fmt: skip
"""All of them but TorchScript's classes."""
