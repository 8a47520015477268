"""Devices and what their memory delivers: makers' figures, and how a table of a user's own adds to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from ..codec.errors import InvalidArgumentError


@dataclass(frozen=True)
class Device:
    """bandwidth: of the memory that holds the weights, in GB/s (10^9 bytes), as the maker states it.

    memory: GB of it, None if versions differ. decode: GB/s of packed codes that a decoder delivers there; None if unknown.
    """

    name: str
    bandwidth: float
    memory: float | None = None
    decode: float | None = None

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise InvalidArgumentError("a device has no name")
        for what, value in (("bandwidth", self.bandwidth), ("memory", self.memory), ("decode", self.decode)):
            if value is not None and not (isfinite(value) and value > 0):
                raise InvalidArgumentError(f"device {self.name!r}: {what} is {value}; it is a number above 0")


DEVICES: tuple[Device, ...] = (
    Device("Snapdragon X Elite", 135.0),
    Device("Jetson AGX Orin", 204.8),
    Device("Apple M4 Max", 546.0),
    Device("Apple M3 Ultra", 819.0),
    Device("H100 SXM", 3350.0, 80.0),
    Device("H200", 4800.0, 141.0),
)

_FIELDS = ("name", "bandwidth", "memory", "decode")


def devices_from(document: Any) -> tuple[Device, ...]:
    """Devices of a parsed JSON or TOML document: a list of tables, or one under `devices` (in TOML `[[devices]]`).

    Each has `name` and `bandwidth`, and may have `memory` and `decode`, in the units of `Device`.
    Raises InvalidArgumentError for anything else.
    """
    rows = document.get("devices") if isinstance(document, Mapping) else document
    if not isinstance(rows, Sequence) or isinstance(rows, str) or not rows:
        raise InvalidArgumentError("no list of devices; write one table for each, with a name and a bandwidth in GB/s")
    return tuple(_device(row, number) for number, row in enumerate(rows, 1))


def merge_devices(base: Sequence[Device], more: Sequence[Device]) -> tuple[Device, ...]:
    """`base` with `more` behind it; a device of the same name is replaced."""
    named = {device.name: device for device in base}
    return tuple((named | {device.name: device for device in more}).values())


def _device(row: Any, number: int) -> Device:
    if not isinstance(row, Mapping) or not isinstance(row.get("name"), str):
        raise InvalidArgumentError(f"device {number} has no name")
    unknown = sorted(set(map(str, row)) - set(_FIELDS))
    if unknown:
        raise InvalidArgumentError(
            f"device {row['name']!r}: unknown field {unknown[0]!r}; known are {', '.join(_FIELDS)}"
        )
    values: dict[str, float | None] = {}
    for field in _FIELDS[1:]:
        value = row.get(field)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise InvalidArgumentError(f"device {row['name']!r}: {field} is {value!r}; it is a number")
        values[field] = None if value is None else float(value)
    if values["bandwidth"] is None:
        raise InvalidArgumentError(f"device {row['name']!r} has no bandwidth (in GB/s)")
    return Device(row["name"], values["bandwidth"], values["memory"], values["decode"])
