"""Which kernels run: vector ones where the CPU and the environment allow, portable ones elsewhere. Same bytes."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidArgumentError

Encode = Callable[[NDArray[np.uint8], int, NDArray[np.uint16], NDArray[np.uint8]], int]
Batch = Callable[[NDArray[Any], NDArray[np.int64]], None]


class AnsKernels(NamedTuple):
    """Those that encode; signatures and duties: see `ans_portable`."""

    encode_ans16: Encode
    encode_ans256: Encode


@cache
def ans_kernels() -> AnsKernels:
    """The ANS kernels of this process: see `vector_kernels`."""
    from . import ans_portable

    sources: list[ModuleType] = [ans_portable]
    if vector_kernels():
        from . import ans_avx2

        sources.insert(0, ans_avx2)
    # A kernel without a vector twin is taken from the portable set, which comes last.
    return AnsKernels(*(next(getattr(m, name) for m in sources if hasattr(m, name)) for name in AnsKernels._fields))


@cache
def batch_kernels() -> dict[int, Batch]:
    """By coder id the loop that decodes a batch of chunks."""
    from . import batch

    ans: ModuleType = batch
    if vector_kernels():
        from . import batch_avx2

        ans = batch_avx2
    return {
        0: batch.copy, 1: batch.fill, 2: ans.decode_ans16, 3: ans.decode_ans256, 4: batch.decode_huffman,
        5: ans.decode_split8, 6: ans.decode_escape16, 8: batch.decode_short16,
        9: batch.decode_short256,
    }  # fmt: skip


@cache
def count_nibbles() -> Callable[[NDArray[np.uint8], NDArray[np.int64]], None]:
    """The kernel that counts nibbles; its duties: see `bits`."""
    if vector_kernels():
        from . import nibbles_avx2

        return nibbles_avx2.count_nibbles
    from . import bits

    return bits.count_nibbles


@cache
def nibble_run() -> ModuleType:
    """The module of the loops over the chunks of a run; its duties: see `nibble_run`."""
    if vector_kernels():
        from . import nibble_run_avx2

        return nibble_run_avx2
    from . import nibble_run

    return nibble_run


@cache
def escape_run() -> ModuleType:
    """The module of the loops over the chunks of a run of bytes; its duties: see `escape_run`."""
    if vector_kernels():
        from . import escape_run_avx2

        return escape_run_avx2
    from . import escape_run

    return escape_run


@cache
def to_nibbles() -> Callable[[NDArray[np.uint8], NDArray[np.uint16], NDArray[np.uint8], NDArray[np.uint8]], int]:
    """The kernel that turns bytes into symbols of coder 6; its duties: see `escape16`."""
    if vector_kernels():
        from . import escape16_avx2

        return escape16_avx2.to_nibbles
    from . import escape16

    return escape16.to_nibbles


@cache
def join_escaped() -> Callable[..., None] | None:
    """The vector kernel that joins floats while it decodes their exponents, where there is one."""
    if not vector_kernels():
        return None
    from . import join_escaped_avx2

    return join_escaped_avx2.join_escaped


@cache
def dequantize4() -> Callable[..., None] | None:
    """The vector kernel that turns 4-bit codes into 16-bit floats, where there is one."""
    if not vector_kernels():
        return None
    from . import dequantize_avx2

    return dequantize_avx2.dequantize4


def vector_kernels() -> bool:
    """Whether AVX2 kernels may run in this process: the CPU has it, and QZC_KERNELS is not `portable`.

    Raises InvalidArgumentError for another value of QZC_KERNELS than `auto` and `portable`.
    """
    choice = os.environ.get("QZC_KERNELS") or "auto"
    if choice not in ("auto", "portable"):
        raise InvalidArgumentError(f"QZC_KERNELS is {choice!r}; choose auto or portable")
    return choice == "auto" and _has_avx2()


def _has_avx2() -> bool:
    import llvmlite.binding
    from numba import config

    # numba can be told to compile for another CPU than the host; LLVM aborts on an instruction that CPU lacks.
    if config.CPU_NAME or config.CPU_FEATURES:
        return False
    return bool(llvmlite.binding.get_host_cpu_features().get("avx2", False))
