"""What takes part in `qzc.bench`: our coders on the path that files take, the limits they run against, and rivals.

Whoever takes part has coded the sample and decoded it again when it comes out of here; the results are in warm buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .analysis.rivals import Rival
from .codec.chunks import EncodedChunk, decode_chunk, encode_run
from .codec.code_range import range_problem
from .codec.dequantize import dequantize
from .codec.errors import CorruptionError, VerificationError
from .codec.packing import pack_codes, unpack_codes
from .codec.tensor import QuantizationArgs, QuantizedTensor, packed_nbytes
from .measure import coded_size
from .sampling import Sample

Job = Callable[[], object]
JobFor = Callable[[Sequence[int]], Job]


@dataclass(frozen=True)
class Contender:
    """A way to store codes. nbytes: of the whole sample, all counted; None if it failed.

    encode, decode: from the numbers of some blocks to a function that does them, one after another; each such function has
    contexts of its own, so that several can run at once. None where there is nothing to time.
    """

    name: str
    settings: str
    version: str | None
    nbytes: int | None
    encode: JobFor | None
    decode: JobFor | None
    verified: bool = True


def our_contenders(sample: Sample) -> list[Contender]:
    """ans, ans to float16, huffman and raw as in a file; unpacking to a byte per code and copying as the limits.

    Raises VerificationError if one does not give back what it was given.
    """
    ans = _coded_blocks(sample, "ans")
    return [
        _coder(sample, "ans", ans, "checksum and range check included"),
        _to_float16(sample, ans),
        _coder(sample, "huffman", _coded_blocks(sample, "huffman"), "checksum and range check included"),
        _coder(sample, "raw", _coded_blocks(sample, "raw"), "checksum and range check included"),
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
        decoded = [np.frombuffer(codec.decode(payload, out), out.dtype) for payload, out in zip(payloads, outs, strict=True)]
        same = all(np.array_equal(back, source) for back, source in zip(decoded, sources, strict=True))
    except Exception:  # other people's code: whatever is wrong with it must not end the run
        same, payloads = False, []
    if not same:
        return Contender(rival.name, rival.settings, rival.version, None, None, None, verified=False)

    def encode(numbers: Sequence[int]) -> Job:
        function = rival.open().encode
        return _each(lambda i: function(sources[i]), numbers)

    def decode(numbers: Sequence[int]) -> Job:
        function = rival.open().decode
        return _each(lambda i: function(payloads[i], outs[i]), numbers)

    nbytes = sum(len(payload) for payload in payloads)
    return Contender(rival.name, rival.settings, rival.version, nbytes, encode, decode)


# ---------------------------------------------------------------------------------------------- our own
@dataclass(frozen=True)
class _CodedBlock:
    """The chunks of a block, each with the place in `out` (uint8 [packed bytes of the block]) that it decodes to."""

    chunks: tuple[EncodedChunk, ...]
    places: tuple[NDArray[np.uint8], ...]
    out: NDArray[np.uint8]
    args: QuantizationArgs

    def decode(self) -> None:
        """As a reader does: checksum, coder, range check."""
        for chunk, place in zip(self.chunks, self.places, strict=True):
            decode_chunk(chunk.coder, chunk.streams, chunk.checksum, chunk.payload, chunk.table, place)
            problem = range_problem(place, chunk.codes, self.args)
            if problem:
                raise CorruptionError(problem)


def _coded_blocks(sample: Sample, choice: str) -> list[_CodedBlock]:
    """Every block coded, decoded and compared."""
    blocks: list[_CodedBlock] = []
    for block in sample.blocks:
        chunks = tuple(_encode(block, choice, sample.chunk_codes))
        out = np.zeros_like(block.packed)
        coded = _CodedBlock(chunks, tuple(_places(chunks, out, block.args.storage_bits)), out, block.args)
        coded.decode()
        if not np.array_equal(out, block.packed):
            raise VerificationError(f"{choice} does not give back what it was given; this is a bug in qzc")
        blocks.append(coded)
    return blocks


def _encode(block: QuantizedTensor, choice: str, chunk_codes: int) -> list[EncodedChunk]:
    return encode_run(
        block.packed, prod(block.shape), block.args.storage_bits, choice, chunk_codes, verify=False
    )


def _places(chunks: Sequence[EncodedChunk], out: NDArray[np.uint8], width: int) -> Iterator[NDArray[np.uint8]]:
    at = 0
    for chunk in chunks:
        nbytes = packed_nbytes(chunk.codes, width)
        yield out[at : at + nbytes]
        at += nbytes


def _nbytes(blocks: Sequence[_CodedBlock]) -> int:
    """Payloads, the rows of the chunk index, and the tables."""
    sizes = [coded_size(block.chunks) for block in blocks]
    return sum(size.payload + size.index + size.tables for size in sizes)


def _coder(sample: Sample, choice: str, coded: Sequence[_CodedBlock], settings: str) -> Contender:
    def encode(numbers: Sequence[int]) -> Job:
        return _each(lambda i: _encode(sample.blocks[i], choice, sample.chunk_codes), numbers)

    return Contender(choice, settings, None, _nbytes(coded), encode, lambda numbers: _each(_decoding(coded), numbers))


def _to_float16(sample: Sample, coded: Sequence[_CodedBlock]) -> Contender:
    tensors = [replace(block, packed=c.out) for block, c in zip(sample.blocks, coded, strict=True)]
    outs = [np.zeros(block.shape, np.float16) for block in sample.blocks]

    def dequantized(i: int) -> None:
        coded[i].decode()
        dequantize(tensors[i], np.float16, out=outs[i])

    for i, block in enumerate(sample.blocks):
        dequantized(i)
        if not np.array_equal(outs[i], dequantize(block, np.float32).astype(np.float16)):
            raise VerificationError("float16 weights differ from float32 ones rounded; this is a bug in qzc")
    return Contender(
        "ans-float16", "ans, then weights in float16", None, _nbytes(coded), None, lambda n: _each(dequantized, n)
    )


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
    return Contender("unpack", text, None, nbytes, lambda n: _each(pack, n), lambda n: _each(unpack, n))


def _copying(sample: Sample) -> Contender:
    outs = [np.zeros_like(block.packed) for block in sample.blocks]

    def copy(i: int) -> None:
        np.copyto(outs[i], sample.blocks[i].packed)

    nbytes = sum(out.size for out in outs)
    return Contender("memcpy", "packed codes copied", None, nbytes, None, lambda n: _each(copy, n))


def _decoding(coded: Sequence[_CodedBlock]) -> Callable[[int], object]:
    return lambda i: coded[i].decode()


def _each(function: Callable[[int], object], numbers: Sequence[int]) -> Job:
    def job() -> None:
        for i in numbers:
            function(i)

    return job


def _codes(block: QuantizedTensor) -> NDArray[np.uint8]:
    return unpack_codes(block.packed, prod(block.shape), block.args.storage_bits)
