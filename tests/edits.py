"""Edits that put one defect into a `.qzc` file and sign it again. Each takes the bytes of a file and returns others."""

import json
import struct
from collections.abc import Callable
from typing import Any

from tests import reference_encoder as encoder
from tests.reference_header import read_header
from tests.resign import (
    INDEX,
    PAYLOAD,
    ROW,
    Header,
    column,
    edit_header,
    edit_json,
    edit_member,
    edit_rows,
    put_together,
    resign,
    take_apart,
)

Edit = Callable[[bytes], bytes]
Meta = dict[str, str]
Parts = dict[str, encoder.Member]


def parts_of(data: bytes) -> tuple[Meta, Parts]:
    """Metadata and members but the checksums, in the order of the data."""
    _, members, metadata = read_header(data)
    del members["qzc.checksums"]
    return metadata, {
        name: encoder.Member(name, member.dtype, member.shape, member.data) for name, member in members.items()
    }


def meta(key: str, old: str, new: str) -> Edit:
    """Replaces a piece of one of the texts of `__metadata__`."""

    def edit(header: Header) -> None:
        assert old in header["__metadata__"][key]
        header["__metadata__"][key] = header["__metadata__"][key].replace(old, new, 1)

    return lambda data: edit_header(data, edit)


def set_meta(key: str, value: str | None) -> Edit:
    def edit(header: Header) -> None:
        header["__metadata__"].pop(key, None)
        if value is not None:
            header["__metadata__"][key] = value

    return lambda data: edit_header(data, edit)


def coded(name: str, **fields: Any) -> Edit:
    def edit(value: Any) -> None:
        value[name].update(fields)

    return lambda data: edit_json(data, "qzc.coded", edit)


def without(name: str, field: str) -> Edit:
    """Removes a field from the entry of a coded tensor."""
    return lambda data: edit_json(data, "qzc.coded", lambda value: value[name].pop(field))


def grid(number: int, **fields: Any) -> Edit:
    return lambda data: edit_json(data, "qzc.grids", lambda value: value[number].update(fields))


def records(number: int, **fields: Any) -> Edit:
    return lambda data: edit_json(data, "qzc.records", lambda value: value[number].update(fields))


def source_file(**fields: Any) -> Edit:
    return lambda data: edit_json(data, "qzc.source_file", lambda value: value.update(fields))


def ties(**names: Any) -> Edit:
    def edit(value: Any) -> None:
        value.update(names)

    return lambda data: edit_json(data, "qzc.ties", edit)


def rows(tensor: str, field: str, change: Callable[[list[int]], list[int]]) -> Edit:
    """Changes a column of the rows of a tensor in the chunk index."""
    return lambda data: edit_rows(data, tensor, **{field: change(column(data, tensor, field))})


def row(tensor: str, number: int, **fields: int) -> Edit:
    """Sets fields of one row of a tensor in the chunk index."""

    def edit(data: bytes) -> bytes:
        for field, value in fields.items():
            data = rows(tensor, field, at(number, value))(data)
        return data

    return edit


def take_json(data: bytes, key: str) -> Any:
    """One of the JSON texts of `__metadata__`."""
    return json.loads(take_apart(data)[0]["__metadata__"][key])


def at(number: int, value: int | Callable[[int], int]) -> Callable[[list[int]], list[int]]:
    def change(values: list[int]) -> list[int]:
        values[number] = value(values[number]) if callable(value) else value
        return values

    return change


def parts(edit: Callable[[Meta, Parts], None]) -> Edit:
    """Adds, removes or reshapes members; the data are laid out anew."""

    def apply(data: bytes) -> bytes:
        metadata, members = parts_of(data)
        edit(metadata, members)
        return encoder.seal(metadata, list(members.values()))

    return apply


def add(name: str, dtype: str = "U8", shape: tuple[int, ...] = (2,), data: bytes = b"12") -> Edit:
    return parts(lambda metadata, members: members.update({name: encoder.Member(name, dtype, shape, data)}))


def replace(name: str, **fields: Any) -> Edit:
    return parts(lambda metadata, members: members.update({name: members[name]._replace(**fields)}))


def reshape(name: str, shape: Callable[[int], tuple[int, ...]]) -> Edit:
    """Gives a member of U8 another shape, made from the number of its bytes."""
    return parts(
        lambda metadata, members: members.update({name: members[name]._replace(shape=shape(len(members[name].data)))})
    )


def rename_tensor(old: str, new: str) -> Edit:
    """Gives a coded tensor another name, its parts as well."""

    def edit(metadata: Meta, members: Parts) -> None:
        metadata["qzc.coded"] = metadata["qzc.coded"].replace(f'"{old}"', f'"{new}"', 1)
        for name in [name for name in members if name.startswith(f"{old}.qzc.")]:
            member = members.pop(name)
            members[new + name.removeprefix(old)] = member._replace(name=new + name.removeprefix(old))

    return parts(edit)


