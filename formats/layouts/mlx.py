"""MLX: `weight` U32 [.., in * bits / 32] beside `scales` and `biases` [.., in / group]; rows are packed without gaps, from the
lowest bit up. The modes mxfp4, mxfp8 and nvfp4 have U8 `scales` and no biases.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .found import BYTES, Found, Hints, Tensors, dense, grid_name, number, settings_of

# Bits and group sizes, the usual ones first: where only shapes are known several may fit, and all of them are tried.
_AFFINE = tuple((bits, group) for group in (64, 128, 32) for bits in (4, 8, 6, 3, 2, 5))
_FLOAT = {"mxfp4": (4, 32), "nvfp4": (4, 16), "mxfp8": (8, 32)}
_TRIED = 3


def find(config: Mapping[str, Any] | None, tensors: Tensors) -> Found | None:
    """MLX checkpoints. The config says bits and group size, for single layers too, and is believed where the shapes agree."""
    settings = settings_of(config)
    hints, widths, groups, modes = Hints(tensors), [], [], set[str]()
    for name, (dtype, shape) in tensors.items():
        prefix = name.removesuffix("weight")
        scales_dtype, scales = tensors.get(prefix + "scales", ("", ()))
        if prefix == name or dtype != "U32" or not shape or len(scales) != len(shape):
            continue
        if scales_dtype != "U8" and prefix + "biases" not in tensors:
            continue
        own = settings.get(prefix.removesuffix("."))
        usual = tuple(_FLOAT.values()) if scales_dtype == "U8" else _AFFINE
        grids = [grid for grid in usual if shape[-1] * 32 == scales[-1] * grid[0] * grid[1]]
        told = [grid for grid in (_told(own), _told(settings)) if grid in grids]
        grids = told[:1] or grids[:_TRIED]
        if grids and hints.add(name, [dense(bits, 4 * shape[-1]) for bits, _ in grids]):
            if scales_dtype == "U8":
                hints.add(prefix + "scales", [BYTES])
                modes.update(mode for mode, grid in _FLOAT.items() if grid == grids[0])
            else:
                widths.append(grids[0][0])
                groups.append(grids[0][1])
    matrices = sum(name.endswith("weight") for name in hints.splits)
    if not matrices:
        return None
    names = [*([grid_name(widths, groups)] if widths else []), *sorted(modes)]
    return Found("mlx", f"MLX {' and '.join(names)}", hints.splits, matrices)


def _told(settings: object) -> tuple[int, int] | None:
    if not isinstance(settings, Mapping):
        return None
    bits = number(settings.get("bits"), (2, 3, 4, 5, 6, 8))
    group = number(settings.get("group_size"), (16, 32, 64, 128))
    return (bits, group) if bits and group else None
