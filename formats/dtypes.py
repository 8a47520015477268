"""The dtypes of safetensors: their names, widths and NumPy equivalents. NumPy is imported only when it is asked for."""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any, cast

from ..codec.errors import UnsupportedError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# In the library's own order, which is also the order of data in the files it writes (widest first, see `library_order`).
DTYPE_BITS: dict[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}

DTYPE_RANK: dict[str, int] = {name: rank for rank, name in enumerate(DTYPE_BITS)}

# F4 and F6 are missing: NumPy has no arrays of less than a byte per element.
_NUMPY_NAMES: dict[str, str] = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}
_SAFETENSORS_NAMES: dict[str, str] = {numpy_name: name for name, numpy_name in _NUMPY_NAMES.items()}


def is_float(dtype: str) -> bool:
    """Whether `dtype` (a safetensors name) holds real floating-point numbers: F64, BF16, F8_E4M3, F4 ..."""
    return dtype in DTYPE_BITS and (dtype.startswith("F") or dtype == "BF16")


def bits_of(dtype: str, default: int | None = None) -> int:
    """Bits of one element. For an unknown dtype `default`, or UnsupportedError where that is None."""
    bits = DTYPE_BITS.get(dtype, default)
    if bits is None:
        raise UnsupportedError(f"unknown dtype {dtype!r}: its size is not known")
    return bits


def tensor_nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor in a file. UnsupportedError if `dtype` is unknown or the elements do not fill whole bytes."""
    nbytes, rest = divmod(prod(shape) * bits_of(dtype), 8)
    if rest:
        raise UnsupportedError(f"{dtype} tensor of shape {list(shape)} does not fill whole bytes")
    return nbytes


@lru_cache(64)
def numpy_dtype(dtype: str) -> np.dtype[Any] | None:
    """The NumPy dtype of a safetensors dtype, little-endian; None if there is none (F4, F6, unknown names)."""
    import numpy as np

    name = _NUMPY_NAMES.get(dtype)
    if name is None:
        return None
    if not hasattr(np, name) and name != "bool":
        import ml_dtypes  # BF16 and F8 only: an FP32 model need not pay for the import

        return cast("np.dtype[Any]", np.dtype(getattr(ml_dtypes, name)))
    return np.dtype(name).newbyteorder("<")


def safetensors_dtype(dtype: np.dtype[Any]) -> str:
    """The safetensors name of a NumPy (or ml_dtypes) dtype of either byte order; UnsupportedError if there is none."""
    name = _SAFETENSORS_NAMES.get(dtype.name)
    if name is None:
        raise UnsupportedError(f"safetensors has no dtype for NumPy's {dtype}")
    return name


def file_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """The bytes of `array` as they stand in a file: uint8 `[nbytes]`, row-major, little-endian.

    A view where the array is laid out so already, else a copy. (ml_dtypes arrays have no buffer interface of their own.)
    """
    import numpy as np

    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return np.ascontiguousarray(little).reshape(-1).view(np.uint8)
