"""What is in the golden files. `fixtures/make_golden.py` writes them once; `test_golden.py` reads them for ever."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import xxhash
from numpy.typing import NDArray

from qzc.codec.packing import pack_codes
from qzc.codec.planes import encode_tensor
from qzc.codec.tensor import QuantizationArgs, QuantizedTensor
from qzc.formats.dtypes import file_bytes, safetensors_dtype
from qzc.formats.profile import CodedTensor, Profile
from qzc.formats.safetensors import SafetensorsFile
from qzc.formats.writer import UncodedTensor, Writer
from qzc.quantize.rtn import quantize
from tests.reference_decoder import Decoded
from tests.strategies import CODERS

Tensors = Mapping[str, QuantizedTensor | NDArray[Any]]
WRITER = "qzc golden"


@dataclass(frozen=True)
class Golden:
    """The content of a golden file, and how it is coded."""

    name: str
    tensors: Tensors
    coder: str = "ans"
    chunk_codes: int = 1200
    ties: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] | None = None


def golden(model: Path) -> Iterator[Golden]:
    """Every golden file, from the weights of the fixture `model`."""
    with SafetensorsFile(model) as file:
        down = np.array(file.array("model.layers.0.mlp.down_proj.weight")[:9])  # 192 columns: a short last group
        embed = np.array(file.array("model.embed_tokens.weight")[96:105])
        norm = np.array(file.array("model.norm.weight")[:32])
    # Outliers, as large models have them: they leave most levels unused, and so few codes gain from coding at all.
    down[5, 17] = 8 * down.max()
    embed[:, ::128] = 6 * embed.max()
    for coder in CODERS:
        for bits in range(1, 9):
            channel = QuantizationArgs(bits, True, "channel" if bits % 2 else "tensor", None, "absmax", "float16")
            group = QuantizationArgs(bits, False, "group", 128, "absmax", "bfloat16")
            weights: Tensors = {
                "down.weight": quantize(down, channel, "F32"),
                "embed.weight": quantize(embed, group, "F32"),
                "norm.weight": norm,
            }
            yield Golden(f"{coder}-{bits}bit", weights, coder)
    fine = QuantizationArgs(4, True, "group", 128, "mse", "float16")
    whole = QuantizationArgs(4, True, "tensor", None, "absmax", "float32")
    half = down[:, :48].astype(ml_dtypes.bfloat16)
    yield Golden("float32_scale", {"w": quantize(down, whole, "F32"), "v": quantize(half, whole, "BF16")})
    yield Golden("class_maps", dict(with_class_maps(down)))
    shared: Tensors = {"a.weight": quantize(down[:8], fine, "F32"), "n.weight": norm}
    yield Golden("ties", shared, "huffman", ties={"b.weight": "a.weight", "m.weight": "n.weight"})
    yield Golden("uncoded_dtypes", dict(of_every_dtype()), metadata={"format": "pt", "ключ": "значение"})
    yield Golden("streams", {f"{bits}bit": skewed(bits) for bits in (4, 8)}, chunk_codes=1 << 17)
    yield Golden("split_streams", {"8bit": even()}, chunk_codes=1 << 17)
    yield Golden("constant", {"zeros": quantize(np.zeros((4, 300), np.float32), whole, "F32")})
    yield Golden("no_tensors", {})


def with_class_maps(weights: NDArray[np.float32]) -> Iterator[tuple[str, QuantizedTensor]]:
    """Rows, columns and both in classes, so that the codes are not in row-major order."""
    rows = np.arange(weights.shape[0], dtype=np.uint8) % 3
    columns = (np.arange(weights.shape[1]) // 50 * 2).astype(np.uint8)
    args = QuantizationArgs(3, True, "channel", None, "mse", "float16")
    tensor = quantize(weights, args, "F16")
    for name, row_class, column_class in (("rows", rows, None), ("columns", None, columns), ("both", rows, columns)):
        yield (
            name,
            QuantizedTensor(tensor.packed, tensor.scale, None, tensor.shape, "F16", args, row_class, column_class),
        )


def of_every_dtype() -> Iterator[tuple[str, NDArray[Any]]]:
    dtypes: list[Any] = [
        np.bool_, np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64, np.float16,
        np.float32, np.float64, np.complex64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2,
    ]  # fmt: skip
    for dtype in dtypes:
        yield f"three.{np.dtype(dtype).name}", np.array([0, 1, 1]).astype(dtype)
    yield "scalar", np.array(-2.5, np.float32)
    yield "empty", np.zeros((0, 7), np.int32)
    yield "μ/нулл \N{SNOWMAN}", np.arange(6, dtype=np.int16).reshape(1, 2, 3)


def skewed(bits: int) -> QuantizedTensor:
    """So large that its chunk has several streams, and so skewed that it takes little room."""
    likely, others = {4: (8, [1, 7, 9]), 8: (128, [0, 127, 129, 255])}[bits]
    count = 65536 * 8 // bits
    numbers = random_numbers(count)
    codes = np.full(count, likely, np.uint8)
    for i, other in enumerate(others):
        codes[numbers % 64 == i] = other
    args = QuantizationArgs(bits, True, "tensor", None, "absmax", "float16")
    shape = (64, count // 64)
    return QuantizedTensor(pack_codes(codes, bits), np.array([0.5], np.float16), None, shape, "F32", args)


def even() -> QuantizedTensor:
    """So large that split8 has two streams: codes that have nothing to gain in their low nibbles, and little in the high."""
    numbers = random_numbers(65536)
    codes = (numbers // 64 % 16 + np.where(numbers % 64 == 0, 104, 120)).astype(np.uint8)
    args = QuantizationArgs(8, True, "tensor", None, "absmax", "float16")
    return QuantizedTensor(codes, np.array([0.5], np.float16), None, (64, 1024), "F32", args)


def random_numbers(count: int) -> NDArray[np.int64]:
    """Below 2^16. Not from a generator of NumPy: those may change. Powers of 5 run through all residues."""
    return np.array([pow(5, i, 1 << 32) >> 16 for i in range(count)])


def encode(case: Golden) -> bytes:
    """The file of a case, as the writer makes it today."""
    coded = {name: tensor for name, tensor in case.tensors.items() if isinstance(tensor, QuantizedTensor)}
    plain = {name: tensor for name, tensor in case.tensors.items() if not isinstance(tensor, QuantizedTensor)}
    profile = Profile(
        coded={name: CodedTensor(t.dtype, t.shape, t.args) for name, t in coded.items()},
        ties=dict(case.ties),
        source_metadata=dict(case.metadata) if case.metadata else None,
        writer=WRITER,
    )
    uncoded = {name: UncodedTensor(safetensors_dtype(a.dtype), a.shape, a.nbytes) for name, a in plain.items()}
    maps = [name for name, t in coded.items() if t.row_class is not None or t.column_class is not None]
    stream = io.BytesIO()
    writer = Writer(stream, profile, uncoded, chunk_codes=case.chunk_codes, class_maps=maps)
    for name in writer.names:
        if name in plain:
            writer.write_uncoded(name, [file_bytes(plain[name])])
        else:
            writer.write_coded(name, encode_tensor(coded[name], case.coder, case.chunk_codes), coded[name])
    writer.finish()
    return stream.getvalue()


def described(tensor: QuantizedTensor | NDArray[Any]) -> dict[str, Any]:
    """What a decoder must make of a tensor: dtype, shape, and the XXH3-128 of its numbers, little-endian, row-major.

    Codes are one per byte; scale, zero point and the dequantized weights float32.
    """
    if not isinstance(tensor, QuantizedTensor):
        return {"dtype": safetensors_dtype(tensor.dtype), "shape": [*tensor.shape], "data": digest(file_bytes(tensor))}
    zero_point = np.full(tensor.scale.shape, tensor.args.symmetric_zero_point, np.float32)
    if tensor.zero_point is not None:
        zero_point = tensor.zero_point.astype(np.float32)
    return {
        "dtype": tensor.dtype,
        "shape": [*tensor.shape],
        "codes": digest(tensor.codes),
        "scale": digest(tensor.scale.astype(np.float32)),
        "zero_point": digest(zero_point),
        "dequantized": digest(tensor.dequantize()),
    }


def described_by_reference(tensor: Decoded) -> dict[str, Any]:
    """The same of a tensor that the reference decoder has decoded."""
    described = {"dtype": tensor.dtype, "shape": [*tensor.shape]}
    if tensor.raw is not None:
        return {**described, "data": xxhash.xxh3_128_hexdigest(tensor.raw)}
    numbers = {what: getattr(tensor, what) for what in ("codes", "scale", "zero_point", "dequantized")}
    return {**described, **{what: digest(array) for what, array in numbers.items()}}


def digest(array: NDArray[Any]) -> str:
    return str(xxhash.xxh3_128_hexdigest(np.ascontiguousarray(array).tobytes()))
