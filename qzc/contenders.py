"""What takes part in `qzc.bench`: our coders on the path that files take, the limits they run against, and rivals.

Whoever takes part has coded the sample and decoded it again when it comes out of here; the results are in warm buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .analysis.rivals import Rival
from .codec.batch import WholePlane, plan_tasks, run_tasks
from .codec.chunks import encode_run
from .codec.coder import CODERS
from .codec.errors import VerificationError
from .codec.packing import pack_codes, unpack_codes
from .codec.run_map import RunMap
from .codec.tensor import QuantizedTensor
from .formats.profile import BANK_ROW_NBYTES
from .formats.reader import Reader
from .sampling import Sample
from .save import save_file

Job = Callable[[], object]


@dataclass(frozen=True)
class Crew:
    """Threads that share the work. shares: for each thread the numbers of its blocks; run: a map that runs on all of them."""

    shares: Sequence[Sequence[int]]
    run: RunMap

    def each(self, work: Callable[[int], object]) -> tuple[Job, ...]:
        """For each thread a function that does `work` with its blocks, one after another."""
        return tuple(_each(work, share) for share in self.shares)


JobsFor = Callable[[Crew], tuple[Job, ...]]


@dataclass(frozen=True)
class Contender:
    """A way to store codes. nbytes: of the whole sample, all counted; None if it failed. library: that of a rival.

    encode, decode: from a crew to functions that are to run at the same time, and together do all blocks. None where there is
    nothing to time.
    """

    name: str
    settings: str
    library: str | None
    nbytes: int | None
    encode: JobsFor | None
    decode: JobsFor | None
    verified: bool = True


def our_contenders(sample: Sample) -> list[Contender]:
    """ans, ans to float16, huffman and raw as in a file; unpacking to a byte per code and copying as the limits.

    Raises VerificationError if one does not give back what it was given.
    """
    ans = _coded(sample, "ans")
    return [
        _coder(sample, "ans", ans),
        _to_float16(sample, ans),
        _coder(sample, "huffman", _coded(sample, "huffman")),
        _coder(sample, "raw", _coded(sample, "raw")),
        _unpacking(sample),
        _copying(sample),
    ]


def rival_contender(rival: Rival, sample: Sample) -> Contender:
    """A rival on the same blocks. One that fails, or does not give back what it was given, is not verified nor timed."""
    sources = [block.packed if rival.takes == "packed" else _codes(block).astype(np.int32) for block in sample.blocks]
    outs = [np.zeros_like(source) for source in sources]
    for source in sources:
        source.flags.writeable = False
    codec = rival.open()
    try:
        payloads = [codec.encode(source) for source in sources]
        decoded = [
            np.frombuffer(codec.decode(payload, out), out.dtype) for payload, out in zip(payloads, outs, strict=True)
        ]
        same = all(np.array_equal(back, source) for back, source in zip(decoded, sources, strict=True))
    except Exception:  # other people's code: whatever is wrong with it must not end the run
        same, payloads = False, []
    if not same:
        return Contender(rival.name, rival.settings, rival.library, None, None, None, verified=False)

    def encoding(share: Sequence[int]) -> Job:
        encode = rival.open().encode  # for one thread at a time
        return _each(lambda i: encode(sources[i]), share)

    def decoding(share: Sequence[int]) -> Job:
        decode = rival.open().decode
        return _each(lambda i: decode(payloads[i], outs[i]), share)

    return Contender(
        rival.name,
        rival.settings,
        rival.library,
        sum(len(payload) for payload in payloads),
        lambda crew: tuple(map(encoding, crew.shares)),
        lambda crew: tuple(map(decoding, crew.shares)),
    )


# ---------------------------------------------------------------------------------------------- our own
@dataclass(frozen=True)
class _Coded:
    """A sample in a file. planes, tensors: for each block its codes there, and the tensor that holds them once decoded."""

    nbytes: int
    planes: tuple[WholePlane, ...]
    tensors: tuple[QuantizedTensor, ...]

    def decoding(self, crew: Crew) -> tuple[Job]:
        """All chunks as one job that spreads itself over the crew, as when a model is loaded."""
        tasks = plan_tasks([self.planes[i] for share in crew.shares for i in share])
        return (lambda: run_tasks(tasks, crew.run),)


def _coded(sample: Sample, coder: Literal["ans", "huffman", "raw"]) -> _Coded:
    """Every block coded, written, decoded and compared."""
    names = [f"{i:08}" for i in range(len(sample.blocks))]
    # The map outlives the file; only Windows keeps a file that is mapped.
    with TemporaryDirectory(prefix="qzc-bench-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "sample.qzc"
        save_file(
            dict(zip(names, sample.blocks, strict=True)), path, coder=coder, chunk_codes=sample.chunk_codes, threads=1
        )
        reader = Reader(path)
    outs = [np.zeros_like(block.packed) for block in sample.blocks]
    planes = tuple(
        WholePlane(reader.coded_file, reader.chunks(name)[2], out) for name, out in zip(names, outs, strict=True)
    )
    tensors = tuple(replace(block, packed=out) for block, out in zip(sample.blocks, outs, strict=True))
    coded = _Coded(_stored_nbytes(reader, names), planes, tensors)
    run_tasks(plan_tasks(planes))
    if not all(np.array_equal(out, block.packed) for out, block in zip(outs, sample.blocks, strict=True)):
        raise VerificationError(f"{coder} does not give back what it was given; this is a bug in qzc")
    return coded


def _stored_nbytes(reader: Reader, names: Sequence[str]) -> int:
    """Payloads of the codes, their rows of the chunk index, and the tables that these name."""
    index = reader.coded_file.index
    firsts = [reader.chunks(name)[2] for name in names]
    rows = np.concatenate([index.rows[index.planes[first] : index.planes[first + 1]] for first in firsts])
    tables = {
        (CODERS[int(row["coder"])].bank, int(row["table"])) for row in rows if CODERS[int(row["coder"])].table_nbytes
    }
    return int(rows["nbytes"].sum()) + rows.nbytes + sum(BANK_ROW_NBYTES[bank] for bank, _ in tables)


def _coder(sample: Sample, choice: Literal["ans", "huffman", "raw"], coded: _Coded) -> Contender:
    def encode(i: int) -> object:
        block = sample.blocks[i]
        return encode_run(
            block.packed, prod(block.shape), block.args.storage_bits, choice, sample.chunk_codes, verify=False
        )

    settings = "checksum and range check included"
    return Contender(choice, settings, None, coded.nbytes, lambda crew: crew.each(encode), coded.decoding)


def _to_float16(sample: Sample, coded: _Coded) -> Contender:
    outs = [np.zeros(block.shape, np.float16) for block in sample.blocks]

    def decoding(share: Sequence[int]) -> Job:
        tasks = plan_tasks([coded.planes[i] for i in share])

        def job() -> None:
            run_tasks(tasks)
            for i in share:
                coded.tensors[i].dequantize(np.float16, outs[i])

        return job

    decoding(range(len(outs)))()
    for block, out in zip(sample.blocks, outs, strict=True):
        if not np.array_equal(out, block.dequantize(np.float32).astype(np.float16)):
            raise VerificationError("float16 weights differ from float32 ones rounded; this is a bug in qzc")
    text = "ans, then weights in float16"
    return Contender("ans-float16", text, None, coded.nbytes, None, lambda crew: tuple(map(decoding, crew.shares)))


def _unpacking(sample: Sample) -> Contender:
    blocks, codes = sample.blocks, [_codes(block) for block in sample.blocks]
    outs = [np.zeros_like(c) for c in codes]

    def unpack(i: int) -> Any:
        return unpack_codes(blocks[i].packed, outs[i].size, blocks[i].args.storage_bits, out=outs[i])

    def pack(i: int) -> Any:
        return pack_codes(codes[i], blocks[i].args.storage_bits)

    if not all(np.array_equal(unpack(i), codes[i]) and np.array_equal(pack(i), b.packed) for i, b in enumerate(blocks)):
        raise VerificationError("packed codes differ after unpacking; this is a bug in qzc")
    nbytes = sum(block.packed.size for block in blocks)
    text = "one byte per code, not coded"
    return Contender("unpack", text, None, nbytes, lambda crew: crew.each(pack), lambda crew: crew.each(unpack))


def _copying(sample: Sample) -> Contender:
    outs = [np.zeros_like(block.packed) for block in sample.blocks]

    def copy(i: int) -> None:
        np.copyto(outs[i], sample.blocks[i].packed)

    nbytes = sum(out.size for out in outs)
    return Contender("memcpy", "packed codes copied", None, nbytes, None, lambda crew: crew.each(copy))


def _each(function: Callable[[int], object], numbers: Sequence[int]) -> Job:
    def job() -> None:
        for i in numbers:
            function(i)

    return job


def _codes(block: QuantizedTensor) -> NDArray[np.uint8]:
    return unpack_codes(block.packed, prod(block.shape), block.args.storage_bits)
