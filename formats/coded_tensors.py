"""The coded tensors of an open `.qzc` file: their chunks, and the tables and vectors that they share."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from ..codec.batch import CodedFile
from ..codec.chunk_index import Extent, read_chunk_index
from ..codec.coder import CODERS
from ..codec.decoding import CodedBytes, CodedGrid
from ..codec.errors import CorruptionError, InvalidArgumentError
from ..codec.planes import Plane, byte_planes, grid_planes
from ..codec.rate_chunks import CodedRate, rate_plane
from ..codec.table_bank import TableBank
from ..codec.tensor import matrix_shape
from .member_file import MemberFile
from .profile import BANK_ROW_NBYTES, CHUNKS, CLASSES, VECTORS, CodedTensor, bank_member, part
from .rate_entry import decode_vectors, grid_of, vector_plan

Base = Callable[[str], NDArray[np.uint8]]
"""Gives the bytes of a tensor of the checkpoint that deltas refer to: uint8 `[n]`."""


class CodedTensors:
    """What it takes to decode them; each part is read, and checked, the first time that it is needed."""

    def __init__(self, file: MemberFile, base: Base | None) -> None:
        self._file, self._base = file, base
        self._banks: dict[str, NDArray[np.uint16]] = {}

    @cached_property
    def coded_file(self) -> CodedFile:
        """All chunks, their index checked."""
        extents = [self._extent(name, coded) for name, coded in self._in_order]
        banks = {bank: self._bank_rows(bank) for bank in BANK_ROW_NBYTES}
        data = self._file.checked(CHUNKS) if CHUNKS in self._file.members else b""
        index = read_chunk_index(data, extents, banks, self._file.path)
        return CodedFile(np.frombuffer(self._file.view, np.uint8), index, self.bank)

    def forget(self) -> None:
        """Let go of the file's bytes."""
        self.__dict__.pop("coded_file", None)

    @cached_property
    def _in_order(self) -> list[tuple[str, CodedTensor]]:
        return sorted(self._file.profile.coded.items())

    @cached_property
    def numbers(self) -> dict[str, tuple[int, int]]:
        """Of each coded tensor: its number in file order, and that of its first plane."""
        numbers, plane = {}, 0
        for number, ((name, _), extent) in enumerate(zip(self._in_order, self.coded_file.index.extents, strict=True)):
            numbers[name] = number, plane
            plane += len(extent.planes)
        return numbers

    def _extent(self, name: str, coded: CodedTensor) -> Extent:
        payload = self._file.members[part(name, "payload")]
        where = f"{self._file.path}: tensor {name!r}"
        if coded.rate:
            rows, columns = matrix_shape(coded.shape)
            unit = min(coded.rate.restart, max(1, rows)) * max(1, columns)
            planes: tuple[Plane, ...] = (rate_plane(coded.shape, coded.rate.wide),)
            return Extent(planes, self._file.data_start + payload.begin, payload.nbytes, False, where, unit)
        if coded.args:
            maps = self.classes(name, "row_class"), self.classes(name, "column_class")
            planes = grid_planes(coded.shape, coded.args, coded.records, *maps)
        else:
            planes = byte_planes(coded.nbytes, coded.records, coded.palette, coded.group)
        return Extent(planes, self._file.data_start + payload.begin, payload.nbytes, coded.base is not None, where)

    def coded_grid(self, name: str) -> CodedGrid:
        """What decoding a quantized tensor needs."""
        coded, (_, first) = self._file.profile.coded[name], self.numbers[name]
        assert coded.args is not None
        maps = self.classes(name, "row_class"), self.classes(name, "column_class")
        return CodedGrid(self.coded_file, first, coded.shape, coded.dtype, coded.args, coded.records, *maps)

    def coded_rate(self, name: str) -> CodedRate:
        """The same for a tensor on an unbounded grid."""
        coded, (_, first) = self._file.profile.coded[name], self.numbers[name]
        assert coded.rate is not None
        grid = grid_of(coded.rate, coded.shape, self.vectors, self.class_bank)
        return CodedRate(self.coded_file, first, coded.shape, coded.dtype, grid, self.class_bank, coded.rate.wide)

    def coded_bytes(self, name: str) -> CodedBytes:
        """The same for a tensor that is coded bit by bit."""
        coded, (_, first) = self._file.profile.coded[name], self.numbers[name]
        base = partial(self._base_bytes, name, coded.base) if coded.base is not None else None
        where = f"{self._file.path}: tensor {name!r}"
        return CodedBytes(
            self.coded_file, first, coded.nbytes, coded.records, coded.palette, base, where, coded.group, coded.dtype
        )

    def _base_bytes(self, name: str, fingerprint: int) -> NDArray[np.uint8]:
        if self._base is None:
            raise InvalidArgumentError(
                f"{self._file.path}: tensor {name!r} is a delta; give the base it was packed against"
            )
        data = self._base(name)
        if xxhash.xxh3_64_intdigest(data) != fingerprint:
            raise InvalidArgumentError(
                f"{self._file.path}: this is not the base it was packed against: {name!r} differs there"
            )
        return data

    def classes(self, name: str, what: str) -> NDArray[np.uint8] | None:
        """A class map of a tensor, checked; None if it has none."""
        member = part(name, what)
        return np.frombuffer(bytes(self._file.checked(member)), np.uint8) if member in self._file.members else None

    @cached_property
    def class_bank(self) -> TableBank:
        """The bank of coder 7."""
        try:
            return TableBank.from_bytes(bytes(self._file.checked(CLASSES)))
        except CorruptionError as error:
            raise CorruptionError(
                error.args[0] if CLASSES in str(error) else f"{self._file.path}: {CLASSES}, {error}"
            ) from None

    @cached_property
    def vectors(self) -> list[NDArray[Any]]:
        """The vectors of side information, decoded the first time."""
        entries = {name: (coded.rate, coded.shape) for name, coded in self._file.profile.coded.items() if coded.rate}
        data = self._file.checked(VECTORS) if VECTORS in self._file.members else memoryview(b"")
        return decode_vectors(data, vector_plan(entries, len(data), self._file.path), self.class_bank, self._file.path)

    def _bank_rows(self, bank: str) -> int:
        member = self._file.members.get(bank_member(bank))
        return member.shape[0] if member else 0

    def bank(self, coder: int) -> NDArray[np.uint16]:
        """The tables of a coder as its kernels take them; parsed the first time."""
        bank = CODERS[coder].bank
        if bank not in self._banks:
            name = bank_member(bank)
            try:
                self._banks[bank] = CODERS[coder].parse_bank(
                    self._file.checked(name) if name in self._file.members else b""
                )
            except CorruptionError as error:
                raise CorruptionError(
                    error.args[0] if name in str(error) else f"{self._file.path}: {name}, {error}"
                ) from None
        return self._banks[bank]
