"""AWQ: the names of GPTQ, but `qweight` I32 [in, out * 4 / 32] is packed along the output, eight nibbles to a word, in the
order 0 2 4 6 1 3 5 7. The order does not matter here: all codes of a matrix go into one plane.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .found import Found, Hints, Tensors, dense, grid_name, number, settings_of

_BITS = (2, 4, 8)
_WORDS = {"I16": 16, "I32": 32}


def find(config: Mapping[str, Any] | None, tensors: Tensors) -> Found | None:
    """AWQ checkpoints (GEMM; GEMV where the config tells the bits). GPTQ comes first: it knows its own by their shapes."""
    settings = settings_of(config)
    told = number(settings.get("bits", settings.get("w_bit")), _BITS)
    hints, widths, groups = Hints(tensors), [], []
    for name, (dtype, shape) in tensors.items():
        prefix = name.removesuffix("qweight")
        scales = tensors.get(prefix + "scales", ("", ()))[1]
        if prefix == name or dtype not in _WORDS or len(shape) != 2 or len(scales) != 2 or 0 in (*shape, *scales):
            continue
        packed_bits, rest = divmod(shape[1] * _WORDS[dtype], scales[1])  # of one output
        bits = number(packed_bits, _BITS) if rest == 0 else None
        group = None if bits is None else -1 if scales[0] == 1 else shape[0] // scales[0]
        if (bits := bits or told) and hints.add(name, [dense(bits)]):
            hints.add(prefix + "qzeros", [dense(bits)])
            widths.append(bits)
            groups.append(group)
    if not widths:
        return None
    return Found("awq", f"AWQ {grid_name(widths, groups)} (zeros left as they are)", hints.splits, len(widths))
