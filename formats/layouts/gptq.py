"""GPTQ: `qweight` I32 [in * bits / 32, out], packed along the input; `qzeros` I32 [groups, out * bits / 32], along the output;
`scales` [groups, out], `g_idx` I32 [in].

Codes of 3 bits (AutoRound: 5, 6 and 7 bits, too) cross from one word into the next: along a column in qweight, along a row
in qzeros. Zero points are kept as z or z - 1, depending on who wrote the file and not always as it says: here they are
just codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .found import INT32_BYTES, Found, Hints, Tensors, dense, grid_name, number, settings_of

_BITS = (2, 3, 4, 5, 6, 7, 8)
_WORD_BITS = {"I8": 8, "U8": 8, "I16": 16, "U16": 16, "I32": 32, "U32": 32, "I64": 64, "U64": 64}


def find(config: Mapping[str, Any] | None, tensors: Tensors) -> Found | None:
    """GPTQ checkpoints, from the names and shapes of tensors; the config tells bits only where the shapes do not."""
    settings = settings_of(config)
    hints, widths, groups = Hints(tensors), [], []
    for name, (dtype, shape) in tensors.items():
        prefix = name.removesuffix("qweight")
        scales = tensors.get(prefix + "scales", ("", ()))[1]
        if prefix == name or dtype not in _WORD_BITS or len(shape) != 2 or len(scales) != 2 or shape[1] != scales[1]:
            continue
        word_bits = _WORD_BITS[dtype]
        bits = _bits(tensors, prefix, word_bits, settings)
        if bits and hints.add(name, [dense(bits, interleave=(word_bits // 8, shape[1]))]):
            zeros = tensors.get(prefix + "qzeros", ("", (0,)))[1]
            hints.add(prefix + "qzeros", [dense(bits, zeros[-1] * word_bits // 8 if zeros else 0)])
            hints.add(prefix + "g_idx", [INT32_BYTES])
            widths.append(bits)
            groups.append(-1 if scales[0] == 1 else shape[0] * word_bits // bits // max(1, scales[0]))
    if not widths:
        return None
    order = ", act-order" if settings.get("desc_act") is True else ""
    return Found("gptq", f"GPTQ {grid_name(widths, groups)}{order} (zeros left as they are)", hints.splits, len(widths))


def _bits(tensors: Tensors, prefix: str, word_bits: int, settings: Mapping[str, Any]) -> int | None:
    """Bits of a code: by the lengths of g_idx and qzeros, which hold for this very tensor; else what the config says."""
    words, columns = tensors[prefix + "qweight"][1]
    inputs = tensors.get(prefix + "g_idx", ("", ()))[1]
    if len(inputs) == 1 and (bits := _ratio(words * word_bits, inputs[0])):
        return bits
    zeros = tensors.get(prefix + "qzeros", ("", ()))[1]
    if len(zeros) == 2 and (bits := _ratio(zeros[1] * word_bits, columns)):
        return bits
    return number(settings.get("bits"), _BITS)


def _ratio(stored_bits: int, codes: int) -> int | None:
    return number(stored_bits // codes, _BITS) if codes > 0 and stored_bits % codes == 0 else None
