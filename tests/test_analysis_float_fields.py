"""Entropy of the bits and fields of floats, against bits taken apart one by one and scipy's entropy."""

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import DTypeLike, NDArray
from scipy import stats

from qzc.analysis.float_fields import FORMATS, add_fields, count_words, float_fields
from qzc.codec.errors import UnsupportedError

NUMPY: dict[str, DTypeLike] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
}


def some_bytes(dtype: str, count: int = 3001, seed: int = 0) -> NDArray[np.uint8]:
    weights = np.random.default_rng(seed).standard_normal(count) * 0.05
    return np.ascontiguousarray(weights.astype(np.dtype(NUMPY[dtype]))).view(np.uint8)


def bit_matrix(raw: NDArray[np.uint8], nbytes: int) -> NDArray[np.uint8]:
    """One row per element, the sign first."""
    return np.unpackbits(raw.reshape(-1, nbytes)[:, ::-1], axis=1)


def scipy_entropy(rows: NDArray[np.uint8]) -> float:
    _, counts = np.unique(rows, axis=0, return_counts=True)
    return float(stats.entropy(counts, base=2))


def test_every_format_is_tried() -> None:
    assert set(NUMPY) == set(FORMATS)


@pytest.mark.parametrize("dtype", FORMATS)
def test_planes_and_fields_are_those_of_the_bits(dtype: str) -> None:
    raw = some_bytes(dtype)
    nbytes = np.dtype(NUMPY[dtype]).itemsize
    bits = bit_matrix(raw, nbytes)
    found = float_fields(count_words(raw, dtype), dtype)
    assert found.count == len(bits)
    assert len(found.planes) == 8 * nbytes
    for i, plane in enumerate(found.planes):
        assert plane == pytest.approx(scipy_entropy(bits[:, i : i + 1]), abs=1e-9)
    assert [field.name for field in found.fields[:2]] == ["sign", "exponent"]
    assert found.fields[1].bits == FORMATS[dtype][0]
    at = 0
    for field in found.fields:
        assert field.first == at
        at += field.bits
        assert field.entropy == pytest.approx(scipy_entropy(bits[:, field.first : at]), abs=1e-9)
    assert at == 8 * nbytes
    assert found.together.entropy == pytest.approx(scipy_entropy(bits[:, : found.together.bits]), abs=1e-9)


def test_pieces_add_up() -> None:
    raw = some_bytes("F32", 300_000)  # more than is counted at a time
    assert (count_words(raw, "F32") == count_words(raw[:4000], "F32") + count_words(raw[4000:], "F32")).all()


def test_noise_is_told_from_structure() -> None:
    noise = np.random.default_rng(1).integers(0, 1 << 32, 40_000, np.uint64).astype(np.uint32)
    cut = noise & np.uint32(0xFFFFFF00)
    found = float_fields(count_words(noise.view(np.uint8), "F32"), "F32")
    assert found.noise_planes == 32
    assert float_fields(count_words(cut.view(np.uint8), "F32"), "F32").noise[-8:] == (0.0,) * 8
    assert float_fields(count_words(np.zeros(64, np.uint8), "F32"), "F32").noise_planes == 0


def test_tensors_weigh_by_their_elements() -> None:
    one = float_fields(count_words(some_bytes("F16", 1000), "F16"), "F16")
    other = float_fields(count_words(some_bytes("F16", 3000, seed=2), "F16"), "F16")
    foreign = float_fields(count_words(some_bytes("BF16", 500), "BF16"), "BF16")
    both = add_fields([one, other, foreign])
    assert both is not None
    assert (both.dtype, both.count) == ("F16", 4000)
    assert both.bits == pytest.approx(0.25 * one.bits + 0.75 * other.bits)
    assert add_fields([]) is None


def test_no_elements_have_no_entropy() -> None:
    found = float_fields(count_words(np.zeros(0, np.uint8), "F32"), "F32")
    assert found.count == 0 and found.bits == 0.0 and add_fields([found]) is None


def test_integers_have_no_fields() -> None:
    with pytest.raises(UnsupportedError, match="I32 has no sign"):
        count_words(np.zeros(8, np.uint8), "I32")
