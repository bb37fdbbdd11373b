"""A safetensors file -> tensors by name. The format has no checksums."""

import json
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors

from flaxclip.errors import InputError
from flaxclip.interop.archives.stored_tensor import Extent, StoredTensor

MAX_HEADER = 100_000_000
"""Bytes, of the library that defines the format."""

# NumPy alone knows neither bfloat16 nor numbers of 8 bits. Those of 4 and 6 are packed, and not
# here.
_TYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz, "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu, "C64": np.complex64, "BOOL": np.bool_,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8,
    "U16": np.uint16, "U32": np.uint32, "U64": np.uint64,
}  # fmt: skip


def is_safetensors(start: bytes) -> bool:
    """True if a file that begins with these 9 bytes or more is a safetensors file.

    Its first 8 bytes are the length of its header, which can look like the start of a zip archive,
    a pickle or JSON. None of these has both a length within the format's limit and the header's
    brace right after it: at that place a zip archive has its method of compression, which is 0 or
    8, a pickle of torch the magic number, and text has no zeros before it.
    """
    return start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] <= MAX_HEADER


def open_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Its tensors.

    Raises:
        InputError: it is damaged or cut off, or has a type of number that we lack.
    """
    try:
        # The library checks the header: offsets in range, without gaps or overlaps. Its own reader
        # maps the file, all of which would stay in memory beside our parameters.
        with safetensors.safe_open(path, framework="numpy"):
            pass
    except safetensors.SafetensorError as error:
        raise InputError(f"not a whole safetensors file: {error}") from None
    with path.open("rb") as file:
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(header_bytes))

    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _TYPES:
            raise InputError(
                f"tensor {name} is of type {entry['dtype']}\n"
                "expected floating-point weights; quantised files cannot be read"
            )
        extent = Extent(path, 8 + header_bytes + entry["data_offsets"][0])
        dtype = np.dtype(_TYPES[entry["dtype"]])
        tensors[name] = StoredTensor(name, tuple(entry["shape"]), dtype, extent)
    return tensors
