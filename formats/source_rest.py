"""What a `.qzc` file keeps of the file that it was packed from, beside the tensors: enough to restore it."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np

from ..codec.errors import CorruptionError
from .member_file import MemberFile
from .profile import OFFSETS, REST, SourceFile


def read_source_rest(file: MemberFile, source: SourceFile, sizes: Mapping[str, int]) -> tuple[bytes, dict[str, int]]:
    """All bytes that belong to no tensor, and where the tensors begin. sizes: bytes of the tensors, sorted by name.

    Raises CorruptionError.
    """
    offsets = np.frombuffer(file.checked(OFFSETS), "<u8").tolist()
    length = source.nbytes - sum(sizes.values())
    unzip = zlib.decompressobj()
    try:
        rest = unzip.decompress(bytes(file.checked(REST)), max(0, length) + 1)
    except zlib.error as error:
        raise CorruptionError(f"{file.path}: {REST} is not a zlib stream ({error})") from None
    if len(rest) != length or not unzip.eof or unzip.unused_data:
        raise CorruptionError(f"{file.path}: {REST} and the tensors do not make a file of {source.nbytes} bytes")
    at = 0
    for offset, size in sorted(zip(offsets, sizes.values(), strict=True)):
        if offset < at or offset + size > source.nbytes:
            raise CorruptionError(f"{file.path}: {OFFSETS} has tensors that overlap or lie outside the file")
        at = offset + size
    return rest, dict(zip(sizes, offsets, strict=True))
