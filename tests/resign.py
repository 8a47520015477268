"""Makes the checksums of a modified `.qzc` file good again, so that the checks behind them can be tested.

Shares nothing with the package. It takes damaged files, too: what it cannot make sense of keeps its checksum.
"""

import json
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import xxhash

ROW = struct.Struct("<IIIBBBBQ")  # a row of the chunk index
FIELDS = ("nbytes", "codes", "table", "coder", "streams", "delta", "reserved", "checksum")
INDEX, PAYLOAD = "qzc.chunks", ".qzc.payload"

Header = dict[str, Any]

_NONSENSE = (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, struct.error)


def take_apart(data: bytes) -> tuple[Header, bytearray]:
    """The header as JSON, and the data behind it."""
    start = 8 + int.from_bytes(data[:8], "little")
    return cast(Header, json.loads(data[8:start])), bytearray(data[start:])


def put_together(header: Header, body: bytes | bytearray, *, chunks: bool = True) -> bytes:
    """A signed file. The header is padded, so that the data start on a multiple of 64."""
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return resign(len(text).to_bytes(8, "little") + text + bytes(body), chunks=chunks)


def resign(data: bytes, *, chunks: bool = True) -> bytes:
    """The file with all its checksums made good; with `chunks` those in the chunk index as well."""
    result = bytearray(data)
    with suppress(*_NONSENSE):
        header, _ = take_apart(data)
        start = 8 + int.from_bytes(data[:8], "little")
        spans = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
        if chunks:
            with suppress(*_NONSENSE):
                _sign_chunks(result, start, spans)
        begin, end = spans.pop("qzc.checksums")
        rows = [
            0 if name.endswith(PAYLOAD) else _xxh3(result[start + span[0] : start + span[1]])
            for name, span in sorted(spans.items(), key=lambda item: (*item[1], item[0]))
        ]
        rows.append(_xxh3(result[:start]))
        packed = struct.pack(f"<{len(rows)}Q", *rows)
        packed += _xxh3(packed).to_bytes(8, "little")
        if end - begin == len(packed):
            result[start + begin : start + end] = packed
    return bytes(result)


def edit_header(data: bytes, edit: Callable[[Header], None], *, chunks: bool = True) -> bytes:
    """The file with a changed header, signed. Offsets count from the end of the header, so its size may change."""
    header, body = take_apart(data)
    edit(header)
    return put_together(header, body, chunks=chunks)


def edit_json(data: bytes, key: str, edit: Callable[[Any], None]) -> bytes:
    """The file with a change in one of the JSON texts of its metadata, signed."""

    def change(header: Header) -> None:
        value = json.loads(header["__metadata__"][key])
        edit(value)
        header["__metadata__"][key] = json.dumps(value)

    return edit_header(data, change)


def edit_member(data: bytes, name: str, edit: Callable[[bytearray], None], *, chunks: bool = True) -> bytes:
    """The file with other bytes in a member, of the same length, signed."""
    header, body = take_apart(data)
    begin, end = header[name]["data_offsets"]
    member = body[begin:end]
    edit(member)
    assert len(member) == end - begin
    body[begin:end] = member
    return put_together(header, body, chunks=chunks)


def edit_rows(data: bytes, tensor: str, **fields: list[int]) -> bytes:
    """The file with other values in the rows of a tensor in the chunk index, signed; not the chunks if `checksum` is given."""
    header, body = take_apart(data)
    found = places(header, body)
    count, first = len(found[tensor]), sum(len(offsets) for name, offsets in found.items() if name < tensor)

    def change(member: bytearray) -> None:
        rows: list[dict[str, int]] = [dict(zip(FIELDS, row, strict=True)) for row in ROW.iter_unpack(member)]
        for field, values in fields.items():
            for row, value in zip(rows[first : first + count], values, strict=True):
                row[field] = value
        member[:] = b"".join(ROW.pack(*row.values()) for row in rows)

    return edit_member(data, INDEX, change, chunks="checksum" not in fields)


def column(data: bytes, tensor: str, field: str) -> list[int]:
    """One column of the rows of a tensor in the chunk index; `offset` is where the chunks start in the payload."""
    header, body = take_apart(data)
    found = places(header, body)
    if field == "offset":
        return found[tensor]
    first = sum(len(offsets) for name, offsets in found.items() if name < tensor)
    begin, end = header[INDEX]["data_offsets"]
    rows = [row[FIELDS.index(field)] for row in ROW.iter_unpack(body[begin:end])]
    return rows[first : first + len(found[tensor])]


def places(header: Header, body: bytes | bytearray) -> dict[str, list[int]]:
    """Coded tensor, in the order of the index -> where its chunks start in its payload."""
    spans = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
    begin, end = spans.get(INDEX, (0, 0))
    return _places([row[0] for row in ROW.iter_unpack(body[begin:end])], spans)


def _places(sizes: list[int], spans: dict[str, list[int]]) -> dict[str, list[int]]:
    """The sizes of the chunks say it all: there are no more in a payload once the next could only start at its end."""
    left, found = iter(sizes), dict[str, list[int]]()
    for name in sorted(name.removesuffix(PAYLOAD) for name in spans if name.endswith(PAYLOAD)):
        begin, end = spans[name + PAYLOAD]
        found[name], position = [], begin + -begin % 64
        while position < end and (size := next(left, None)) is not None:
            found[name].append(position - begin)
            position += size + -(position + size) % 16
    return found


def _sign_chunks(data: bytearray, start: int, spans: dict[str, list[int]]) -> None:
    first, stop = (start + at for at in spans[INDEX])
    sizes = [row[0] for row in ROW.iter_unpack(data[first:stop])]
    offsets = [(name, offset) for name, offsets in _places(sizes, spans).items() for offset in offsets]
    for at, (name, offset) in zip(range(first, stop, ROW.size), offsets, strict=False):
        row, (begin, end) = ROW.unpack_from(data, at), spans[name + PAYLOAD]
        chunk = data[start + begin + offset : start + min(begin + offset + row[0], end)]
        ROW.pack_into(data, at, *row[:7], _xxh3(chunk))


def _xxh3(data: bytes | bytearray) -> int:
    return int(xxhash.xxh3_64_intdigest(bytes(data)))
