"""What precedes the decoding of pieces of tensors, for many chunks in one call: see `codec.joined`.

Chunks are rows (coder, position of its first code in its plane, size of its packed buffer, and the addresses where its bytes
begin and end). A tensor is (number of its records, address of what becomes of them, for each of its planes the number of the
first chunk, and the number behind the last one). A field is (bits, count, width of a packed code). All are int64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .ans_header import I, U
from .escape16 import HEADER
from .jit import inlined, kernel
from .status import OK, WRONG_CHECKSUM
from .xxh3 import word32_at, xxh3_at

NONE = 2**64 - 1
ALIGNMENT = 64  # of what is decoded for a join
_CODERS = 256
_CODER, _START, _SIZE, _BEGIN, _END = range(5)
_RAW, _ANS16, _ESCAPE16 = 0, 2, 6
ROWS, JOINS, HASHES, PIECES, OTHERS, CALLS, GROUPS, ROOM = range(8)  # what `cut_pieces` counts


@kernel
def cut_pieces(
    tensors: NDArray[np.int64],
    fields: NDArray[np.int64],
    chunks: NDArray[np.int64],
    fuses: bool,
    limits: NDArray[np.int64],
) -> Any:
    """Cut tensors into pieces, and put these into groups.

    limits: elements of a piece, at least, and at most, and bytes of a group, at least. fuses: whether pieces whose highest
    plane is a chunk of coder 6 are for `join_escaped`.

    Returns arrays of int64 with a row for each

    - task: its coder, its chunk, where in the memory of a group it is decoded to; and if that is coder 6, of which only the
      nibbles are decoded before the join, the number of this (else -1), and the first of the `compared` chunks, and their
      number, of which the join reads the bytes;
    - join: see `join_escaped`;
    - chunk to be compared with its checksum: its number;
    - piece: where the codes of each field are: addresses, but for those in the memory of a group;
    - piece: for each field, 1 if it is there;
    - piece that is not joined from nibbles: its number, that of its tensor, and from which record to before which one;
    - call: its coder, and from which task to before which one;
    - group: the same for its tasks, joins, chunks, pieces, pieces not joined from nibbles, and calls;
    - tensor: 1 if its planes have chunks that do not begin at the same elements, or are too large: it is not cut;

    and how many bytes of memory a group needs.
    """
    number, pieces = 0, 0  # of chunks, and of pieces at most
    for t in range(len(tensors)):
        number += tensors[t, 2 + len(fields)] - tensors[t, 2]
        pieces += tensors[t, 0] // limits[0] + 1
    pieces += number
    rows, joins, hashes = np.empty((number, 6), np.int64), np.empty((number, 4), np.int64), np.empty(number, np.int64)
    places, inside = np.empty((pieces, len(fields)), np.int64), np.empty((pieces, len(fields)), np.int64)
    others, calls = np.empty((pieces, 4), np.int64), np.empty((number, 3), np.int64)
    groups, refused = np.empty((pieces, 2 * GROUPS), np.int64), np.zeros(len(tensors), np.int64)
    size = 0
    for f in range(len(fields)):
        size += fields[f, 0] * fields[f, 1]
    size >>= 3
    top, least, most, group_nbytes = len(fields) - 1, limits[0], limits[1], limits[2]
    stored, reached = np.empty(len(fields), np.int64), np.empty(len(fields), np.int64)
    new, n, begun = np.empty_like(rows), np.zeros(ROOM + 1, np.int64), np.zeros(ROOM + 1, np.int64)
    nbytes, offset = 0, 0
    for t in range(len(tensors)):
        elements, out, bounds = tensors[t, 0], tensors[t, 1], tensors[t, 2:]
        lead = -1  # a coded plane, if there is one
        for f in range(len(fields)):
            stored[f], reached[f] = _is_stored(chunks, bounds[f], bounds[f + 1], fields[f, 0]), bounds[f]
            if stored[f] == 0 and lead < 0:
                lead = f
        if lead >= 0 and not _meet(chunks, bounds, fields, stored, lead, elements, least, most):
            refused[t] = 1
            continue
        start, c, d = 0, 0, 0
        while start < elements:
            stop = min(elements, start + 2 * least)
            if lead >= 0:
                d = _next_cut(chunks, bounds[lead], bounds[lead + 1], c, fields[lead, 1], least)
                stop = _first_element(chunks, bounds[lead], bounds[lead + 1], d, fields[lead, 1], elements)
            compared, piece = n[HASHES], n[PIECES]
            fused = fuses and d - c == 1 and stored[top] == 0 and chunks[bounds[top] + c, _CODER] == _ESCAPE16
            for f in range(len(fields)):
                count, width = fields[f, 1], fields[f, 2]
                if stored[f]:
                    places[piece, f], inside[piece, f] = chunks[bounds[f], _BEGIN] + start * count, 0
                    while reached[f] < bounds[f + 1] and chunks[reached[f], _START] < stop * count:
                        hashes[n[HASHES]] = reached[f]
                        n[HASHES] += 1
                        reached[f] += 1
                    continue
                alone = d - c == 1 and chunks[bounds[f] + c, _CODER] == _RAW and fields[f, 0] == width
                if alone and (stop - start) * count * width % 8 == 0:
                    places[piece, f], inside[piece, f] = chunks[bounds[f] + c, _BEGIN], 0
                else:
                    places[piece, f], inside[piece, f] = offset, 1
                    for chunk in range(bounds[f] + c, bounds[f] + d):
                        row = new[n[ROWS]]
                        row[0], row[1], row[2] = chunks[chunk, _CODER], chunk, offset
                        row[3], row[4], row[5] = -1, 0, 0
                        if fused and f == top:
                            row[0], row[3], row[4], row[5] = _ANS16, n[JOINS], compared, n[HASHES] - compared
                        offset += chunks[chunk, _SIZE]
                        n[ROWS] += 1
                    offset = (offset + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
                for chunk in range(bounds[f] + c, bounds[f] + d):
                    hashes[n[HASHES]] = chunk
                    n[HASHES] += 1
            if fused:
                join = joins[n[JOINS]]
                join[1], join[2], join[3] = piece, out + start * size, stop - start
                n[JOINS] += 1
            else:
                other = others[n[OTHERS]]
                other[0], other[1], other[2], other[3] = piece, t, start, stop
                n[OTHERS] += 1
            n[PIECES] += 1
            nbytes += (stop - start) * size
            n[ROOM] = max(n[ROOM], offset)
            if nbytes >= group_nbytes:
                _end_group(new, rows, joins, calls, groups, n, begun)
                nbytes, offset = 0, 0
            start, c = stop, d
    if nbytes:
        _end_group(new, rows, joins, calls, groups, n, begun)
    return (
        rows[: n[ROWS]], joins[: n[JOINS]], hashes[: n[HASHES]], places[: n[PIECES]], inside[: n[PIECES]],
        others[: n[OTHERS]], calls[: n[CALLS]], groups[: n[GROUPS]], refused, n[ROOM],
    )  # fmt: skip


@inlined
def _is_stored(chunks: NDArray[np.int64], first: int, stop: int, bits: int) -> int:
    """Whether a plane is in the file as it is to be in memory."""
    if bits != 8:
        return 0
    for i in range(first, stop):
        if chunks[i, _CODER] != _RAW or (i > first and chunks[i, _BEGIN] != chunks[i - 1, _END]):
            return 0
    return 1


@inlined
def _meet(
    chunks: NDArray[np.int64],
    bounds: NDArray[np.int64],
    fields: NDArray[np.int64],
    stored: NDArray[np.int64],
    lead: int,
    elements: int,
    least: int,
    most: int,
) -> bool:
    """Whether all coded planes have chunks that begin at the same elements, and none of the pieces is too large."""
    number, count = bounds[lead + 1] - bounds[lead], fields[lead, 1]
    for f in range(lead + 1, len(fields)):
        if stored[f] == 0:
            if fields[f, 1] != count or bounds[f + 1] - bounds[f] != number:
                return False
            for i in range(number):
                if chunks[bounds[f] + i, _START] != chunks[bounds[lead] + i, _START]:
                    return False
    start, c = 0, 0
    while start < elements:
        c = _next_cut(chunks, bounds[lead], bounds[lead + 1], c, count, least)
        stop = _first_element(chunks, bounds[lead], bounds[lead + 1], c, count, elements)
        if stop - start > most:
            return False
        start = stop
    return True


@inlined
def _next_cut(chunks: NDArray[np.int64], first: int, stop: int, c: int, count: int, least: int) -> int:
    """The number in its plane of the chunk with which the piece ends that begins with chunk c."""
    for i in range(first + c + 1, stop):
        at = chunks[i, _START]
        if at - chunks[first + c, _START] >= least * count and at % count == 0:
            return i - first
    return stop - first


@inlined
def _first_element(chunks: NDArray[np.int64], first: int, stop: int, c: int, count: int, elements: int) -> int:
    return chunks[first + c, _START] // count if first + c < stop else elements


@inlined
def _end_group(
    new: NDArray[np.int64],
    rows: NDArray[np.int64],
    joins: NDArray[np.int64],
    calls: NDArray[np.int64],
    groups: NDArray[np.int64],
    n: NDArray[np.int64],
    begun: NDArray[np.int64],
) -> None:
    """Sort the tasks since `begun` by their coder, for a call for each of these; note what makes the group."""
    place = np.zeros(_CODERS + 1, np.int64)
    for i in range(begun[ROWS], n[ROWS]):
        place[new[i, 0] + 1] += 1
    place[0] = begun[ROWS]
    for coder in range(_CODERS):
        if place[coder + 1]:
            call = calls[n[CALLS]]
            call[0], call[1], call[2] = coder, place[coder], place[coder] + place[coder + 1]
            n[CALLS] += 1
        place[coder + 1] += place[coder]
    for i in range(begun[ROWS], n[ROWS]):
        at = place[new[i, 0]]
        place[new[i, 0]] += 1
        rows[at] = new[i]
        if new[i, 3] >= 0:
            joins[new[i, 3], 0] = at
    for k in range(GROUPS):
        groups[n[GROUPS], 2 * k], groups[n[GROUPS], 2 * k + 1] = begun[k], n[k]
        begun[k] = n[k]
    n[GROUPS] += 1


@kernel
def compare(sources: NDArray[np.uint64], status: NDArray[np.int64], xxh3: int) -> None:
    """Fill `status`. sources: of each chunk the address of its bytes, their number, their checksum. xxh3: as in a TASK."""
    for i in range(len(sources)):
        same = xxh3_at(U(xxh3), sources[i, 0], sources[i, 1]) == sources[i, 2]
        status[i] = OK if same else WRONG_CHECKSUM


@kernel
def only_nibbles(tasks: NDArray[Any], joins: NDArray[np.uint64], escaped: NDArray[np.uint64]) -> None:
    """Make tasks of coder 6, those of `joins`, some of coder 2. Fills `escaped`: how many bytes have no symbol in each.

    joins: see `join_escaped_avx2`. Where there are not as many it is NONE, and the payload empty.
    """
    for i in range(len(joins)):
        t: Any = tasks[I(joins[i, 0])]
        escaped[i], skipped = U(NONE), t.nbytes
        if t.nbytes >= U(HEADER):
            count = word32_at(t.payload)
            if count <= t.nbytes - U(HEADER):
                escaped[i], skipped = count, U(HEADER) + count
        t.payload += skipped
        t.nbytes -= skipped
        t.size = (t.size + U(1)) >> U(1)
