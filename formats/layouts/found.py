"""What the layouts have in common: what a detector gives back, and how codes of some bits lie in bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import gcd, lcm
from typing import Any

from ...codec.errors import UnsupportedError
from ...codec.records import BYTES, MAX_RECORD_NBYTES, Records
from ..dtypes import tensor_nbytes

Tensors = Mapping[str, tuple[str, tuple[int, ...]]]  # name -> dtype (as safetensors names it), shape

__all__ = ["BYTES", "INT32_BYTES", "Found", "Hints", "Tensors", "dense", "grid_name", "number", "padded", "settings_of"]

INT32_BYTES = Records(((8, 1),) * 4)  # small numbers in wide words: one plane for each byte, most of them all zeros


@dataclass(frozen=True)
class Found:
    """A checkpoint in a layout that is known.

    layout: its name ("gptq"). description: one line for the user. tensors: how many quantized matrices there are.
    hints: for the tensors that hold codes, the splits into planes to try, the most likely one first. Each fits the size of
    its tensor, so that even a wrong one loses nothing but space.
    """

    layout: str
    description: str
    hints: dict[str, tuple[Records, ...]]
    tensors: int


class Hints:
    """The hints of one checkpoint while a detector collects them."""

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors
        self.splits: dict[str, tuple[Records, ...]] = {}

    def add(self, name: str, splits: Iterable[Records | None]) -> bool:
        """Keep those splits that fit the tensor `name`, without repeats; False if there is no such tensor or none fits."""
        fitting = tuple(dict.fromkeys(split for split in splits if split and _fits(split, self.tensors.get(name))))
        if fitting:
            self.splits[name] = fitting
        return bool(fitting)


def dense(bits: int, row_nbytes: int = 0, interleave: tuple[int, int] | None = None) -> Records | None:
    """Codes of `bits` bits packed from the lowest bit up without gaps, as records.

    row_nbytes: where given, codes start afresh at every multiple of it, so that bits may be left over at the end.
    interleave: as in Records; the records are whole units then. None if a record would be too large.
    """
    unit = interleave[0] if interleave else 1
    least = bits // gcd(bits, 8)  # bytes; of codes that divide a byte: one
    if least == 1:
        unit, interleave = 1, None  # no code crosses from unit to unit: they may as well follow one another
    # Codes that cross bytes: whole words where rows have these, for larger records split and join twice as fast.
    for size in (lcm(least, 4 if least > 1 else 1, unit), lcm(least, unit)):
        if row_nbytes % size == 0:
            return Records(((bits, size * 8 // bits),), interleave=interleave)
    if row_nbytes > MAX_RECORD_NBYTES or row_nbytes % unit:
        return None
    count, rest = divmod(row_nbytes * 8, bits)
    return Records(((bits, count), (rest, 1)) if rest else ((bits, count),), interleave=interleave)


def padded(bits: int) -> Records:
    """As many codes of `bits` bits as a word of 32 has room for, from the lowest bit up; the rest of it is not used."""
    count, rest = divmod(32, bits)
    return Records(((bits, count), (rest, 1)) if rest else ((bits, 8 // bits),))


def settings_of(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a checkpoint says about its quantization: the part of a config.json, or a quantize_config.json. {} if nothing."""
    for level in (config, _part(config, "text_config")):
        for key in ("quantization_config", "compression_config", "quantization"):
            if part := _part(level, key):
                return part
    return dict(config) if isinstance(config, dict) and {"bits", "w_bit", "quant_method"} & set(config) else {}


def number(value: object, allowed: Iterable[int]) -> int | None:
    """`value` if it is one of the `allowed` integers (True and 4.0 are none), else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value in allowed else None


def grid_name(bits: Iterable[int], group_sizes: Iterable[int | None]) -> str:
    """For messages: "int4 group 128", "int3/int4", "int8 per channel" (a group size of -1)."""
    name = "/".join(f"int{width}" for width in sorted(set(bits)))
    sizes = set(group_sizes)
    size = sizes.pop() if len(sizes) == 1 else None
    return name + ("" if size is None else " per channel" if size < 0 else f" group {size}")


def _part(config: object, key: str) -> dict[str, Any]:
    value = config.get(key) if isinstance(config, Mapping) else None
    return value if isinstance(value, dict) else {}


def _fits(split: Records, info: tuple[str, tuple[int, ...]] | None) -> bool:
    if info is None:
        return False
    try:
        nbytes = tensor_nbytes(*info)
    except UnsupportedError:
        return False
    return nbytes > 0 and nbytes % split.span == 0
