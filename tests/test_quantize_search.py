"""The search for the scale with least squared error: never worse than absmax, next to brute force, the same everywhere."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qzc.codec.tensor import QuantizationArgs, QuantizedTensor, ScaleMethod, Strategy
from qzc.quantize import quantize, rtn

FLOAT16 = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)  # every positive one


def squared_error(w: NDArray[np.float32], result: QuantizedTensor) -> float:
    return float(np.sum((result.dequantize(np.float64) - w.astype(np.float64)) ** 2))


def weights(kind: str, rows: int = 6, columns: int = 128) -> NDArray[np.float32]:
    rng = np.random.default_rng(7)
    draw: dict[str, Callable[[], Any]] = {
        "normal": lambda: rng.standard_normal((rows, columns)),
        "laplace": lambda: rng.laplace(size=(rows, columns)),
        "heavy": lambda: rng.standard_t(3, (rows, columns)),
        "uniform": lambda: rng.uniform(-1, 1, (rows, columns)),
        "skewed": lambda: rng.exponential(size=(rows, columns)) - 0.3,
        "tiny": lambda: rng.standard_normal((rows, columns)) * 1e-3,
    }
    return np.asarray(draw[kind]() * 0.04, np.float32)


KINDS = ["normal", "laplace", "heavy", "uniform", "skewed", "tiny"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strategy", ["tensor", "channel"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_not_worse_than_absmax(kind: str, strategy: Strategy, symmetric: bool) -> None:
    w = weights(kind)
    for bits in range(1, 9):

        def error(method: ScaleMethod, bits: int = bits) -> float:
            return squared_error(w, quantize(w, QuantizationArgs(bits, symmetric, strategy, None, method), "F32"))

        assert error("mse") <= error("absmax") * (1 + 1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("bits", "loss"), [(2, 0.001), (3, 0.001), (4, 0.005), (5, 0.01), (8, 0.2)])
def test_next_to_the_best_scale(kind: str, bits: int, loss: float) -> None:
    """Symmetric grids, against every float16 scale there is. `loss` is the part of the error that is too much."""
    w = weights(kind)
    result = quantize(w, QuantizationArgs(bits, True, "channel", None, "mse"), "F32")
    top = 2 ** (bits - 1) - 1
    least = 0.0
    for row in w.astype(np.float64):
        start = np.abs(row).max() / top
        scales = FLOAT16[(FLOAT16 > 0.01 * start) & (FLOAT16 < 1.5 * start)][:, None]
        least += np.min(np.sum((np.clip(np.rint(row / scales), -top, top) * scales - row) ** 2, axis=1))
    assert squared_error(w, result) <= least * (1 + loss)


@pytest.mark.parametrize("kind", KINDS)
def test_next_to_the_best_zero_point(kind: str) -> None:
    """Asymmetric grids of 4 bits, against all zero points and a dense set of scales."""
    w = weights(kind, rows=4)
    result = quantize(w, QuantizationArgs(4, False, "channel", None, "mse"), "F32")
    least = 0.0
    for row in w.astype(np.float64):
        start = (max(row.max(), 0) - min(row.min(), 0)) / 15
        scales = FLOAT16[(FLOAT16 > 0.1 * start) & (FLOAT16 < 1.5 * start)][:, None]
        levels = [np.clip(np.rint(row / scales), -zero, 15 - zero) * scales for zero in range(16)]
        least += min(np.min(np.sum((level - row) ** 2, axis=1)) for level in levels)
    assert squared_error(w, result) <= least * 1.01


def test_one_bit_is_twice_the_mean_magnitude() -> None:
    w = weights("laplace", rows=3)
    result = quantize(w, QuantizationArgs(1, True, "channel", None, "mse", "float32"), "F32")
    np.testing.assert_allclose(result.scale[:, 0], 2 * np.abs(w).mean(axis=1), rtol=1e-6)


def test_of_equal_errors_the_larger_scale() -> None:
    """One weight is met exactly by w / 7, w / 6, w / 5 ...: the largest of these that is tried is the absmax scale."""
    result = quantize(np.full((1, 4), 7.0, np.float32), QuantizationArgs(4, True, "channel", None, "mse"), "F32")
    assert result.scale[0, 0] == 1.0
    assert result.codes.ravel().tolist() == [15] * 4


@pytest.mark.parametrize(
    ("args", "digest"),
    [
        (QuantizationArgs(4, True, "group", 128, "mse"), "cafe0009083a4793"),
        (QuantizationArgs(3, False, "group", 50, "mse", "bfloat16"), "191551d2269073e7"),
        (QuantizationArgs(2, False, "tensor", None, "mse", "float32"), "006fa043aeb2fa1a"),
        (QuantizationArgs(8, True, "channel", None, "absmax"), "dea42ab1f8cd031d"),
    ],
)
def test_same_codes_everywhere(args: QuantizationArgs, digest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Digests from x86-64 with AVX-512: no platform, compiler version or CPU may come to other codes or scales."""
    monkeypatch.setattr(rtn, "SLAB", 4000)
    # Weights from integer arithmetic alone, so that they are the same everywhere: sums of bits of a 64-bit generator.
    state, values = 1, []
    for _ in range(40 * 301):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        values.append(sum((state >> shift & 0xFFF) - 2048 for shift in (16, 28, 40, 52)) * (1 + (state >> 60)))
    w = (np.array(values, np.float32) / np.float32(1 << 20)).reshape(40, 301)
    result = quantize(w, args, "F32")
    found = hashlib.sha256(result.packed.tobytes() + result.scale.tobytes())
    if result.zero_point is not None:
        found.update(result.zero_point.tobytes())
    assert found.hexdigest()[:16] == digest
