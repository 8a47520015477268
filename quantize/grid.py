"""Which grid a number of bits means when nothing else is said. Why: docs/quantization.md."""

from __future__ import annotations

from ..codec.tensor import QuantizationArgs, ScaleDtype, ScaleMethod, Strategy

GROUP_SIZE = 128


def grid_for(
    bits: int,
    strategy: Strategy | None = None,
    group_size: int | None = None,
    symmetric: bool | None = None,
    scale: ScaleMethod | None = None,
    scale_dtype: ScaleDtype | None = None,
) -> QuantizationArgs:
    """The grid for `bits` (1 to 8); None means the default, which depends on what is given.

    strategy: `group` up to 4 bits or if a group size is given, else `channel`. group_size: 128 for `group`.
    symmetric: True. scale: `mse` for `group`, `absmax` for `channel` and `tensor`. scale_dtype: `float16`.

    Raises InvalidArgumentError where these contradict each other or are out of range.

    >>> grid_for(4).strategy, grid_for(4).group_size, grid_for(4).scale_method
    ('group', 128, 'mse')
    >>> grid_for(8).strategy, grid_for(8).scale_method
    ('channel', 'absmax')
    """
    if strategy is None:
        strategy = "group" if bits <= 4 or group_size is not None else "channel"
    if strategy == "group" and group_size is None:
        group_size = GROUP_SIZE
    if scale is None:
        scale = "mse" if strategy == "group" else "absmax"
    return QuantizationArgs(bits, symmetric is not False, strategy, group_size, scale, scale_dtype or "float16")
