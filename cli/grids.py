"""Grids in the words of every table and report."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..codec.tensor import QuantizationArgs
    from ..formats.rate_entry import RateEntry


def grid_text(args: QuantizationArgs | None, tied_to: str | None = None) -> str:
    """`4-bit group 128 mse`, `8-bit channel asymmetric absmax`; `keep` for a tensor that is stored as it is.

    `= other.name` for a tensor that is stored once, under that name.
    """
    if tied_to is not None:
        return f"= {tied_to}"
    if args is None:
        return "keep"
    size = f" {args.group_size}" if args.group_size else ""
    symmetry = "" if args.symmetric else " asymmetric"
    return f"{args.num_bits}-bit {args.strategy}{size}{symmetry} {args.scale_method}"


def coding_text(args: QuantizationArgs | None, tied_to: str | None, coding: str, rate: RateEntry | None = None) -> str:
    """The grid of a quantized tensor; `lossless` or `delta` for one that is coded bit by bit, `keep` for one that is not."""
    if rate is not None and tied_to is None:
        return f"rate, trellis {rate.states}" if rate.states else "rate"
    text = grid_text(args, tied_to)
    return coding if text == "keep" and coding != "plain" else text
