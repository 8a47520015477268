"""bitsandbytes: `X` U8 [n / 2, 1] of two nibbles to a byte, whatever its dtype says, beside `X.absmax`, `X.quant_map` and
`X.quant_state.bitsandbytes__nf4` or `__fp4`; int8: `P.weight` I8 [out, in] beside `P.SCB` F32 [out].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .found import BYTES, Found, Hints, Tensors, dense

_STATE = ".quant_state.bitsandbytes__"
_KINDS = {"nf4": "NF4", "fp4": "FP4"}


def find(config: Mapping[str, Any] | None, tensors: Tensors) -> Found | None:
    """bitsandbytes checkpoints, from the names alone. The codebook and the statistics stay as they are."""
    hints, kinds, nested, matrices = Hints(tensors), set[str](), False, 0
    for name, (dtype, _) in tensors.items():
        weight, state, kind = name.rpartition(_STATE)
        if state and kind in _KINDS and hints.add(weight, [dense(4)]):
            # 4-bit codes may be stored as BF16 or F32 (`bnb_4bit_quant_storage`): what they are is told by this name alone.
            matrices += 1
            kinds.add(_KINDS[kind])
            if tensors.get(weight + ".absmax", ("", ()))[0] == "U8":
                nested = hints.add(weight + ".absmax", [BYTES]) or nested
        elif dtype == "I8" and name.endswith("weight") and name.removesuffix("weight") + "SCB" in tensors:
            if hints.add(name, [BYTES]):
                matrices += 1
                kinds.add("int8")
    if not matrices:
        return None
    scales = ", scales quantized too" if nested else ""
    return Found("bitsandbytes", f"bitsandbytes {'/'.join(sorted(kinds))}{scales}", hints.splits, matrices)
