"""Recognition against the tools that write these checkpoints: compressed-tensors, bitsandbytes and MLX, where installed."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from qzc.codec.packing import unpack_codes
from qzc.codec.records import join, split
from qzc.formats.layouts.layout import Found, detect
from qzc.formats.safetensors import SafetensorsFile

NAME = "model.layers.0.self_attn.q_proj"


def library(name: str) -> Any:
    """An optional module; its warnings about itself are none of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(name.partition(".")[0], exc_type=ImportError)
        return importlib.import_module(name)


def recognized(path: Path, config: dict[str, Any] | None) -> tuple[Found, dict[str, NDArray[np.uint8]]]:
    """What is found in a file, and the first plane of each tensor with a hint; all hints give the bytes back."""
    with SafetensorsFile(path) as file:
        found = detect(config, {name: (file.info(name).dtype, file.info(name).shape) for name in file.keys()})
        assert found is not None
        planes: dict[str, NDArray[np.uint8]] = {}
        for name, splits in found.hints.items():
            data = file.raw(name)
            for records in splits:
                back = np.empty_like(data)
                join(split(data, records), records, back)
                np.testing.assert_array_equal(back, data)
            records = splits[0]
            planes[name] = unpack_codes(split(data, records)[0], records.codes(data.size)[0], records.widths[0])
        return found, planes


@pytest.fixture(scope="module")
def weight(model_file: Path) -> NDArray[np.float32]:
    """A real matrix `[out, in]`."""
    matrix: NDArray[np.float32] = load_file(model_file)[f"{NAME}.weight"]
    return matrix


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("symmetric", [True, False])
def test_compressed_tensors_pack_quantized(bits: int, symmetric: bool, weight: NDArray[Any], tmp_path: Path) -> None:
    torch, compressed = library("torch"), library("compressed_tensors.compressors")
    quantization, save = library("compressed_tensors.quantization"), library("safetensors.torch").save_file
    group, limit = 64, 2 ** (bits - 1)
    args = quantization.QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy="group", group_size=group)
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=args)
    matrix = torch.from_numpy(weight[:96].copy())
    groups = matrix.reshape(96, -1, group)
    state = {"weight": matrix, "weight_scale": groups.abs().amax(2) / max(1, limit - 1)}
    if not symmetric:
        state["weight_zero_point"] = torch.arange(groups[:, :, 0].numel()).reshape(96, -1).to(torch.int8) % limit
    zeros = state.get("weight_zero_point")
    packer = compressed.BaseCompressor.get_value_from_registry("pack-quantized")
    stored = packer.compress(state, scheme)
    save({f"{NAME}.{key}": value.contiguous() for key, value in stored.items()}, tmp_path / "model.safetensors")
    settings = quantization.QuantizationConfig(config_groups={"group_0": scheme}, format="pack-quantized").model_dump()
    found, planes = recognized(tmp_path / "model.safetensors", {"quantization_config": settings})
    assert found.description == f"compressed-tensors int{bits} group 64 (pack-quantized)"
    back = packer.decompress(dict(stored), scheme)["weight"].reshape(96, -1, group)
    codes = torch.round(back / state["weight_scale"][:, :, None]).to(torch.int32)
    codes = codes + limit + (0 if zeros is None else zeros[:, :, None].to(torch.int32))
    np.testing.assert_array_equal(planes[f"{NAME}.weight_packed"], codes.numpy().reshape(-1))
    if zeros is not None:
        stored_zeros = np.sort((zeros.numpy().astype(int) + limit).reshape(-1))
        np.testing.assert_array_equal(np.sort(planes[f"{NAME}.weight_zero_point"]), stored_zeros)


