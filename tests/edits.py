"""Edits that put one defect into a `.qzc` file and sign it again. Each takes the bytes of a file and returns others."""

import struct
from collections.abc import Callable
from typing import Any

from tests import reference_encoder as encoder
from tests.resign import (
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
from tests.test_reference import Meta, Parts, parts_of

Edit = Callable[[bytes], bytes]


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


def grid(number: int, **fields: Any) -> Edit:
    def edit(value: Any) -> None:
        value[number].update(fields)

    return lambda data: edit_json(data, "qzc.grids", edit)


def ties(**names: Any) -> Edit:
    def edit(value: Any) -> None:
        value.update(names)

    return lambda data: edit_json(data, "qzc.ties", edit)


def rows(tensor: str, field: str, change: Callable[[list[int]], list[int]]) -> Edit:
    return lambda data: edit_rows(data, tensor, **{field: change(column(data, tensor, field))})


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


def remove(name: str) -> Edit:
    return parts(lambda metadata, members: members.__delitem__(name))


def index(name: str, change: Callable[[bytes], bytes]) -> Edit:
    """Changes the bytes of a chunk index, its length too."""

    def edit(metadata: Meta, members: Parts) -> None:
        data = change(members[f"{name}.qzc.chunks"].data)
        members[f"{name}.qzc.chunks"] = encoder.Member(f"{name}.qzc.chunks", "U8", (len(data) // 32, 32), data)

    return parts(edit)


def byte(name: str, position: int, value: int) -> Edit:
    def change(member: bytearray) -> None:
        assert member[position] != value
        member[position] = value

    return lambda data: edit_member(data, name, change)


def gap(tensor: str, chunk: int, position: int) -> Edit:
    """Sets a byte near the start of a chunk, outside of all chunks."""

    def apply(data: bytes) -> bytes:
        return byte(f"{tensor}.qzc.payload", column(data, tensor, "offset")[chunk] + position, 1)(data)

    return apply


def payload(tensor: str, chunk: int, position: int, value: int) -> Edit:
    def apply(data: bytes) -> bytes:
        return byte(f"{tensor}.qzc.payload", column(data, tensor, "offset")[chunk] + position, value)(data)

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
