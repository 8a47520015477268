"""The chunk index of a file, checked against everything that is known before a byte is decoded (SPEC section 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .chunks import CHUNK_DTYPE
from .class_coder import CLASS_CODER
from .coder import CODERS
from .constant import CONSTANT
from .delta import DIFFERENCE
from .errors import CorruptionError, UnsupportedError
from .planes import MAX_CHUNK_CODES, Plane
from .raw import RAW

CHUNK_START = 16  # chunks start at multiples of this in the file,
PAYLOAD_START = 64  # and the first of a tensor at one of this


@dataclass(frozen=True)
class Extent:
    """A coded tensor before its chunks are known. start, nbytes: its payload in the file. delta: whether it has a base.

    where: what messages begin with. unit: 0, or in a tensor on an unbounded grid the codes of whose multiples chunks begin
    at.
    """

    planes: tuple[Plane, ...]
    start: int
    nbytes: int
    delta: bool
    where: str
    unit: int = 0


@dataclass(frozen=True)
class ChunkIndex:
    """All chunks of a file, as arrays with a place for each.

    rows: of CHUNK_DTYPE. starts: position of the first code in its plane. offsets: of the payload, in the file. sizes: bytes
    of the packed buffer. widths: bits of a packed code. planes, tensors: number of the first chunk of each plane and of each
    tensor, and behind the last one the number of chunks.
    """

    extents: tuple[Extent, ...]
    rows: NDArray[Any]
    starts: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    widths: NDArray[np.int64]
    bits: NDArray[np.int64]
    planes: NDArray[np.int64]
    tensors: NDArray[np.int64]

    def plane(self, number: int) -> range:
        """The chunks of a plane; planes are counted through all tensors."""
        return range(int(self.planes[number]), int(self.planes[number + 1]))

    def overlapping(self, number: int, start: int, stop: int) -> range:
        """The chunks of a plane that hold codes of `start .. stop - 1`."""
        chunks = self.plane(number)
        if start >= stop or not chunks:
            return range(0)
        starts = self.starts[chunks.start : chunks.stop]
        first = int(np.searchsorted(starts, start, "right")) - 1
        last = int(np.searchsorted(starts, stop, "left"))
        return range(chunks.start + first, chunks.start + last)

    def describe(self, chunk: int) -> str:
        """For messages: the tensor, the number of the chunk in it, and where its bytes are."""
        tensor = int(np.searchsorted(self.tensors, chunk, "right")) - 1
        first, stop = int(self.offsets[chunk]), int(self.offsets[chunk]) + int(self.rows["nbytes"][chunk])
        number = chunk - int(self.tensors[tensor])
        return f"{self.extents[tensor].where}, chunk {number} (file bytes {first:,} to {stop - 1:,})"


def read_chunk_index(
    data: bytes | memoryview, extents: Sequence[Extent], bank_sizes: Mapping[str, int], where: str
) -> ChunkIndex:
    """Read and check an index.

    data: 24 bytes per chunk. extents: all coded tensors in file order. bank_sizes: name of a bank -> number of its tables.
    where: the beginning of messages that concern no tensor. Raises CorruptionError, and UnsupportedError for an unknown
    coder.
    """
    rows = np.frombuffer(data, CHUNK_DTYPE)
    places = _Places(rows, extents)
    codes = rows["codes"]
    places.refuse(rows["reserved"] != 0, "has a reserved byte that is not 0")
    places.refuse((codes < 1) | (codes > MAX_CHUNK_CODES), f"does not hold 1 to {MAX_CHUNK_CODES} codes")
    unknown = ~np.isin(rows["coder"], [*CODERS, CLASS_CODER])
    if unknown.any():
        chunk = int(np.argmax(unknown))
        known = ", ".join(f"{id} ({coder_name(id)})" for id in (*CODERS, CLASS_CODER))
        raise UnsupportedError(f"{places.name(chunk)} uses coder {rows['coder'][chunk]}; this qzc knows {known}")
    places.check_runs(where)
    offsets = places.offsets()
    places.check_coders(bank_sizes)
    deltas = np.array([extent.delta for extent in extents], bool)[places.tensor]
    places.refuse(rows["delta"] > np.where(deltas, DIFFERENCE, 0), "is a delta of a kind that this tensor cannot have")
    return ChunkIndex(
        extents=tuple(extents),
        rows=rows,
        starts=places.starts,
        offsets=offsets,
        sizes=places.sizes,
        widths=places.widths,
        bits=places.bits,
        planes=places.plane_bounds,
        tensors=places.tensor_bounds,
    )


def coder_name(id: int) -> str:
    """What a coder is called in messages and tables."""
    return "ans_classes" if id == CLASS_CODER else CODERS[id].name


class _Places:
    """Which run, plane and tensor each chunk belongs to, if the codes of the chunks are counted through."""

    def __init__(self, rows: NDArray[Any], extents: Sequence[Extent]) -> None:
        self._rows, self._extents = rows, extents
        runs = [
            (count, plane, tensor)
            for tensor, extent in enumerate(extents)
            for plane in extent.planes
            for count in plane.runs
        ]
        self._ends = np.cumsum(np.array([count for count, _, _ in runs], np.int64), dtype=np.int64)
        self._stops = rows["codes"].cumsum(dtype=np.int64)
        run = np.minimum(np.searchsorted(self._ends, self._stops), max(0, len(runs) - 1))
        self._run = run
        self.tensor = np.array([tensor for _, _, tensor in runs] or [0], np.int64)[run]
        self.widths = np.array([plane.width for _, plane, _ in runs] or [8], np.int64)[run]
        self.bits = np.array([plane.bits for _, plane, _ in runs] or [8], np.int64)[run]
        self.sizes = -(-rows["codes"].astype(np.int64) * self.widths // 8)
        counts = [[plane.count for plane in extent.planes] for extent in extents]
        begins = np.cumsum([0, *(count for planes in counts for count in planes)], dtype=np.int64)
        self.plane_bounds = np.searchsorted(self._stops, begins, "right")
        self.tensor_bounds = self.plane_bounds[np.cumsum([0, *map(len, counts)], dtype=np.int64)]
        plane = np.searchsorted(begins, self._stops - rows["codes"], "right") - 1
        self.starts = self._stops - rows["codes"] - begins[plane]

    def name(self, chunk: int) -> str:
        if not self._extents:
            return f"chunk {chunk}"
        tensor = int(self.tensor[chunk])
        return f"{self._extents[tensor].where}: chunk {chunk - int(self.tensor_bounds[tensor])}"

    def refuse(self, wrong: NDArray[np.bool_], what: str) -> None:
        """Raises CorruptionError naming the first chunk for which `wrong` holds."""
        if wrong.any():
            raise CorruptionError(f"{self.name(int(np.argmax(wrong)))} {what}")

    def check_runs(self, where: str) -> None:
        """Chunks fill the runs exactly, and all but the last of a run end on a whole byte."""
        at = np.searchsorted(self._stops, self._ends)
        missed = (at == len(self._stops)) | (np.append(self._stops, -1)[at] != self._ends)
        if missed.any():
            run = int(np.argmax(missed))
            owners = [e for e in self._extents for p in e.planes for _ in p.runs]
            raise CorruptionError(
                f"{owners[run].where}: its chunks do not hold as many codes as shape, classes and records ask for"
            )
        if len(self._stops) and (not len(self._ends) or self._stops[-1] != self._ends[-1]):
            raise CorruptionError(f"{where}: the chunk index has more chunks than the tensors ask for")
        ragged = (self._rows["codes"] % np.maximum(8 // self.widths, 1) != 0) & (self._stops != self._ends[self._run])
        self.refuse(ragged, "ends inside a byte")

    def offsets(self) -> NDArray[np.int64]:
        """Where the chunks start in the file. Raises CorruptionError if they do not fill the payloads."""
        room = -(-self._rows["nbytes"].astype(np.int64) // CHUNK_START) * CHUNK_START
        ends = np.cumsum([0, *room.tolist()], dtype=np.int64)
        begins = np.array([-(-e.start // PAYLOAD_START) * PAYLOAD_START for e in self._extents] or [0], np.int64)
        shift = begins - ends[self.tensor_bounds[:-1]] if self._extents else begins
        for extent, first, last, begin in zip(
            self._extents,
            self.tensor_bounds[:-1].tolist(),
            self.tensor_bounds[1:].tolist(),
            begins.tolist(),
            strict=True,
        ):
            stop = begin + int(ends[last] - ends[first]) if last > first else extent.start
            if stop != extent.start + extent.nbytes:
                raise CorruptionError(
                    f"{extent.where}: its chunks take {stop - extent.start} bytes, its payload {extent.nbytes}"
                )
        return ends[:-1] + shift[self.tensor]

    def check_coders(self, bank_sizes: Mapping[str, int]) -> None:
        rows, coders, nbytes = self._rows, self._rows["coder"], self._rows["nbytes"]
        grown = (nbytes == 0) | (nbytes > self.sizes) | ((coders == RAW.id) & (nbytes != self.sizes))
        self.refuse(grown, "has another number of bytes than its codes can take")
        units = np.array([extent.unit for extent in self._extents] or [0], np.int64)[self.tensor]
        self.refuse((units > 0) & (self.starts % np.maximum(units, 1) != 0), "begins where no chunk of its tensor may")
        whole = np.isin(coders, (RAW.id, CONSTANT.id, CLASS_CODER))
        foreign = np.where(units > 0, ~whole, coders == CLASS_CODER)
        self.refuse(foreign, "has a coder that its tensor cannot have")
        classes = (coders == CLASS_CODER) & ((rows["table"] != 0) | (rows["streams"] == 0))
        self.refuse(classes, f"({coder_name(CLASS_CODER)}) has a table, or a wrong number of streams")
        for id in sorted(set(coders.tolist()) - {CLASS_CODER}):
            coder, mine = CODERS[id], coders == id
            tables = bank_sizes.get(coder.bank, 0) if coder.table_nbytes else 1
            self.refuse(mine & (rows["table"] >= tables), f"({coder.name}) names a table that its bank does not have")
            streams = (rows["streams"] == 0) if coder.default_streams(1) else (rows["streams"] != 0)
            self.refuse(mine & streams, f"({coder.name}) has a wrong number of streams")