@pytest.mark.parametrize(
    ("kind", "options", "bits"),
    [
        ("nvfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}, 4),
        ("mxfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}, 4),
        ("mxfp6-pack-quantized", {"num_bits": 6, "type": "float", "strategy": "group", "group_size": 32}, 6),
    ],
)
def test_compressed_tensors_floats(
    kind: str, options: dict[str, Any], bits: int, weight: NDArray[Any], tmp_path: Path
) -> None:
    torch, compressed = library("torch"), library("compressed_tensors.compressors")
    quantization, save = library("compressed_tensors.quantization"), library("safetensors.torch").save_file
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=quantization.QuantizationArgs(**options))
    matrix = torch.from_numpy(weight[:96].copy())
    groups = matrix.reshape(96, -1, options["group_size"])
    scale = torch.exp2(torch.ceil(torch.log2(groups.abs().amax(2) / 6)))
    state = {"weight": matrix, "weight_scale": scale, "weight_global_scale": torch.ones(1)}
    if not kind.startswith("nvfp4"):
        del state["weight_global_scale"]
    stored = compressed.BaseCompressor.get_value_from_registry(kind).compress(state, scheme)
    save({f"{NAME}.{key}": value.contiguous() for key, value in stored.items()}, tmp_path / "model.safetensors")
    found, planes = recognized(tmp_path / "model.safetensors", None)
    assert found.description == f"compressed-tensors fp{bits}"
    codes = planes[f"{NAME}.weight_packed"]
    assert codes.size == matrix.numel()
    # The highest bit of every code is the sign of its weight.
    signs = (codes >> (bits - 1)).reshape(matrix.shape) == 1
    nonzero = codes.reshape(matrix.shape) & (2 ** (bits - 1) - 1) != 0
    np.testing.assert_array_equal(signs[nonzero], (matrix.numpy() < 0)[nonzero])


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [True, False])
def test_bitsandbytes_4_bits(kind: str, nested: bool, weight: NDArray[Any], tmp_path: Path) -> None:
    torch, functional = library("torch"), library("bitsandbytes.functional")
    save = library("safetensors.torch").save_file
    matrix = torch.from_numpy(weight.copy())
    packed, state = functional.quantize_4bit(matrix, quant_type=kind, compress_statistics=nested)
    tensors = {f"{NAME}.weight": packed, **{f"{NAME}.weight.{k}": v for k, v in state.as_dict(packed=True).items()}}
    save({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    found, planes = recognized(tmp_path / "model.safetensors", None)
    name = {"nf4": "NF4", "fp4": "FP4"}[kind]
    assert found.description == f"bitsandbytes {name}" + (", scales quantized too" if nested else "")
    codes = planes[f"{NAME}.weight"].reshape(-1, 2)[:, ::-1]  # the first weight is in the high nibble
    absmax = functional.dequantize_blockwise(state.absmax, state.state2) + state.offset if nested else state.absmax
    values = state.code.numpy()[codes.reshape(-1)].reshape(-1, state.blocksize) * absmax.numpy()[:, None]
    back = functional.dequantize_4bit(packed, state).numpy().reshape(values.shape)
    np.testing.assert_allclose(values, back, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("mode", "bits", "group"),
    [
        *(("affine", bits, group) for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128)),
        ("mxfp4", 4, 32),
        ("nvfp4", 4, 16),
        ("mxfp8", 8, 32),
    ],
)
def test_mlx(mode: str, bits: int, group: int, weight: NDArray[Any], tmp_path: Path) -> None:
    mx = library("mlx.core")
    parts = mx.quantize(mx.array(weight), group, bits, mode=mode)
    names = [f"{NAME}.weight", f"{NAME}.scales", f"{NAME}.biases"][: len(parts)]
    mx.save_safetensors(str(tmp_path / "model.safetensors"), dict(zip(names, parts, strict=True)))
    found, planes = recognized(tmp_path / "model.safetensors", {"quantization": {"bits": bits, "group_size": group}})
    assert found.description == (f"MLX int{bits} group {group}" if mode == "affine" else f"MLX {mode}")
    codes = planes[f"{NAME}.weight"].reshape(weight.shape[0], -1, group)
    restored = mx.dequantize(*parts, group_size=group, bits=bits, mode=mode).astype(mx.float32)
    back = np.array(restored).reshape(codes.shape)
    if mode == "affine":
        scales, biases = (np.array(part)[:, :, None] for part in parts[1:])
        np.testing.assert_allclose(codes * scales + biases, back, rtol=1e-4, atol=1e-6)
    else:
        np.testing.assert_array_equal((codes >> (bits - 1) == 1)[back != 0], (back < 0)[back != 0])
