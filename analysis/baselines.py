"""What gzip and zstd make of the same bytes: the sizes of the files that their command line tools would write.

Bytes are handed over in pieces and the output is counted and dropped, so memory does not grow with the input.
The output does not depend on the size of the pieces.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray

PIECE_NBYTES = 1 << 20
SMALL_NBYTES = 4096  # below, zlib's block is gzip's

# A member of a gzip file: 10 bytes of header without a file name, then CRC-32 and length, 4 bytes each.
GZIP_FRAME_NBYTES = 18

# zlib's own default (8) cuts a deflate block every 16 K symbols. gzip's blocks are twice as long: that is memLevel 9.
_GZIP_MEM_LEVEL = 9


def gzip_nbytes(data: NDArray[np.uint8], level: int = 6) -> int:
    """Size in bytes of `gzip -LEVEL < data`: the deflate stream and 18 bytes of header and trailer.

    data: uint8 `[n]`, contiguous. By the tool itself where there is one, else by zlib at gzip's block size. That gives
    the size that GNU gzip writes, to the byte, unless a block shrinks to less than half: every 4096 symbols gzip looks whether
    most of them are literals and the block so far halves, and then ends it early. zlib can do so only when compiled for it,
    and the result is then up to 1 % more.
    """
    tool = _gzip_tool()
    if tool and data.size >= SMALL_NBYTES:
        nbytes = _tool_nbytes([tool, f"-{level}", "-n", "-c"], data)
        if nbytes is not None:
            return nbytes
    return zlib_nbytes(data, level)


def zlib_nbytes(data: NDArray[np.uint8], level: int = 6) -> int:
    """The same by zlib, whatever tools there are."""
    stream = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS, _GZIP_MEM_LEVEL)
    nbytes = sum(len(stream.compress(piece)) for piece in _pieces(data))
    return nbytes + len(stream.flush()) + GZIP_FRAME_NBYTES


@cache
def _gzip_tool() -> str | None:
    return shutil.which("gzip")


def _tool_nbytes(command: list[str], data: NDArray[np.uint8]) -> int | None:
    """How much a filter writes, None if it fails."""
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.DEVNULL)
            with process:
                assert process.stdin
                for piece in _pieces(data):
                    process.stdin.write(piece)
        except OSError:
            return None
        return output.seek(0, 2) if process.returncode == 0 else None


def zstd_nbytes(data: NDArray[np.uint8], level: int) -> int:
    """Size in bytes of `zstd -LEVEL --single-thread FILE`: one frame with content size and checksum, as the tool writes.

    data: uint8 `[n]`, contiguous. Equal to the tool's size to the byte for the same version of the zstd library.
    """
    import zstandard

    compressor = zstandard.ZstdCompressor(level=level, write_checksum=True)
    stream = compressor.compressobj(size=data.size)
    nbytes = sum(len(stream.compress(piece)) for piece in _pieces(data))
    return nbytes + len(stream.flush())


def _pieces(data: NDArray[np.uint8]) -> Iterator[memoryview]:
    view = memoryview(data)
    for start in range(0, data.size, PIECE_NBYTES):
        yield view[start : start + PIECE_NBYTES]
