"""Is a checkpoint quantized already, and by whom? Names, dtypes and shapes decide; nothing is read but headers and config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import awq, bitsandbytes, compressed_tensors, gptq, mlx
from .found import Found, Tensors

__all__ = ["Found", "Tensors", "detect"]

_FINDERS = (compressed_tensors.find, bitsandbytes.find, mlx.find, gptq.find, awq.find)  # awq: after gptq, same names


def detect(config: Mapping[str, Any] | None, tensors: Tensors) -> Found | None:
    """The layout of a quantized checkpoint and hints how to split its tensors into planes of codes; None if it is none.

    config: the parsed config.json of the folder, or the parsed quantize_config.json; None where there is none.
    tensors: dtype and shape of every tensor, of all shards together.

    Nothing here is trusted for more than a hint: whatever the config says, the bytes can be restored from the planes.
    """
    return next((found for find in _FINDERS if (found := find(config, tensors)) is not None), None)
