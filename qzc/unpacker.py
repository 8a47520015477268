"""`qzc.unpack`: a `.qzc` checkpoint back to plain safetensors, as floats or as packed integers and scales."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from .base import BaseTensors
from .codec.errors import InvalidArgumentError, VerificationError
from .codec.run_map import RunMap
from .codec.tensor import matrix_shape
from .formats.atomic import atomic_folder, atomic_writer
from .formats.checkpoint import Checkpoint, is_qzc, open_checkpoint
from .formats.coded_tensors import Base
from .formats.dtypes import file_bytes, numpy_dtype, tensor_nbytes
from .formats.profile import SCALE_DTYPES
from .formats.reader import Reader
from .formats.safetensors import library_order, place, write_safetensors_to
from .places import SOURCE_INDEX, check_output, copy_side_files, unpacked_index_name, unpacked_name, unpacked_output
from .progress import Progress
from .threads import thread_map

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}


@dataclass(frozen=True)
class UnpackReport:
    """What `unpack` wrote: whole files, in bytes."""

    output: Path
    tensors: int
    source_nbytes: int
    nbytes: int


@dataclass(frozen=True)
class _Output:
    """A tensor to be written, the tensor of the `.qzc` file that it comes from, and how to get its bytes."""

    name: str
    origin: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    data: Callable[[], NDArray[np.uint8]]


def unpack(
    source: str | Path,
    output: str | Path | None = None,
    *,
    dtype: Literal["original", "float32", "float16", "bfloat16", "float64"] = "original",
    format: Literal["float", "packed"] = "float",
    base: str | Path | None = None,
    threads: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> UnpackReport:
    """Write a `.qzc` file or folder as safetensors; one that was packed without loss as the very files it was packed from.

    format "float": quantized tensors are dequantized to `dtype` ("original": that before quantization); all others are
    given back bit for bit. format "packed": for a quantized tensor NAME the file has `NAME.packed` (U8: per row, or flat
    where rows do not end on whole bytes), `NAME.scale`, `NAME.zero_point` (U8, asymmetric grids only) and `NAME.shape`
    (I64), and its metadata has `qzc.grids` as JSON; for one that was quantized at a rate `NAME.levels` (I8 or I16, rows x
    columns), `NAME.column_scale`, `NAME.row_scale` (F32) and `NAME.shape`. output: by default `model.qzc` -> `model.safetensors`. It appears
    whole or not at all. base: the checkpoint that a delta was packed against. Raises as `load_file`, and VerificationError if a
    file does not come out as it was, InvalidArgumentError for an unknown dtype or format.
    """
    if dtype not in ("original", *DTYPES):
        raise InvalidArgumentError(f"unknown dtype {dtype!r}; choose original, {', '.join(DTYPES)}")
    if format not in ("float", "packed"):
        raise InvalidArgumentError(f"unknown format {format!r}; choose float or packed")
    checkpoint = open_checkpoint(source, "qzc")
    for path in checkpoint.files:
        if not is_qzc(path):
            with Reader(path):  # says what is wrong with it
                pass
    with thread_map(threads) as run, ExitStack() as stack:
        tensors = None if base is None else stack.enter_context(BaseTensors(base)).tensor
        job = _Unpacking(checkpoint, dtype, format, tensors, progress, run)
        target = Path(output) if output is not None else unpacked_output(checkpoint, job.kind())
        check_output(checkpoint, target)
        return job.write(target, overwrite)


class _Unpacking:
    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: str,
        format: str,
        base: Base | None,
        progress: Progress | None,
        run: RunMap,
    ) -> None:
        self._checkpoint, self._dtype, self._format, self._base, self._run = checkpoint, dtype, format, base, run
        self._progress = progress or (lambda doing, done, total: None)
        self._done, self._total, self._tensors = 0, sum(path.stat().st_size for path in checkpoint.files), 0

    def kind(self) -> str:
        """The format of the files that will come out."""
        with Reader(self._checkpoint.files[0]) as reader:
            source = reader.profile.source_file
        return source.kind if source and self._dtype == "original" else "safetensors"

    def write(self, target: Path, overwrite: bool) -> UnpackReport:
        checkpoint, nbytes = self._checkpoint, 0
        if not checkpoint.is_folder:
            with atomic_writer(target, overwrite) as stream:
                nbytes = self._write_file(checkpoint.files[0], stream)
        else:
            with atomic_folder(target, overwrite) as folder:
                for path in checkpoint.files:
                    with atomic_writer(folder / unpacked_name(path.name)) as stream:
                        nbytes += self._write_file(path, stream)
                copy_side_files(checkpoint, folder)
                self._write_index(folder)
        return UnpackReport(target, self._tensors, self._total, nbytes)

    def _write_index(self, folder: Path) -> None:
        index, index_file = self._checkpoint.index, self._checkpoint.index_file
        if index is None or index_file is None:
            return
        original = index.get(SOURCE_INDEX)
        if isinstance(original, str) and self._dtype == "original":
            with atomic_writer(folder / unpacked_index_name(index_file.name)) as stream:
                stream.write(original.encode())
            return
        weight_map: dict[str, str] = {}
        nbytes = 0
        for path in self._checkpoint.files:
            with Reader(path) as reader:
                for output in self._outputs(reader):
                    weight_map[output.name] = unpacked_name(path.name)
                    nbytes += output.nbytes
        metadata = index.get("metadata")
        total = {**(metadata if isinstance(metadata, dict) else {}), "total_size": nbytes}
        kept = {key: value for key, value in index.items() if key != SOURCE_INDEX}
        text = json.dumps({**kept, "metadata": total, "weight_map": dict(sorted(weight_map.items()))}, indent=2)
        with atomic_writer(folder / unpacked_index_name(index_file.name)) as stream:
            stream.write(text.encode() + b"\n")

    def _write_file(self, path: Path, stream: BinaryIO) -> int:
        with Reader(path, self._base) as reader:
            if reader.profile.source_file and self._dtype == "original":
                return self._restore(reader, stream)
            outputs: dict[str, _Output] = {}
            for output in self._outputs(reader):
                if outputs.setdefault(output.name, output) is not output:
                    raise InvalidArgumentError(
                        f"{path}: two tensors would have the name {output.name!r}; unpack to floats"
                    )
            order = library_order((o.name, o.dtype) for o in outputs.values())
            members = place((o.name, o.dtype, o.shape, o.nbytes) for o in map(outputs.__getitem__, order))
            metadata = dict(reader.profile.source_metadata or {})
            if self._format == "packed":
                metadata["qzc.grids"] = reader.profile.grids_by_name()
            self._tensors += len(order)
            pieces = self._pieces(reader, [outputs[name] for name in order])
            return write_safetensors_to(stream, members, pieces, metadata or None)

    def _restore(self, reader: Reader, stream: BinaryIO) -> int:
        """The very file that was packed: its tensors at their places, and between them what else it had."""
        source = reader.profile.source_file
        assert source is not None
        rest, offsets = reader.source_file()
        hasher, at, used = xxhash.xxh3_64(), 0, 0

        def write(data: NDArray[np.uint8] | bytes) -> int:
            stream.write(data)
            hasher.update(data)
            return len(data)

        begun = self._done
        for name in sorted(offsets, key=lambda name: (offsets[name], reader.tensor_nbytes(name))):
            gap = offsets[name] - at
            at += write(rest[used : used + gap])
            used += gap
            at += write(reader.raw(name, self._run))
            reader.release(name)
            self._done = begun + reader.file_size * at // max(1, source.nbytes)
            self._progress(name, self._done, self._total)
        at += write(rest[used:])
        self._tensors += len(offsets)
        if at != source.nbytes or hasher.intdigest() != source.xxh3:
            raise VerificationError(f"{reader.path}: the file does not come out as it was when it was packed")
        return at

    def _pieces(self, reader: Reader, outputs: list[_Output]) -> Iterator[NDArray[np.uint8]]:
        total = sum(o.nbytes for o in outputs) or 1
        begun, written = self._done, 0
        for output in outputs:
            yield output.data()
            reader.release(output.origin)
            written += output.nbytes
            self._done = begun + reader.file_size * written // total
            self._progress(output.name, self._done, self._total)

    def _outputs(self, reader: Reader) -> Iterator[_Output]:
        for name in reader.keys():
            info = reader.info(name)
            if not info.is_quantized:
                nbytes = reader.tensor_nbytes(name)
                yield _Output(name, name, info.dtype, info.shape, nbytes, partial(reader.raw, name, self._run))
            elif self._format == "packed":
                yield from (self._level_outputs if info.rate else self._packed_outputs)(reader, name)
            else:
                dtype = info.dtype if self._dtype == "original" else DTYPES[self._dtype]
                nbytes = tensor_nbytes(dtype, info.shape)
                yield _Output(name, name, dtype, info.shape, nbytes, partial(self._floats, reader, name, dtype))

    def _floats(self, reader: Reader, name: str, dtype: str) -> NDArray[np.uint8]:
        tensor = (reader.leveled if reader.info(name).rate else reader.quantized)(name, run=self._run)
        return file_bytes(tensor.dequantize(numpy_dtype(dtype)))

    def _level_outputs(self, reader: Reader, name: str) -> Iterator[_Output]:
        info = reader.info(name)
        assert info.rate is not None
        rows, columns = matrix_shape(info.shape)
        dtype = "I16" if info.rate.wide else "I8"

        def levels() -> NDArray[np.uint8]:
            return file_bytes(reader.leveled(name, run=self._run).levels)

        def scale(what: str) -> NDArray[np.uint8]:
            return file_bytes(getattr(reader.leveled(name, run=self._run), what))

        yield _Output(f"{name}.levels", name, dtype, (rows, columns), tensor_nbytes(dtype, (rows, columns)), levels)
        for what, length in (("column_scale", columns), ("row_scale", rows)):
            yield _Output(f"{name}.{what}", name, "F32", (length,), 4 * length, partial(scale, what))
        yield _shape_output(name, info.shape)

    def _packed_outputs(self, reader: Reader, name: str) -> Iterator[_Output]:
        info = reader.info(name)
        args = info.args
        assert args is not None
        rows, columns = matrix_shape(info.shape)
        nbytes = -(-rows * columns * args.storage_bits // 8)
        by_rows = columns * args.storage_bits % 8 == 0
        shape = (rows, columns * args.storage_bits // 8) if by_rows else (nbytes,)
        scale_shape = args.scale_shape(info.shape)
        scale_dtype = SCALE_DTYPES[args.scale_dtype]

        def packed() -> NDArray[np.uint8]:
            return reader.quantized(name, run=self._run).packed

        def scale() -> NDArray[np.uint8]:
            return file_bytes(reader.quantized(name, run=self._run).scale)

        def zero_point() -> NDArray[Any]:
            values = reader.quantized(name, run=self._run).zero_point
            assert values is not None
            return values.reshape(-1)

        yield _Output(f"{name}.packed", name, "U8", shape, nbytes, packed)
        scale_nbytes = tensor_nbytes(scale_dtype, scale_shape)
        yield _Output(f"{name}.scale", name, scale_dtype, scale_shape, scale_nbytes, scale)
        if not args.symmetric:
            yield _Output(f"{name}.zero_point", name, "U8", scale_shape, tensor_nbytes("U8", scale_shape), zero_point)
        yield _shape_output(name, info.shape)


def _shape_output(name: str, shape: tuple[int, ...]) -> _Output:
    array = np.array(shape, "<i8")
    return _Output(f"{name}.shape", name, "I64", (len(shape),), 8 * len(shape), lambda: file_bytes(array))