def lengthen(name: str, nbytes: int) -> Edit:
    """Adds zero bytes to the end of a payload."""

    def edit(metadata: Meta, members: Parts) -> None:
        data = members[name].data + bytes(nbytes)
        members[name] = members[name]._replace(shape=(len(data),), data=data)

    return parts(edit)


def rest_is(data: bytes) -> Edit:
    """Replaces `qzc.source.rest`."""
    return replace("qzc.source.rest", shape=(len(data),), data=data)


def offset_is(number: int, value: int) -> Edit:
    """Sets a row of `qzc.source.offsets`."""

    def edit(metadata: Meta, members: Parts) -> None:
        data = bytearray(members["qzc.source.offsets"].data)
        struct.pack_into("<Q", data, 8 * number, value)
        members["qzc.source.offsets"] = members["qzc.source.offsets"]._replace(data=bytes(data))

    return parts(edit)


def cut(name: str, nbytes: int) -> Edit:
    """Cuts bytes off the end of a member of U8; of its last dimension but one, if it has two."""

    def edit(metadata: Meta, members: Parts) -> None:
        data, (first, *more) = members[name].data[:-nbytes], members[name].shape
        shape = (len(data) * first // len(members[name].data), *more)
        members[name] = members[name]._replace(shape=shape, data=data)

    return parts(edit)


def remove(name: str) -> Edit:
    return parts(lambda metadata, members: members.__delitem__(name))


def index(change: Callable[[list[bytes]], list[bytes]]) -> Edit:
    """Changes the rows of the chunk index, each 24 bytes, and their number too."""

    def edit(metadata: Meta, members: Parts) -> None:
        old = members[INDEX].data
        new = b"".join(change([old[i : i + ROW.size] for i in range(0, len(old), ROW.size)]))
        members[INDEX] = members[INDEX]._replace(shape=(len(new) // ROW.size, ROW.size), data=new)

    return parts(edit)


def byte(name: str, position: int, value: int) -> Edit:
    def change(member: bytearray) -> None:
        assert member[position] != value
        member[position] = value

    return lambda data: edit_member(data, name, change)


def gap(tensor: str, chunk: int, position: int) -> Edit:
    """Sets a byte near the start of a chunk, outside of all chunks."""

    def apply(data: bytes) -> bytes:
        return byte(tensor + PAYLOAD, column(data, tensor, "offset")[chunk] + position, 1)(data)

    return apply


def payload(tensor: str, chunk: int, position: int, value: int) -> Edit:
    def apply(data: bytes) -> bytes:
        return byte(tensor + PAYLOAD, column(data, tensor, "offset")[chunk] + position, value)(data)

    return apply


def both(*edits: Edit) -> Edit:
    def apply(data: bytes) -> bytes:
        for edit in edits:
            data = edit(data)
        return data

    return apply


def header_is(edit: Callable[[Header], None]) -> Edit:
    return lambda data: edit_header(data, edit)


def unpadded(data: bytes) -> bytes:
    size = int.from_bytes(data[:8], "little")
    return resign((size + 1).to_bytes(8, "little") + data[8 : 8 + size] + b" " + data[8 + size :])


def checksum_row(number: int) -> Edit:
    """Sets a row of the checksums, the last row is right again."""

    def apply(data: bytes) -> bytes:
        header, _ = take_apart(data)
        count = header["qzc.checksums"]["shape"][0]
        result = bytearray(data)
        result[len(data) - 8 * (count - number % count)] ^= 1
        if number != -1:
            result[-8:] = struct.pack("<Q", encoder.xxh3(bytes(result[-8 * count : -8])))
        return bytes(result)

    return apply


def empty_member_behind(data: bytes) -> bytes:
    """A member without data where the checksums end, with a checksum of its own at the end of the others."""
    header, body = take_apart(data)
    begin, end = header["qzc.checksums"]["data_offsets"]
    header["qzc.checksums"]["shape"][0] += 1
    header["qzc.checksums"]["data_offsets"] = [begin, end + 8]
    header["behind"] = {"dtype": "U8", "shape": [0], "data_offsets": [end + 8, end + 8]}
    return put_together(header, body + bytes(8))


def fewer_checksums(data: bytes) -> bytes:
    header, body = take_apart(data)
    header["qzc.checksums"]["shape"][0] -= 1
    header["qzc.checksums"]["data_offsets"][1] -= 8
    return put_together(header, body[:-8])


def more_checksums(data: bytes) -> bytes:
    header, body = take_apart(data)
    header["qzc.checksums"]["shape"][0] += 1
    header["qzc.checksums"]["data_offsets"][1] += 8
    return put_together(header, body + bytes(8))


def checksums_in_the_middle(data: bytes) -> bytes:
    header, body = take_apart(data)
    begin = len(body) + 8
    header["late"] = {"dtype": "U8", "shape": [3], "data_offsets": [begin, begin + 3]}
    header["qzc.checksums"]["shape"][0] += 1
    header["qzc.checksums"]["data_offsets"][1] += 8
    return put_together(header, body + bytes(8) + b"123")
