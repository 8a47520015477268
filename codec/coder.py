"""What a coder is, and which ones there are. A coder turns packed codes into payload bytes and back; it has no state."""

from __future__ import annotations

from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .ans import ANS16, ANS256
from .buffers import Buffer
from .constant import CONSTANT
from .errors import InvalidArgumentError
from .escape16 import ESCAPE16
from .escape_table import EscapeTable
from .huffman import HUFFMAN
from .huffman_code import CodeLengths
from .model import FrequencyTable
from .raw import RAW
from .short16 import SHORT16
from .short256 import SHORT256
from .split8 import SPLIT8

Table: TypeAlias = FrequencyTable | CodeLengths | EscapeTable


class Coder(Protocol):
    """One byte format for the packed codes of a chunk; `id` names it for ever (SPEC section 5).

    The functions may be called from several threads at once; the kernels release the GIL.
    """

    @property
    def id(self) -> int: ...

    @property
    def name(self) -> str: ...

    @property
    def bank(self) -> str:
        """Name of its table bank, which coders may share; "" if it has no tables."""

    @property
    def table_nbytes(self) -> int:
        """Size of a row of that bank; 0 if it has no tables."""

    def symbol_counts(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Counts of the coder's symbols from counts of bytes (int64 `[256]`): what `Table.cost_bits` takes."""

    def fit(self, counts: NDArray[np.int64]) -> Table | None:
        """The best table for a buffer with these counts of bytes (int64 `[256]`, not all 0); None if tables are not used."""

    def default_streams(self, codes: int) -> int:
        """Number of streams that suits a chunk of `codes` codes; 0 for coders without that choice."""

    def encode(self, packed: Buffer, table: Table | None, streams: int) -> NDArray[np.uint8]:
        """The payload of a packed buffer of at least one byte. It can be longer than the buffer.

        Raises InvalidArgumentError if the table lacks a symbol of the buffer or `streams` does not suit its size.
        """

    def encode_fitted(self, source: NDArray[np.uint8], table: Table | None, streams: int) -> NDArray[np.uint8]:
        """The same, unchecked, of a read-only buffer: for a table that was made of its counts and `default_streams`.

        The next call of the same thread may overwrite the payload.
        """

    def decode(self, payload: Buffer, table: Table | None, out: NDArray[np.uint8], streams: int) -> None:
        """Fill `out` (uint8, C-contiguous, at least one byte) from a payload.

        Raises CorruptionError for bytes that `encode` does not produce; `out` then holds anything. Takes any bytes:
        it never reads or writes outside the arrays and always ends.
        """

    def table_from_bytes(self, row: bytes) -> Table | None:
        """A row of the table bank; b"" for coders without tables. Raises CorruptionError for an invalid one."""

    def parse_bank(self, bank: Buffer) -> NDArray[np.uint16]:
        """All rows of a table bank as the kernels take them: one row each, C-contiguous.

        Raises CorruptionError naming the first row that is invalid.
        """


CODERS: dict[int, Coder] = {
    coder.id: coder for coder in (RAW, CONSTANT, ANS16, ANS256, HUFFMAN, SPLIT8, ESCAPE16, SHORT16, SHORT256)
}

CHOICES = ("ans", "huffman", "raw")


def coder_for(choice: str, storage_bits: int) -> Coder:
    """The coder that a choice of the user (`ans`, `huffman`, `raw`) means for packed codes of this width.

    Of the coders that `ans` stands for it is the first; `encode_run` may find another one better.
    Raises InvalidArgumentError for another choice.
    """
    if choice == "ans":
        return ANS16 if storage_bits <= 4 else ANS256
    if choice == "huffman":
        return HUFFMAN
    if choice == "raw":
        return RAW
    raise InvalidArgumentError(f"unknown coder {choice!r}; choose {', '.join(CHOICES[:-1])} or {CHOICES[-1]}")
