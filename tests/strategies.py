"""Builders of quantized tensors and `.qzc` files, and hypothesis strategies that draw them."""

import io
from collections.abc import Mapping
from math import prod
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from qzc.codec.packing import pack_codes
from qzc.codec.planes import PLAIN, encode_tensor
from qzc.codec.tensor import QuantizationArgs, QuantizedTensor, ScaleDtype, Strategy, matrix_shape
from qzc.formats.dtypes import file_bytes, safetensors_dtype
from qzc.formats.profile import QUANTIZED_DTYPES, CodedTensor, Profile
from qzc.formats.writer import UncodedTensor, Writer

STRATEGIES: tuple[Strategy, ...] = ("tensor", "channel", "group")
SCALE_DTYPES: tuple[ScaleDtype, ...] = ("float16", "bfloat16", "float32")
CODERS = ("ans", "huffman", "raw")


def quantized(
    shape: tuple[int, ...],
    args: QuantizationArgs | None = None,
    *,
    seed: int = 0,
    spread: float = 0.15,
    dtype: str = "F32",
    row_classes: int = 0,
    column_classes: int = 0,
) -> QuantizedTensor:
    """A tensor of random codes: normal around the middle of the grid, `spread` in units of its width, 0 for constant.

    row_classes, column_classes: how many different classes there are; 0 for no class map.
    """
    args = args or QuantizationArgs(4, True, "channel", None, "absmax", "float16")
    rng = np.random.default_rng(seed)
    levels = 1 << args.num_bits
    codes = np.clip(np.rint(rng.normal(levels / 2, levels * spread, prod(shape))), 0, levels - 1).astype(np.uint8)
    scale_shape = args.scale_shape(shape)
    zero_point = None if args.symmetric else rng.integers(0, levels, scale_shape).astype(np.uint8)
    rows, columns = matrix_shape(shape)
    return QuantizedTensor(
        pack_codes(codes, args.storage_bits),
        rng.lognormal(-4, 1, scale_shape).astype(_numpy_dtype(args.scale_dtype)),
        zero_point,
        shape,
        dtype,
        args,
        rng.integers(0, row_classes, rows).astype(np.uint8) if row_classes else None,
        rng.integers(0, column_classes, columns).astype(np.uint8) if column_classes else None,
    )


def written(
    tensors: Mapping[str, QuantizedTensor | NDArray[Any]],
    coders: Mapping[str, str] | None = None,
    ties: Mapping[str, str] | None = None,
    chunk_codes: int = 512,
) -> bytes:
    """A file as the writer makes it, with a coder for each tensor (by default `ans`)."""
    coded = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, QuantizedTensor)}
    plain = {name: tensor for name, tensor in tensors.items() if not isinstance(tensor, QuantizedTensor)}
    entries = {name: CodedTensor(t.dtype, t.shape, t.args, PLAIN[t.scale.dtype.itemsize]) for name, t in coded.items()}
    profile = Profile(entries, dict(ties or {}), None, "a test")
    uncoded = {name: UncodedTensor(safetensors_dtype(a.dtype), a.shape, a.nbytes) for name, a in plain.items()}
    stream = io.BytesIO()
    writer = Writer(stream, profile, uncoded, chunk_codes=chunk_codes, class_maps=list(coded))
    for name in writer.names:
        if name in plain:
            writer.write_uncoded(name, [file_bytes(plain[name])])
        else:
            writer.write_quantized(
                name, encode_tensor(coded[name], (coders or {}).get(name, "ans"), chunk_codes), coded[name]
            )
    writer.finish()
    return stream.getvalue()


@st.composite
def grids(draw: st.DrawFn) -> QuantizationArgs:
    strategy = draw(st.sampled_from(STRATEGIES))
    return QuantizationArgs(
        num_bits=draw(st.integers(1, 8)),
        symmetric=draw(st.booleans()),
        strategy=strategy,
        group_size=draw(st.integers(1, 40)) if strategy == "group" else None,
        scale_method=draw(st.sampled_from(["absmax", "mse"])),
        scale_dtype=draw(st.sampled_from(SCALE_DTYPES)),
    )


def shapes() -> st.SearchStrategy[tuple[int, ...]]:
    """0-d, empty, one element, odd columns, many dimensions; and matrices large enough for several chunks."""
    small = st.lists(st.integers(0, 5), max_size=5).map(tuple)
    return st.one_of(small, st.tuples(st.integers(1, 40), st.integers(1, 70)), st.tuples(st.integers(1, 2000)))


@st.composite
def quantized_tensors(draw: st.DrawFn) -> QuantizedTensor:
    """Of every grid, shape and class map. The codes come from a seed: drawn one by one they would take seconds."""
    return quantized(
        draw(shapes()),
        draw(grids()),
        seed=draw(st.integers(0, 2**32 - 1)),
        spread=draw(st.sampled_from([0, 0.02, 0.15, 1])),
        dtype=draw(st.sampled_from(QUANTIZED_DTYPES)),
        row_classes=draw(st.sampled_from([0, 0, 1, 3, 256])),
        column_classes=draw(st.sampled_from([0, 0, 1, 3, 256])),
    )


def _numpy_dtype(name: str) -> np.dtype[Any]:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
