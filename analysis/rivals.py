"""Other people's codecs behind one pair of functions, each used as its own documentation shows it at its fastest.

None is needed by anything that packs or reads files. Those that are not installed are left out; the extra `bench` brings
them all. Contexts are made once and reused, checksums are off, every codec keeps to one thread, and the result goes to the
caller's buffer where the library can do that.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Codec(NamedTuple):
    """A codec with its contexts; for one thread at a time.

    encode: from the data of a chunk to a payload. decode: from a payload to the data, into the buffer given with it (as large
    as the data) if the library can, else to one of its own; returns the one that was filled.
    """

    encode: Callable[[NDArray[Any]], Any]
    decode: Callable[[Any, NDArray[Any]], Any]


@dataclass(frozen=True)
class Rival:
    """A codec that may be installed.

    takes: packed codes (uint8) as they lie in memory, or one code per int32. package: its distribution, None for what comes
    with Python. open: imports it and makes its contexts; ImportError if it is not there.
    """

    name: str
    settings: str
    package: str | None
    takes: Literal["packed", "int32"]
    open: Callable[[], Codec]

    @property
    def library(self) -> str:
        """The library that does the work and its version: "zstandard 0.25.0"."""
        return (
            f"{self.package} {metadata.version(self.package)}" if self.package else f"zlib {zlib.ZLIB_RUNTIME_VERSION}"
        )


def installed(rivals: tuple[Rival, ...]) -> tuple[list[Rival], list[Rival]]:
    """Those that can be opened, and those that cannot."""
    there: list[Rival] = []
    missing: list[Rival] = []
    for rival in rivals:
        try:
            rival.open()
        except Exception:  # absent, not loadable on this machine, or of a version with another API
            missing.append(rival)
        else:
            there.append(rival)
    return there, missing


def _zstd(level: int) -> Codec:
    import zstandard

    # `decompress` into a fresh buffer is as fast as `stream_reader.readinto` a warm one, and faster than all else.
    decompressor = zstandard.ZstdDecompressor()
    compressor = zstandard.ZstdCompressor(level=level)
    return Codec(lambda data: compressor.compress(data.data), lambda payload, out: decompressor.decompress(payload))


def _gzip() -> Codec:
    return Codec(
        lambda data: zlib.compress(data, 6, wbits=31),
        lambda payload, out: zlib.decompress(payload, wbits=31, bufsize=out.nbytes),
    )


def _constriction() -> Codec:
    import constriction

    stack, categorical = constriction.stream.stack, constriction.stream.model.Categorical

    def encode(codes: NDArray[np.int32]) -> bytes:
        counts = np.bincount(codes)
        coder = stack.AnsCoder()
        coder.encode_reverse(codes, categorical(counts.astype(np.float32), perfect=False))
        # The library stores no model: one number for each symbol, as for our own tables, is the least that it takes.
        return _table(counts) + bytes(coder.get_compressed())

    def decode(payload: bytes, out: NDArray[np.int32]) -> NDArray[np.int32]:
        symbols = payload[0] + 1
        counts = np.frombuffer(payload, np.uint32, symbols, 4)
        words = np.frombuffer(payload, np.uint32, -1, 4 + 4 * symbols)
        decoded: NDArray[np.int32] = stack.AnsCoder(words).decode(
            categorical(counts.astype(np.float32), perfect=False), out.size
        )
        return decoded

    return Codec(encode, decode)


def _table(counts: NDArray[np.int64]) -> bytes:
    return bytes([counts.size - 1, 0, 0, 0]) + counts.astype(np.uint32).tobytes()


def _zipnn() -> Codec:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it brings along complains when it is imported
        from zipnn import ZipNN  # pyright: ignore[reportMissingImports]
    # As FP8: the one dtype of one byte, which is coded by Huffman as it is. Wider ones would split the bytes in turn, and
    # change the caller's buffer.
    codec = ZipNN(input_format="byte", bytearray_dtype="float8_e4m3fn", threads=1)
    return Codec(lambda data: codec.compress(memoryview(data)), lambda payload, out: codec.decompress(payload))


def _openzl() -> Codec:
    from openzl import ext  # pyright: ignore[reportMissingImports]

    disable = 2
    compressor, encoder, decoder = ext.Compressor(), ext.CCtx(), ext.DCtx()
    compressor.set_parameter(ext.CParam.FormatVersion, ext.MAX_FORMAT_VERSION)
    compressor.select_starting_graph(ext.graphs.Compress()(compressor))
    encoder.ref_compressor(compressor)
    for option, value in (("StickyParameters", 1), ("ContentChecksum", disable), ("CompressedChecksum", disable)):
        encoder.set_parameter(getattr(ext.CParam, option), value)
    for option, value in (("StickyParameters", 1), ("CheckContentChecksum", disable)):
        decoder.set_parameter(getattr(ext.DParam, option), value)
    return Codec(
        lambda data: encoder.compress([ext.Input(ext.Type.Serial, data)]),
        lambda payload, out: decoder.decompress(payload)[0].content.as_nparray(),
    )


def _blosc2() -> Codec:
    import blosc2  # pyright: ignore[reportMissingImports]

    blosc2.set_releasegil(True)  # off by default, and threads would wait for each other
    # The filters (shuffle is the default) find nothing in packed codes and cost half the speed.
    writing = blosc2.CParams(
        codec=blosc2.Codec.ZSTD,
        clevel=1,
        typesize=1,
        nthreads=1,
        filters=[blosc2.Filter.NOFILTER],
        filters_meta=[0],
    )
    reading = blosc2.DParams(nthreads=1)

    def decode(payload: bytes, out: NDArray[np.uint8]) -> NDArray[np.uint8]:
        blosc2.decompress2(payload, dst=out, dparams=reading)
        return out

    return Codec(lambda data: blosc2.compress2(data, cparams=writing), decode)


def _pcodec() -> Codec:
    from pcodec import ChunkConfig, DeltaSpec, ModeSpec, standalone  # pyright: ignore[reportMissingImports]

    # Told what it would otherwise spend time on finding out: single bytes, no trend. Lower levels have too few bins.
    config = ChunkConfig(
        compression_level=8, mode_spec=ModeSpec.classic(), delta_spec=DeltaSpec.no_op(), enable_8_bit=True
    )

    def decode(payload: bytes, out: NDArray[np.uint8]) -> NDArray[np.uint8]:
        standalone.simple_decompress_into(payload, out)
        return out

    return Codec(lambda data: standalone.simple_compress(data, config), decode)


RIVALS: tuple[Rival, ...] = (
    Rival("zstd-1-packed", "level 1", "zstandard", "packed", lambda: _zstd(1)),
    Rival("zstd-3-packed", "level 3", "zstandard", "packed", lambda: _zstd(3)),
    Rival("gzip-6-packed", "zlib, level 6", None, "packed", _gzip),
    Rival("constriction", "AnsCoder, categorical model of the chunk", "constriction", "int32", _constriction),
    Rival("zipnn", "packed bytes as FP8", "zipnn", "packed", _zipnn),
    Rival("openzl", "packed bytes, graph Compress", "openzl", "packed", _openzl),
    Rival("blosc2", "packed bytes, zstd level 1, no filter", "blosc2", "packed", _blosc2),
    Rival("pcodec", "packed bytes, level 8, no delta", "pcodec", "packed", _pcodec),
)
