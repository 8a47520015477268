"""The vector kernels under the names that `select` looks for."""

from __future__ import annotations

from .ans16_encode_avx2 import encode_ans16
from .ans256_avx2 import encode_ans256

__all__ = ["encode_ans16", "encode_ans256"]
