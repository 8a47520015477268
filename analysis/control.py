"""The random control: tensors of the same shapes as they are before training, to be compressed beside the trained ones.

What gzip makes of an initialised model is what it makes of noise in the same exponents; whatever trained weights compress
better or worse than that is structure.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod, sqrt
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..codec.errors import InvalidArgumentError

Law = Literal["kaiming", "xavier", "gaussian"]
LAWS: tuple[Law, ...] = ("kaiming", "xavier", "gaussian")


def fans(shape: Sequence[int]) -> tuple[int, int]:
    """Inputs and outputs of each unit as initialisers count them: `[out, in, kernel ...]`; at least 1 each.

    >>> fans([64, 32, 3, 3])
    (288, 576)
    """
    if len(shape) < 2:
        return max(1, prod(shape)), max(1, prod(shape))
    kernel = prod(shape[2:])
    return max(1, shape[1] * kernel), max(1, shape[0] * kernel)


def bound(law: Law, shape: Sequence[int], std: float) -> float:
    """Half the width of the uniform law, or the standard deviation of the Gaussian one.

    kaiming: `1 / sqrt(fan_in)`, what PyTorch gives linear and convolution layers. xavier: `sqrt(6 / (fan_in + fan_out))`.
    gaussian: the tensor's own standard deviation. `shape` is that of the whole tensor.
    """
    fan_in, fan_out = fans(shape)
    if law == "kaiming":
        return 1.0 / sqrt(fan_in)
    if law == "xavier":
        return sqrt(6.0 / (fan_in + fan_out))
    if law == "gaussian":
        return std
    raise InvalidArgumentError(f"unknown law {law!r}; choose {', '.join(LAWS)}")


def draw(law: Law, shape: Sequence[int], count: int, std: float, dtype: np.dtype[Any], seed: int) -> NDArray[Any]:
    """`count` weights as the initialiser of a tensor of `shape` draws them: `dtype` `[count]`.

    seed: the same seed gives the same weights, on every machine and with every version of NumPy (its RandomState is
    frozen). Drawn in float64 and rounded once, so that all mantissa bits are in use.
    """
    random = np.random.RandomState(seed & 0xFFFFFFFF)
    size = bound(law, shape, std)
    weights = random.standard_normal(count) if law == "gaussian" else random.random_sample(count) * 2.0 - 1.0
    weights *= size
    return weights.astype(dtype)
