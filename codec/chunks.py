"""Cutting a run of codes into chunks, coding each in the cheapest way, and decoding single chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import xxhash
from numpy.typing import NDArray

from .ans import ANS16, ANS256
from .buffers import Buffer, read_only
from .choose_tables import choose_tables, likely_rows
from .coder import CODERS, Coder, Table, coder_for
from .constant import CONSTANT
from .errors import CorruptionError, InvalidArgumentError, UnsupportedError, VerificationError
from .escape16 import ESCAPE16
from .escape_run import about_counts, escape_encoder, run_counts
from .histogram import byte_counts, nibble_counts
from .model import FrequencyTable
from .nibbles import ChunkEncoder, encode_chunks, nibble_encoder, nibble_tables
from .pages import empty
from .raw import RAW
from .run_map import RunMap
from .short16 import PRECISION as SHORT_PRECISION
from .short16 import SHORT16, lanes_for
from .short256 import SHORT256
from .short_runs import better_table
from .tensor import packed_nbytes

CHUNK_CODES = 1 << 18  # default target: the decoded chunk stays in a second-level cache, its states weigh nothing
CHUNK_ALIGNMENT = 256  # codes: every chunk of a run but the last holds a multiple

# Share of the entropy by which split8 and escape16 may be above it, table included: they decode and encode almost twice as
# fast as ans256 (docs/PERFORMANCE.md). States come on top.
EXTRA = 0.0015
# A run of fewer bytes of nibbles is coded by short16: smaller, and its slower decoding does not weigh anything yet.
SHORT_NBYTES, SHORT_NIBBLES = 1 << 15, 1 << 17  # the second where nibbles are coded as such in any case
# Runs of fewer bytes may be coded by short256 (of nibbles half as many, or by short16): some 0.3 % smaller, decoded in three
# times the time or more.
SHORT_BYTES = 7 << 14

# A row of the chunk index (SPEC section 4).
CHUNK_DTYPE = np.dtype(
    [
        ("nbytes", "<u4"),
        ("codes", "<u4"),
        ("table", "<u4"),
        ("coder", "u1"),
        ("streams", "u1"),
        ("delta", "u1"),
        ("reserved", "u1"),
        ("checksum", "<u8"),
    ]
)


@dataclass(frozen=True)
class EncodedChunk:
    """A chunk before it has a place in a file: the fields of its row, its table and its bytes.

    table: the row for the coder's table bank, b"" for coders without tables. checksum: XXH3-64 of the payload. delta: 0, or
    how the codes differ from those that were asked for (SPEC section 4).
    """

    codes: int
    coder: int
    streams: int
    table: bytes
    payload: memoryview
    checksum: int
    delta: int = 0

    @classmethod
    def made(
        cls, codes: int, coder: int, streams: int, table: bytes, payload: memoryview, checksum: int
    ) -> EncodedChunk:
        """As the class does, in a third of the time."""
        chunk = object.__new__(cls)
        fields = chunk.__dict__
        fields["codes"], fields["coder"], fields["streams"], fields["table"] = codes, coder, streams, table
        fields["payload"], fields["checksum"], fields["delta"] = payload, checksum, 0
        return chunk


def plan_chunks(codes: int, storage_bits: int, chunk_codes: int = CHUNK_CODES) -> list[tuple[int, int]]:
    """Cut a run of `codes` codes into ranges (start, stop) of nearly equal size, about `chunk_codes` each.

    All but the last hold a multiple of 256 codes, so they begin and end on whole bytes; none exceeds 1.5 times the
    target (targets below 512 count as 512). No ranges for no codes. Raises InvalidArgumentError for a target that is
    not positive or has no place in a chunk row.

    >>> plan_chunks(600_000, 4, 1 << 18)
    [(0, 300032), (300032, 600000)]
    """
    if not 1 <= chunk_codes <= 1 << 30:
        raise InvalidArgumentError(f"chunk_codes is {chunk_codes}; a chunk holds 1 to {1 << 30} codes")
    target = max(chunk_codes, 2 * CHUNK_ALIGNMENT)
    count = max(1, round(codes / target))
    step = -(-codes // (count * CHUNK_ALIGNMENT)) * CHUNK_ALIGNMENT
    return [(start, min(start + step, codes)) for start in range(0, codes, step)] if codes else []


def encode_run(
    packed: NDArray[np.uint8],
    codes: int,
    storage_bits: int,
    choice: str,
    chunk_codes: int = CHUNK_CODES,
    run: RunMap = map,
    verify: bool = True,
    extra: float = EXTRA,
    pairs: bool = True,
    room: NDArray[np.uint8] | None = None,
) -> list[EncodedChunk]:
    """Code a packed run (uint8 `[packed_nbytes(codes, storage_bits)]`) with `ans`, `huffman` or `raw`.

    `ans` codes nibbles where they have at most 4 bits and pairs of them are not notably cheaper, else bytes: by their high
    nibbles (split8) or by the likely ones (escape16) where that is smaller, tables included, or above the entropy by no more
    than a share of `extra`, for both are fast; or else whole (ans256). Without `pairs` nibbles are coded as such. Short runs
    of one chunk are coded by short16 and short256, where that is smaller by more than `extra`, or the others too inexact.
    Each chunk gets its own frequency table or shares one with others of the run, whichever makes the sum of payloads
    and tables smaller. A chunk whose bytes are all the same becomes constant, one that would not shrink stays raw.
    `run` maps a function over pieces of the run, in threads if it likes; the result does not depend on it. Payloads are parts
    of `packed`, or of `room` (uint8, as large; by default fresh memory).

    Raises InvalidArgumentError for bad arguments, VerificationError if a chunk does not decode to what was coded.
    """
    if packed.shape != (packed_nbytes(codes, storage_bits),):
        raise InvalidArgumentError(f"{codes} codes of {storage_bits} bits do not fill a buffer of shape {packed.shape}")
    coder = coder_for(choice, storage_bits)
    sizes, places, bounds = _layout(codes, storage_bits, chunk_codes)
    source = read_only(packed)
    if coder is RAW:
        return [_chunk(n, RAW, 0, b"", source[a:b]) for n, (a, b) in zip(sizes, pairwise(places), strict=True)]
    if not sizes:
        return []
    # Payloads of a run lie in one piece of memory, each where its codes lie in the packed run: the allocator keeps such a
    # piece for the next run, while small ones go back to the system, and new pages cost as much as filling them.
    room = empty(packed.size) if room is None else room
    if coder is ANS16 and len(sizes) == 1 and packed.size < (SHORT_NBYTES if pairs else SHORT_NIBBLES):
        return _encode_short(source, codes, storage_bits, room, pairs, verify)
    if coder is ANS16:
        frequencies = nibble_tables(source, bounds, run, pairs)
        if frequencies is not None:
            chunks = _encode_batch(ANS16, nibble_encoder(), source, bounds, sizes, frequencies, room, run, verify)
            # Where nibbles are worth less than two bits, 8 bits of probability may be too few.
            if len(chunks) == 1 and 2 * len(chunks[0].payload) < packed.size < SHORT_BYTES // 2:
                chunks = _shorter(SHORT16, chunks[0], source, nibble_counts(source), storage_bits, EXTRA, room, verify)
            return chunks
    counts, exact = about_counts(source, bounds, run) if coder is ANS256 else (run_counts(source, bounds, run), True)
    rows, tables = likely_rows(counts, extra) if coder is ANS256 else None, list[Table | None]()
    if rows is None:
        counts = counts if exact else run_counts(source, bounds, run)
        coder, tables = choose_tables(coder, list(counts), run, extra)

    def encode(index: int) -> EncodedChunk:
        start, stop = places[index], places[index + 1]
        buffer = source[start:stop]
        chunk = _encode_chunk(coder, tables[index], buffer, sizes[index], room[start:stop])
        if verify:
            _verify(chunk, buffer)
        return chunk

    if rows is not None:
        chunks = _encode_batch(ESCAPE16, escape_encoder(), source, bounds, sizes, rows, room, run, verify)
    else:
        chunks = _drop_useless_tables(coder, list(run(encode, range(len(sizes)))), source, places)
    short = SHORT_BYTES if storage_bits == 8 else SHORT_BYTES // 2  # nibbles in pairs decode fast enough by ans256
    if choice == "ans" and len(sizes) == 1 and packed.size < short and coder is not ANS16:
        chunks = _shorter(SHORT256, chunks[0], source, counts[0], storage_bits, extra, room, verify)
    return chunks


@lru_cache(256)
def _layout(
    codes: int, storage_bits: int, chunk_codes: int
) -> tuple[tuple[int, ...], tuple[int, ...], NDArray[np.int64]]:
    """Codes of the chunks of a run, and where they begin and end in it, twice; nobody writes to the array. Models have few shapes."""
    plan = plan_chunks(codes, storage_bits, chunk_codes)
    places = (0, *[packed_nbytes(b, storage_bits) for _, b in plan])
    return tuple(b - a for a, b in plan), places, np.array(places, np.int64)


def _encode_short(
    packed: NDArray[np.uint8], codes: int, storage_bits: int, room: NDArray[np.uint8], pairs: bool, verify: bool
) -> list[EncodedChunk]:
    # By numpy: a few thousand nibbles are not worth the compilation of a kernel.
    counts = np.bincount(packed & 15, minlength=16) + np.bincount(packed >> 4, minlength=16)
    table = FrequencyTable.from_counts(counts, SHORT_PRECISION) if np.count_nonzero(counts) > 1 else None
    streams = lanes_for(table.cost_bits(counts)) if table else 0
    chunk = _encode_chunk(SHORT16, table, packed, codes, room, streams)
    if verify:
        _verify(chunk, packed)
    chunks = _drop_useless_tables(SHORT16, [chunk], packed, [0, packed.size])
    if pairs and 4 * len(chunks[0].payload) < packed.size:  # a nibble is worth less than a bit
        byte_counts = np.bincount(packed, minlength=256)
        return _shorter(SHORT256, chunks[0], packed, byte_counts, storage_bits, 0.0, room, verify)
    return chunks


def _shorter(
    coder: Coder,
    chunk: EncodedChunk,
    packed: NDArray[np.uint8],
    counts: NDArray[np.int64],
    storage_bits: int,
    extra: float,
    room: NDArray[np.uint8],
    verify: bool,
) -> list[EncodedChunk]:
    """The only chunk of a short run, or what `coder` makes of it if that is better: see `better_table`."""
    if chunk.coder == CONSTANT.id or packed.size == 1:
        return [chunk]
    nbytes = len(chunk.payload), len(chunk.payload) + len(chunk.table)
    found = better_table(coder.id, *nbytes, counts, storage_bits, extra)
    if found is None:
        return [chunk]
    chunk = _encode_chunk(coder, found[0], packed, chunk.codes, room, found[1])
    if verify:
        _verify(chunk, packed)
    return [chunk]


def _encode_batch(
    coder: Coder,
    encoder: ChunkEncoder,
    packed: NDArray[np.uint8],
    bounds: NDArray[np.int64],
    codes: Sequence[int],
    tables: NDArray[np.uint16],
    room: NDArray[np.uint8],
    run: RunMap,
    verify: bool,
) -> list[EncodedChunk]:
    """All chunks with a coder that has a kernel for that; chunks whose bytes are all the same have a row of zeros."""
    places, width = bounds.tolist(), coder.table_nbytes
    rows, blank, memory = tables.astype(np.uint8).tobytes(), bytes(width), room.data

    def finish(first: int, streams: list[int], nbytes: list[int], checksums: list[int]) -> list[EncodedChunk]:
        chunks = []
        for i, count, size, checksum in zip(range(first, len(codes)), streams, nbytes, checksums, strict=False):
            stop, table = places[i + 1], rows[i * width : (i + 1) * width]
            if size > 0:
                chunk = EncodedChunk.made(codes[i], coder.id, count, table, memory[stop - size : stop], checksum)
            else:
                chunk = other(i, table, size == 0)
            if verify:
                _verify(chunk, packed[places[i] : stop])
            chunks.append(chunk)
        return chunks

    def other(i: int, table: bytes, has_table: bool) -> EncodedChunk:
        buffer = packed[places[i] : places[i + 1]]
        if not has_table:  # the table is that of a sample without one of the chunk's symbols
            return _encode_chunk(
                coder, coder.fit(byte_counts(buffer)), buffer, codes[i], room[places[i] : places[i + 1]]
            )
        if buffer.size > 1 and table == blank:
            return _chunk(codes[i], CONSTANT, 0, b"", buffer[:1])
        return _chunk(codes[i], RAW, 0, b"", buffer)

    chunks = encode_chunks(encoder, packed, bounds, codes, tables, room, finish, run)
    return _drop_useless_tables(coder, chunks, packed, places)


def decode_chunk(
    coder: int, streams: int, checksum: int, payload: Buffer, table: bytes, out: NDArray[np.uint8], check: bool = True
) -> None:
    """Decode the payload of a chunk to its packed buffer `out` (uint8 `[packed_nbytes(codes, storage_bits)]`).

    coder, streams, checksum: from the row of the chunk. table: its row of the coder's table bank, b"" for coders
    without tables. check: compare the checksum first.
    Raises CorruptionError for a wrong checksum, table or payload, UnsupportedError for an unknown coder; `out` then
    holds anything. Takes any bytes: never leaves the arrays, always ends.
    """
    if check and xxhash.xxh3_64_intdigest(payload) != checksum:
        raise CorruptionError("the checksum of the chunk does not match its bytes")
    decoder = CODERS.get(coder)
    if decoder is None:
        raise UnsupportedError(f"unknown coder {coder}; this version knows {', '.join(map(str, CODERS))}")
    if out.size == 0:
        raise CorruptionError("a chunk without codes")
    if not out.flags.c_contiguous or out.dtype != np.uint8:
        raise InvalidArgumentError(f"out must be C-contiguous uint8, got {out.dtype}")
    if not decoder.default_streams(1) and streams:
        raise CorruptionError(f"coder {decoder.name} has no streams, the chunk claims {streams}")
    decoder.decode(payload, _parse_table(coder, table), out.reshape(-1), streams)


@lru_cache(maxsize=4096)
def _parse_table(coder: int, row: bytes) -> Table | None:
    """Chunks of a run often share a table, and the lookups that hang on it are built once."""
    return CODERS[coder].table_from_bytes(row)


def _encode_chunk(
    coder: Coder,
    table: Table | None,
    buffer: NDArray[np.uint8],
    codes: int,
    out: NDArray[np.uint8],
    streams: int | None = None,
) -> EncodedChunk:
    if coder.id == RAW.id or buffer.size == 1:
        return _chunk(codes, RAW, 0, b"", buffer)
    if buffer[0] == buffer[-1] and not (buffer != buffer[0]).any():
        return _chunk(codes, CONSTANT, 0, b"", CONSTANT.encode(buffer, None, 0))
    streams = coder.default_streams(codes) if streams is None else streams
    payload = coder.encode_fitted(buffer, table, streams)
    if payload.size >= buffer.size:
        return _chunk(codes, RAW, 0, b"", buffer)
    out = out[: payload.size]
    out[:] = payload
    return _chunk(codes, coder, streams, table.to_bytes() if table and coder.bank else b"", out)


def _chunk(codes: int, coder: Coder, streams: int, table: bytes, payload: NDArray[np.uint8]) -> EncodedChunk:
    return EncodedChunk(codes, coder.id, streams, table, payload.data, xxhash.xxh3_64_intdigest(payload))


def _verify(chunk: EncodedChunk, buffer: NDArray[np.uint8]) -> None:
    if chunk.coder == RAW.id:
        return
    decoded = np.empty(buffer.size, np.uint8)
    try:
        decode_chunk(chunk.coder, chunk.streams, chunk.checksum, chunk.payload, chunk.table, decoded)
        same = bool((decoded == buffer).all())
    except CorruptionError:
        same = False
    if not same:
        raise VerificationError(
            f"a chunk of {chunk.codes} codes does not decode to what was coded ({CODERS[chunk.coder].name});"
            " this is a bug in qzc or a fault of the machine"
        )


def _drop_useless_tables(
    coder: Coder, chunks: list[EncodedChunk], packed: NDArray[np.uint8], places: Sequence[int]
) -> list[EncodedChunk]:
    """Store chunks raw where a table costs more than all chunks that use it save."""
    saving = [b - a - len(chunk.payload) for chunk, (a, b) in zip(chunks, pairwise(places), strict=True)]
    if all(nbytes > coder.table_nbytes for nbytes in saving):
        return chunks
    saved: dict[bytes, int] = {}
    for chunk, nbytes in zip(chunks, saving, strict=True):
        if chunk.table:
            saved[chunk.table] = saved.get(chunk.table, 0) + nbytes
    useless = {table for table, nbytes in saved.items() if nbytes <= coder.table_nbytes}
    return [
        _chunk(chunk.codes, RAW, 0, b"", packed[a:b]) if chunk.table in useless else chunk
        for chunk, (a, b) in zip(chunks, pairwise(places), strict=True)
    ]
