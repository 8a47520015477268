"""What the header says of how bytes are split into codes: the record objects (SPEC section 3)."""

from __future__ import annotations

from typing import Any

from ..codec.errors import CorruptionError
from ..codec.records import Records


def records_json(records: Records) -> dict[str, Any]:
    interleave = None if records.interleave is None else list(records.interleave)
    entry = {"fields": [list(item) for item in records.fields], "rotate": records.rotate, "interleave": interleave}
    if records.gather is not None:
        entry["gather"] = [[list(item) for item in walk] for walk in records.gather]
    return entry


def read_records(value: Any, path: str) -> Records:
    """A record object of the file `path`. Raises CorruptionError."""
    if not isinstance(value, dict) or not {"fields", "rotate", "interleave"} <= value.keys():
        raise CorruptionError(f"{path}: a record must have the keys fields, interleave, rotate")
    fields, rotate, interleave = value["fields"], value["rotate"], value["interleave"]
    pairs: list[Any] = [*fields, *([] if interleave is None else [interleave])] if isinstance(fields, list) else [None]
    if not all(_are_whole(pair) and len(pair) == 2 for pair in pairs):
        raise CorruptionError(f"{path}: fields and interleave of a record must be pairs of whole numbers")
    if not isinstance(rotate, bool):
        raise CorruptionError(f"{path}: rotate of a record must be true or false")
    gather = None
    if "gather" in value:
        walks = value["gather"]
        if not isinstance(walks, list) or not all(
            isinstance(walk, list) and all(map(_are_whole, walk)) for walk in walks
        ):
            raise CorruptionError(f"{path}: gather of a record must be lists of lists of whole numbers")
        gather = tuple(tuple(tuple(item) for item in walk) for walk in walks)
    try:
        lanes = None if interleave is None else (interleave[0], interleave[1])
        return Records(tuple((bits, count) for bits, count in fields), rotate, lanes, gather)
    except ValueError as error:
        raise CorruptionError(f"{path}: bad record: {error}") from None


def _are_whole(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(x, int) and not isinstance(x, bool) for x in value)
