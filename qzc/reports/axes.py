"""Scales and ticks for charts, and how numbers are written on them."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, floor, log10


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers from `low` to `high`, about so many.

    >>> ticks(0.0, 4.1)
    [0.0, 1.0, 2.0, 3.0, 4.0]
    """
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** floor(log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first = ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten from `low` to `high`."""
    return [10.0**p for p in range(ceil(log10(low) - 1e-9), floor(log10(high) + 1e-9) + 1)]


def linear(low: float, high: float, start: float, stop: float) -> Callable[[float], float]:
    """A function from values to places."""
    width = (high - low) or 1.0
    return lambda value: start + (value - low) / width * (stop - start)


def logarithmic(low: float, high: float, start: float, stop: float) -> Callable[[float], float]:
    inner = linear(log10(low), log10(high), start, stop)
    return lambda value: inner(log10(value))


def number(value: float, digits: int = 3) -> str:
    """A number of about `digits` digits, with separators, never as a power of ten.

    >>> number(0.96429), number(132.987), number(1234567.0)
    ('0.964', '133', '1,234,567')
    """
    if value == 0 or abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    decimals = min(digits + 3, digits - 1 - floor(log10(abs(value))))
    return f"{value:.{decimals}f}"


def short(value: float) -> str:
    """For ticks: `0.5`, `20`, `10k`, `1M`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9999:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
