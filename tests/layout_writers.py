"""Quantized checkpoints as their tools lay them out, written with NumPy alone: for tests of recognition and of byte planes.

Codes are packed here bit by bit, without any of the project's packing.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

DTYPES = {
    "int32": "I32",
    "uint32": "U32",
    "uint8": "U8",
    "int8": "I8",
    "float16": "F16",
    "float32": "F32",
    "int64": "I64",
}


@dataclass(frozen=True)
class Quantized:
    """A matrix `[out, in]`: codes, scales `[out, groups]` float32, zero points `[out, groups]`."""

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zeros: NDArray[np.uint8]
    bits: int
    group: int


@dataclass(frozen=True)
class Checkpoint:
    """config: of its folder. codes: for each tensor of packed codes these codes, in some order."""

    config: dict[str, Any]
    tensors: dict[str, Array]
    codes: dict[str, NDArray[np.uint8]]

    @property
    def info(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Dtype and shape of every tensor, as a header has them."""
        return {name: (DTYPES[array.dtype.name], array.shape) for name, array in self.tensors.items()}

    def raw(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a tensor."""
        return np.ascontiguousarray(self.tensors[name]).reshape(-1).view(np.uint8)


def quantize(weight: Array, bits: int, group: int) -> Quantized:
    """Asymmetric round to nearest in groups along the input; the shape must be whole groups."""
    rows, columns = weight.shape
    groups = weight.astype(np.float32).reshape(rows, columns // group, group)
    low, high = np.minimum(groups.min(axis=2), 0), np.maximum(groups.max(axis=2), 0)
    scales = np.maximum((high - low) / (2**bits - 1), np.float32(1e-8)).astype(np.float32)
    zeros = np.clip(np.round(-low / scales), 0, 2**bits - 1)
    codes = np.clip(np.round(groups / scales[:, :, None]) + zeros[:, :, None], 0, 2**bits - 1)
    return Quantized(codes.reshape(rows, columns).astype(np.uint8), scales, zeros.astype(np.uint8), bits, group)


def random_weight(rows: int, columns: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).laplace(0, 0.02, (rows, columns)).astype(np.float32)


def packed_bytes(codes: Array, bits: int) -> NDArray[np.uint8]:
    """Codes of each row one after another, from the lowest bit up: uint8 `[rows, ceil(n * bits / 8)]`."""
    ones = (codes[..., None] >> np.arange(bits)) & 1
    return np.packbits(ones.reshape(*codes.shape[:-1], -1).astype(np.uint8), axis=-1, bitorder="little")


def words(codes: Array, bits: int) -> NDArray[np.uint32]:
    """`packed_bytes` in words of 32 bits, the last one of each row filled up with zeros."""
    packed = packed_bytes(codes, bits)
    gap = -packed.shape[-1] % 4
    return np.ascontiguousarray(np.pad(packed, [(0, 0)] * (codes.ndim - 1) + [(0, gap)])).view("<u4").astype(np.uint32)


def padded_words(codes: Array, bits: int) -> NDArray[np.uint32]:
    """32 // bits codes in each word, the rest of its bits zero."""
    each = 32 // bits
    filled = np.pad(codes, [(0, 0), (0, -codes.shape[1] % each)]).reshape(codes.shape[0], -1, each)
    shifted = filled.astype(np.uint32) << (np.arange(each, dtype=np.uint32) * np.uint32(bits))
    packed: NDArray[np.uint32] = shifted.sum(axis=2, dtype=np.uint32)
    return packed


def gptq(
    matrix: Quantized, *, act_order: bool = False, version: int = 1, prefix: str = "model.layers.0.q_proj."
) -> Checkpoint:
    """qweight and qzeros packed along input and output; version 1 keeps zero points minus one."""
    columns = matrix.codes.shape[1]
    stored_zeros = (matrix.zeros.T - (1 if version == 1 else 0)) & (2**matrix.bits - 1)
    g_idx = (np.arange(columns) // matrix.group).astype(np.int32)
    if act_order:
        g_idx = np.random.default_rng(1).permutation(g_idx)
    tensors: dict[str, Array] = {
        "qweight": np.ascontiguousarray(words(matrix.codes, matrix.bits).T).view(np.int32),
        "qzeros": words(stored_zeros, matrix.bits).view(np.int32),
        "scales": np.ascontiguousarray(matrix.scales.T).astype(np.float16),
        "g_idx": g_idx,
    }
    settings = {"quant_method": "gptq", "bits": matrix.bits, "group_size": matrix.group, "desc_act": act_order}
    return Checkpoint(
        {"model_type": "llama", "quantization_config": settings},
        {prefix + name: array for name, array in tensors.items()},
        {prefix + "qweight": matrix.codes, prefix + "qzeros": stored_zeros},
    )


def awq(matrix: Quantized, *, prefix: str = "model.layers.0.q_proj.") -> Checkpoint:
    """GEMM: eight outputs in a word, in an order of their own."""

    def packed(codes: Array) -> NDArray[np.int32]:
        order = codes.reshape(codes.shape[0], -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]]
        return words(order.reshape(codes.shape), 4).view(np.int32)

    tensors: dict[str, Array] = {
        "qweight": packed(matrix.codes.T),
        "qzeros": packed(matrix.zeros.T),
        "scales": np.ascontiguousarray(matrix.scales.T).astype(np.float16),
    }
    settings = {"quant_method": "awq", "bits": 4, "group_size": matrix.group, "version": "gemm", "zero_point": True}
    return Checkpoint(
        {"quantization_config": settings},
        {prefix + name: array for name, array in tensors.items()},
        {prefix + "qweight": matrix.codes, prefix + "qzeros": matrix.zeros},
    )


def compressed(matrix: Quantized, *, old: bool = False, prefix: str = "model.layers.0.q_proj.") -> Checkpoint:
    """pack-quantized, asymmetric. old: as versions wrote it that did not let codes cross from word to word."""
    pack = padded_words if old else words
    tensors: dict[str, Array] = {
        "weight_packed": pack(matrix.codes, matrix.bits).view(np.int32),
        "weight_scale": matrix.scales.astype(np.float16),
        "weight_zero_point": np.ascontiguousarray(pack(matrix.zeros.T, matrix.bits).T).view(np.int32),
        "weight_shape": np.array(matrix.codes.shape, np.int64),
    }
    weights = {
        "num_bits": matrix.bits,
        "type": "int",
        "strategy": "group",
        "group_size": matrix.group,
        "symmetric": False,
    }
    settings = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }
    return Checkpoint(
        {"quantization_config": settings},
        {prefix + name: array for name, array in tensors.items()},
        {prefix + "weight_packed": matrix.codes, prefix + "weight_zero_point": matrix.zeros},
    )


