"""Floats on a coarse grid with scales: found, coded as whole numbers, and given back bit by bit."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import qzc
from qzc.codec import scaled_palette
from qzc.codec.errors import CorruptionError, InvalidArgumentError
from qzc.codec.records import join
from qzc.codec.tensor import QuantizationArgs
from qzc.formats.dtypes import file_bytes
from qzc.formats.header import build_header
from qzc.formats.reader import Reader
from qzc.formats.safetensors import place
from qzc.lossless import MIN_NBYTES, plan_lossless
from qzc.packer import PackOptions
from qzc.quantize.rtn import quantize

DTYPES: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
LOSSLESS = PackOptions(lossless=True, threads=1)


def normal(rows: int, columns: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 0.02, (rows, columns)).astype(np.float32)


def fake_quantized(
    weights: NDArray[np.float32], dtype: str, bits: int, group: int | None, scale_dtype: Any = "float16"
) -> NDArray[Any]:
    """Weights on a grid, as simulated quantization leaves them."""
    strategy: Any = "group" if group else "channel"
    args = QuantizationArgs(bits, True, strategy, group, "absmax", scale_dtype)
    return quantize(weights, args, "F32").dequantize(np.float32).astype(DTYPES[dtype])


def raw(array: NDArray[Any]) -> NDArray[np.uint8]:
    return file_bytes(np.ascontiguousarray(array))


def back(planes: list[NDArray[np.uint8]], palette: scaled_palette.ScaledPalette, nbytes: int) -> NDArray[np.uint8]:
    """What the planes of a tensor give."""
    scale_bytes, out = np.empty(4 * planes[2].size, np.uint8), np.empty(nbytes, np.uint8)
    join(planes[2:], scaled_palette.SCALES, scale_bytes)
    values, scales = planes[1].view("<f4"), scale_bytes.view("<f4")
    for job in scaled_palette.restore_jobs(planes[0], values, scales, palette.dtype, palette.group, out, 0, "a tensor"):
        job()
    return out


def assert_coded(array: NDArray[Any], dtype: str, group: int, most: int) -> scaled_palette.ScaledPalette:
    """Found as whole numbers of at most `most` with a scale for `group` elements, and restored."""
    data = raw(array)
    palette = scaled_palette.find(data, dtype, array.shape[1])
    assert palette is not None and palette.group == group
    assert np.abs(palette.values).max() <= most and np.array_equal(palette.values, np.sort(palette.values))
    assert back(scaled_palette.split(data, palette), palette, data.size).tobytes() == data.tobytes()
    return palette


@pytest.mark.parametrize("scale_dtype", ["float16", "float32"])
@pytest.mark.parametrize(("bits", "group"), [(2, 64), (3, 128), (4, None), (4, 128), (4, 32), (8, None), (8, 128)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_integer_grids_are_found(dtype: str, bits: int, group: int | None, scale_dtype: str) -> None:
    array = fake_quantized(normal(96, 384), dtype, bits, group, scale_dtype)
    assert_coded(array, dtype, group or 384, 2 ** (bits - 1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_four_bit_floats_are_whole_numbers_as_well(dtype: str) -> None:
    """Those of MXFP4 and NVFP4 are multiples of one half."""
    rng = np.random.default_rng(3)
    levels = rng.choice([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -1, -1.5, -2, -3, -4, -6], (64, 8, 32)).astype(np.float32)
    array = (levels * rng.uniform(0.01, 0.02, (64, 8, 1)).astype(np.float32)).astype(DTYPES[dtype])
    assert_coded(array.reshape(64, 256), dtype, 32, 12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_both_zeros_and_groups_of_zeros(dtype: str) -> None:
    array = fake_quantized(normal(64, 256), dtype, 3, 64)
    array[:7], array[20, 64:128], array[30, :64] = 0, 0, -0.0
    array[array == 0] = np.copysign(array, normal(64, 256, 1))[array == 0]
    palette = assert_coded(array, dtype, 64, 4)
    assert np.signbit(palette.values[palette.values == 0]).tolist() == [True, False]


@pytest.mark.parametrize("dtype", DTYPES)
def test_ordinary_floats_are_told_from_a_few(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def untouched(*_: object) -> None:
        raise AssertionError("the tensor was fitted")

    monkeypatch.setattr(scaled_palette, "_best_group", untouched)
    for seed in range(20):
        assert scaled_palette.find(raw(normal(64, 512, seed).astype(DTYPES[dtype])), dtype, 512) is None


@pytest.mark.parametrize(
    ("dtype", "value"), [*((dtype, value) for dtype in DTYPES for value in (np.nan, -np.inf)), ("F32", 0.0173)]
)
def test_one_element_off_the_grid_is_enough(dtype: str, value: float) -> None:
    array = fake_quantized(normal(96, 256), dtype, 4, 128)
    data = raw(array)
    palette = scaled_palette.find(data, dtype, 256)
    array[77, 33] = value
    assert palette is not None and scaled_palette.find(raw(array), dtype, 256) is None
    with pytest.raises(InvalidArgumentError, match="not in the palette"):
        scaled_palette.split(raw(array), palette)


def test_what_has_no_rows_to_share_a_scale() -> None:
    data = raw(np.zeros(1000, np.float32))
    for dtype, columns in (("F32", 1), ("F32", 15), ("F64", 100), ("I32", 100)):
        assert scaled_palette.find(data, dtype, columns) is None
    assert scaled_palette.find(data[:0], "F32", 100) is None


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(list(DTYPES)),
    st.integers(1, 255),
    st.integers(16, 70),
    st.integers(-40, 30),
    st.integers(0, 2**32 - 1),
)
def test_products_of_any_scale(dtype: str, most: int, group: int, exponent: int, seed: int) -> None:
    """Whatever is found is exact, subnormal numbers and overflow included; with few levels something is found."""
    rng = np.random.default_rng(seed)
    scales = np.ldexp(rng.uniform(1, 2, 5), exponent).astype(np.float32)
    whole = rng.integers(-most, most + 1, 5 * group).astype(np.float32)
    with np.errstate(all="ignore"):
        array = (whole * np.repeat(scales, group)).astype(DTYPES[dtype])[: 5 * group - 7]
    data = raw(array)
    palette = scaled_palette.fit(data, dtype, group)
    if palette is not None:
        assert back(scaled_palette.split(data, palette), palette, data.size).tobytes() == data.tobytes()
    normal_range = bool(np.isfinite(array.astype(np.float32)).all()) and (dtype != "F16" or exponent > -14)
    assert palette is not None or most > 7 or not normal_range


def test_restoring_a_part_from_anywhere() -> None:
    array = fake_quantized(normal(40, 256), "F16", 4, 32)
    data = raw(array)
    palette = scaled_palette.fit(data, "F16", 32)
    assert palette is not None
    codes = scaled_palette.split(data, palette)
    scale_bytes = np.empty(4 * codes[2].size, np.uint8)
    join(codes[2:], scaled_palette.SCALES, scale_bytes)
    scales = scale_bytes.view("<f4")
    for first, count in ((0, 5), (32, 64), (2 * 31, 100), (1000, 9240)):
        out = np.empty(2 * count, np.uint8)
        part = codes[0][first // 2 :]
        own = scales[first // 32 : -(-(first + count) // 32)]
        for job in scaled_palette.restore_jobs(part, palette.values, own, "F16", 32, out, first, "x"):
            job()
        assert out.tobytes() == data[2 * first : 2 * (first + count)].tobytes()
    jobs = scaled_palette.restore_jobs(codes[0], palette.values[:9], scales, "F16", 32, data.copy(), 0, "tensor 'w'")
    with pytest.raises(CorruptionError, match="tensor 'w': a code is larger than the palette"):
        for job in jobs:
            job()


@pytest.mark.parametrize("group", [None, 128])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_packed_model_takes_a_quarter_of_what_floats_take(dtype: str, group: int | None, tmp_path: Path) -> None:
    weights = {"a.weight": fake_quantized(normal(300, 384), dtype, 4, group), "b.weight": normal(64, 256)}
    weights["b.weight"] = weights["b.weight"].astype(DTYPES[dtype])
    weights["conv"] = fake_quantized(normal(64, 324, 5), dtype, 4, None).reshape(64, 36, 3, 3)
    source, packed = tmp_path / "m.safetensors", tmp_path / "m.qzc"
    members = place((name, dtype, array.shape, array.nbytes) for name, array in weights.items())
    source.write_bytes(build_header({}, members, reserve=0) + b"".join(raw(a).tobytes() for a in weights.values()))
    qzc.pack(source, packed, LOSSLESS)
    qzc.unpack(packed, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == source.read_bytes()
    assert qzc.verify(packed, against=source).identical == 1
    figures = {tensor.name: tensor.sizes for tensor in qzc.stats(packed).tensors}
    planned = {tensor.name: tensor.sizes for tensor in qzc.stats(source, lossless=True).tensors}
    for name, sizes in figures.items():
        assert (sizes.stored_nbytes, sizes.lossless) == (planned[name].stored_nbytes, planned[name].lossless)
    for name in ("a.weight", "conv"):
        assert 8 * figures[name].stored_nbytes / weights[name].size < 3.9
    with Reader(packed) as reader:
        assert reader.profile.coded["a.weight"].group == (group or 384)
        assert reader.profile.coded["conv"].group == 324
    with qzc.open(packed) as model:
        assert model.info("a.weight").coding == "lossless"
        for name in ("a.weight", "conv"):
            for rows in (slice(0, 1), slice(17, 51), slice(63, 64), slice(5, 5)):
                assert model.array(name, rows).tobytes() == weights[name][rows].tobytes()


def test_plans_need_the_shape() -> None:
    array = fake_quantized(normal(128, 256), "F32", 4, 64)
    plan = plan_lossless(raw(array), "F32", shape=array.shape)
    assert plan is not None and plan.scaled is not None and plan.nbytes < 0.16 * array.nbytes
    assert plan_lossless(raw(array), "F32") is not None  # without a shape as floats
    small = array[:1]
    assert small.nbytes < MIN_NBYTES and plan_lossless(raw(small), "F32", shape=small.shape) is None


def test_a_palette_of_the_whole_tensor_goes_first() -> None:
    """One scale for all: no scales to store."""
    args = QuantizationArgs(4, True, "tensor", None, "absmax", "float16")
    array = quantize(normal(128, 256), args, "F32").dequantize(np.float32)
    plan = plan_lossless(raw(array), "F32", shape=array.shape)
    assert plan is not None and plan.palette is not None and plan.scaled is None
