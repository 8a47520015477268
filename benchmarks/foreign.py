"""Checkpoints in other people's layouts, made from the matrices of a real model: by the libraries of these layouts where they
run, else as `tests/layout_writers.py` lays them out, which the tests check against these libraries.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from qzc.codec.tensor import QuantizationArgs
from qzc.quantize.rtn import quantize
from tests import layout_writers as layouts

Weights = dict[str, NDArray[np.float32]]  # by the name of the module: [out, in]
Maker = Callable[[Weights, Path], Path]
SUPER_BLOCK = 256
K_TYPES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")


class MissingError(Exception):
    """A library that a layout needs is not here."""


def makers(ggml: Path | None) -> Iterator[tuple[str, Maker]]:
    """By name what writes a checkpoint into an empty folder, and gives what to pack. MissingError: it cannot, here."""
    yield "GPTQ int4 g128", gptq
    yield "AWQ int4 g128", awq
    yield "compressed-tensors int4 g128", compressed
    yield "bitsandbytes nf4", bitsandbytes
    yield "MLX int4 g64", mlx
    for kind in ("Q4_0", "Q5_0", "Q5_1", "Q8_0", *K_TYPES):
        yield f"GGUF {kind}", _gguf(kind, ggml)


def gptq(weights: Weights, folder: Path) -> Path:
    """As AutoGPTQ writes it: symmetric, absmax, zero points of 8 stored as 7."""

    def parts(name: str, weight: NDArray[np.float32]) -> layouts.Checkpoint:
        tensor = quantize(weight, QuantizationArgs(scale_method="absmax"), "F32")
        zeros = np.full(tensor.scale.shape, 8, np.uint8)
        matrix = layouts.Quantized(tensor.codes, tensor.scale.astype(np.float32), zeros, 4, 128)
        return layouts.gptq(matrix, prefix=f"{name}.")

    return _save([parts(name, weight) for name, weight in weights.items()], folder)


def awq(weights: Weights, folder: Path) -> Path:
    parts = (layouts.awq(layouts.quantize(weight, 4, 128), prefix=f"{name}.") for name, weight in weights.items())
    return _save(list(parts), folder)


def compressed(weights: Weights, folder: Path) -> Path:
    torch, compressors = _library("torch"), _library("compressed_tensors.compressors")
    quantization = _library("compressed_tensors.quantization")
    args = quantization.QuantizationArgs(num_bits=4, symmetric=True, strategy="group", group_size=128)
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=args)
    packer = compressors.BaseCompressor.get_value_from_registry("pack-quantized")
    state: dict[str, Any] = {}
    for name, weight in weights.items():
        matrix = torch.from_numpy(weight)
        scale = (matrix.reshape(len(weight), -1, 128).abs().amax(2) / 7.5).to(torch.float16)
        packed = packer.compress({"weight": matrix, "weight_scale": scale}, scheme)
        state.update({f"{name}.{key}": value.contiguous() for key, value in packed.items()})
    config = quantization.QuantizationConfig(config_groups={"group_0": scheme}, format="pack-quantized").model_dump()
    return _save_torch(state, {"quantization_config": config}, folder)


def bitsandbytes(weights: Weights, folder: Path) -> Path:
    """With statistics that are quantized too, as QLoRA has them."""
    torch, functional = _library("torch"), _library("bitsandbytes.functional")
    state: dict[str, Any] = {}
    for name, weight in weights.items():
        packed, kept = functional.quantize_4bit(torch.from_numpy(weight), quant_type="nf4", compress_statistics=True)
        state[f"{name}.weight"] = packed.contiguous()
        state.update({f"{name}.weight.{k}": v.contiguous() for k, v in kept.as_dict(packed=True).items()})
    return _save_torch(state, {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, folder)


def mlx(weights: Weights, folder: Path) -> Path:
    mx = _library("mlx.core")
    tensors: dict[str, Any] = {}
    for name, weight in weights.items():
        parts = mx.quantize(mx.array(weight).astype(mx.float16), 64, 4)
        tensors.update(zip((f"{name}.weight", f"{name}.scales", f"{name}.biases"), parts, strict=True))
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    (folder / "config.json").write_text(json.dumps({"quantization": {"bits": 4, "group_size": 64}}))
    return folder


def _gguf(kind: str, ggml: Path | None) -> Maker:
    def make(weights: Weights, folder: Path) -> Path:
        gguf = _library("gguf")
        code, path = gguf.GGMLQuantizationType[kind], folder / "model.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        for name, weight in weights.items():
            if kind in K_TYPES:  # rows shorter than a block follow one another
                blocks = _k_blocks(weight, kind, ggml, *gguf.GGML_QUANT_SIZES[code])
            else:
                blocks = gguf.quants.quantize(weight, code)
            writer.add_tensor(f"{name}.weight", blocks, raw_dtype=code)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return make


def _k_blocks(
    weight: NDArray[np.float32], kind: str, ggml: Path | None, elements: int, nbytes: int
) -> NDArray[np.uint8]:
    """The K types, which the gguf package can read but not write: by ggml's own functions."""
    if ggml is None:
        raise MissingError("a library with ggml's quantizers (--ggml)")
    try:
        quantizer = getattr(ctypes.CDLL(str(ggml)), f"ggml_quantize_{kind.lower().replace('_k', '_K')}")
    except (OSError, AttributeError) as error:
        raise MissingError(f"ggml's quantizers ({error})") from None
    quantizer.restype = ctypes.c_size_t
    blocks, histogram = np.zeros((weight.size // elements, nbytes), np.uint8), np.zeros(16, np.int64)
    row = np.ascontiguousarray(weight, np.float32)
    size = ctypes.c_int(weight.size)  # as one row: its loop over rows ends early
    addresses = (ctypes.c_void_p(array.ctypes.data) for array in (row, blocks, histogram))
    source, target, counts = addresses
    written = quantizer(source, target, size, size, counts)
    if written != blocks.nbytes:
        raise SystemExit(f"{kind}: ggml wrote {written} bytes, expected {blocks.nbytes}")
    return blocks


def _save(parts: list[layouts.Checkpoint], folder: Path) -> Path:
    save_file({name: array for part in parts for name, array in part.tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(parts[0].config))
    return folder


def _save_torch(state: dict[str, Any], config: dict[str, Any], folder: Path) -> Path:
    _library("safetensors.torch").save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, default=str))
    return folder


def _library(name: str) -> Any:
    """An optional module; its warnings about itself are none of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ImportError:
            raise MissingError(name.partition(".")[0]) from None