def naive(matrix: Quantized, *, prefix: str = "model.layers.0.q_proj.") -> Checkpoint:
    """compressed-tensors' int-quantized: a code in each byte."""
    codes = (matrix.codes.astype(np.int16) - 128).astype(np.int8)
    settings = {"quant_method": "compressed-tensors", "format": "int-quantized"}
    return Checkpoint(
        {"compression_config": settings},
        {prefix + "weight": codes, prefix + "weight_scale": matrix.scales},
        {prefix + "weight": codes.view(np.uint8)},
    )


def bitsandbytes(matrix: Quantized, *, kind: str = "nf4", prefix: str = "model.layers.0.q_proj.") -> Checkpoint:
    """4 bits: two codes to a byte, the first one in the high nibble, in one column; scales of 8 bits ("double quant")."""
    flat = matrix.codes.reshape(-1, 2)
    tensors: dict[str, Array] = {
        "weight": (flat[:, :1] << 4 | flat[:, 1:]).astype(np.uint8),
        "weight.absmax": np.arange(flat.size // 64, dtype=np.uint8),
        "weight.quant_map": np.linspace(-1, 1, 16, dtype=np.float32),
        "weight.nested_absmax": np.ones(1, np.float32),
        f"weight.quant_state.bitsandbytes__{kind}": np.frombuffer(b'{"quant_type": "nf4"}', np.uint8),
    }
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    named = {prefix + name: array for name, array in tensors.items()}
    return Checkpoint({"quantization_config": settings}, named, {prefix + "weight": matrix.codes})


def mlx(matrix: Quantized, *, prefix: str = "model.layers.0.q_proj.") -> Checkpoint:
    """Rows without gaps, scales and biases beside them."""
    tensors: dict[str, Array] = {
        "weight": words(matrix.codes, matrix.bits),
        "scales": matrix.scales.astype(np.float16),
        "biases": (-matrix.scales * matrix.zeros).astype(np.float16),
    }
    config = {"model_type": "llama", "quantization": {"group_size": matrix.group, "bits": matrix.bits}}
    return Checkpoint(config, {prefix + name: a for name, a in tensors.items()}, {prefix + "weight": matrix.codes})


def gguf_string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def gguf_value(key: str, kind: int, value: bytes) -> bytes:
    """One entry of the metadata. kind: 4 is uint32, 8 a string, 9 an array."""
    return gguf_string(key) + struct.pack("<I", kind) + value


def gguf_tensor(name: str, shape: Sequence[int], kind: int, offset: int) -> bytes:
    """One tensor of the header; the shape as in NumPy. kind: 0 is F32, 2 is Q4_0."""
    return gguf_string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, offset)


def gguf_file(
    values: Sequence[bytes],
    tensors: Sequence[bytes],
    data: bytes,
    *,
    version: int = 3,
    alignment: int = 32,
    counts: Mapping[str, int] | None = None,
) -> bytes:
    """A file of these parts, whatever they say. counts: "tensors", "values" to claim instead of the true numbers."""
    claimed = {"tensors": len(tensors), "values": len(values), **(counts or {})}
    head = b"GGUF" + struct.pack("<IQQ", version, claimed["tensors"], claimed["values"]) + b"".join([*values, *tensors])
    return head + bytes(-len(head) % alignment) + data
