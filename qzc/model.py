"""`qzc.open` and `qzc.load_file`: a `.qzc` checkpoint as a lazy mapping, or as a dictionary."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .base import BaseTensors
from .codec.decoding import Decoding, decode
from .codec.dequantize import dequantize_jobs, float_dtype
from .codec.errors import CorruptionError, InvalidArgumentError
from .codec.pages import empty, shared_pages
from .codec.rate_tensor import LevelTensor, level_jobs
from .codec.tensor import QuantizedTensor
from .formats.checkpoint import open_checkpoint
from .formats.dtypes import numpy_dtype
from .formats.reader import Reader, TensorInfo
from .threads import thread_map


class Model(Mapping[str, QuantizedTensor | LevelTensor | NDArray[Any]]):
    """An open checkpoint: one `.qzc` file, or a folder of them. Nothing is decoded until it is asked for.

    `model[name]` is a QuantizedTensor for a tensor that was quantized (its packed integer codes, scale, zero point), a
    LevelTensor for one that was quantized at a rate (its integers, scales of columns and rows) and an ndarray for any other. Use it as a context manager, or call `close()`.

    path: file or folder. threads: for decoding, 0 for all CPUs. base: the checkpoint that a delta was packed against. Raises FileAccessError, CorruptionError,
    UnsupportedError; after `close()` every method raises InvalidArgumentError.
    """

    def __init__(self, path: str | Path, threads: int = 0, base: str | Path | None = None) -> None:
        with ExitStack() as stack:
            self._run = stack.enter_context(thread_map(threads))
            tensors = None if base is None else stack.enter_context(BaseTensors(base)).tensor
            self._files = [stack.enter_context(Reader(file, tensors)) for file in open_checkpoint(path, "qzc").files]
            self._home: dict[str, Reader] = {}
            for file in self._files:
                for name in file.keys():
                    other = self._home.setdefault(name, file)
                    if other is not file:
                        raise CorruptionError(f"{file.path}: tensor {name!r} is in {other.path}, too")
            self._closed = False
            self._stack = stack.pop_all()

    def __getitem__(self, name: str) -> QuantizedTensor | LevelTensor | NDArray[Any]:
        self._check_open()
        if name not in self._home:
            raise KeyError(name)
        info = self.info(name)
        return self.levels(name) if info.rate else self.packed(name) if info.args else self.array(name)

    def __contains__(self, name: object) -> bool:
        return name in self._home  # that of Mapping would decode the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._home))

    def __len__(self) -> int:
        return len(self._home)

    def info(self, name: str) -> TensorInfo:
        """Name, dtype and shape before quantization, grid (`args`, None if not quantized), bytes in the file by part."""
        return self._file(name).info(name)

    def packed(self, name: str, rows: slice | None = None, out: NDArray[np.uint8] | None = None) -> QuantizedTensor:
        """The packed integer codes, scale, zero point and shape of a quantized tensor.

        rows: a range of dimension 0; only the chunks that hold it are read. out: uint8 [packed bytes], filled and used
        as the packed buffer. Raises InvalidArgumentError for a tensor that is not quantized, CorruptionError.
        """
        tensor: QuantizedTensor = decode([self._file(name).decoding(name, rows, out)], self._run)[0]
        return tensor

    def levels(self, name: str, rows: slice | None = None) -> LevelTensor:
        """The integers and scales of a tensor that was quantized at a rate.

        rows: a range of dimension 0; only the chunks that hold it are read. Raises InvalidArgumentError for any other
        tensor, CorruptionError.
        """
        return self._file(name).leveled(name, rows, self._run)

    def array(self, name: str, rows: slice | None = None) -> NDArray[Any]:
        """A tensor that is not quantized: fresh memory if it is entropy-coded, else a read-only view of the file.

        rows: a range of dimension 0; only the chunks that hold it are read. Dtypes unknown to numpy and ml_dtypes come as
        uint8 [bytes]; so do the codes of a foreign layout in their own dtype and shape, as the kernels for it take them.
        """
        return self._file(name).array(name, rows, self._run)

    def dequantize(
        self, name: str, dtype: DTypeLike | None = None, rows: slice | None = None, out: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """A tensor as floats: `(code - zero_point) * scale` or `(level * column_scale) * row_scale` in float32, rounded once
        to `dtype`.

        dtype: float32, float16, float64 or ml_dtypes.bfloat16; None for that of the tensor before quantization. Tensors
        that are not quantized are cast if they are floats, and given as they are with None. out: C-contiguous, of the
        result's shape and dtype.
        """
        info = self.info(name)
        if info.is_quantized:
            target = numpy_dtype(info.dtype) if dtype is None else float_dtype(dtype)
            tensor = self.levels(name, rows) if info.rate else self.packed(name, rows)
            return tensor.dequantize(target, out)
        array = self.array(name, rows)
        result = array if dtype is None or not _is_float(array.dtype) else array.astype(float_dtype(dtype))
        if out is None:
            return result
        if out.shape != result.shape or out.dtype != result.dtype:
            raise InvalidArgumentError(
                f"out must be {result.dtype}{list(result.shape)}, got {out.dtype}{list(out.shape)}"
            )
        out[...] = result
        return out

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of the checkpoint that was packed; of the first file, if there are several."""
        return dict(self.files[0].profile.source_metadata or {})

    @property
    def ties(self) -> dict[str, str]:
        """Second names of tensors: name -> the name under which the tensor is stored."""
        return {name: target for file in self.files for name, target in file.profile.ties.items()}

    @property
    def files(self) -> list[Reader]:
        """The readers of the files, for those who want the bytes."""
        self._check_open()
        return list(self._files)

    def load(self, dtype: DTypeLike | None = None, packed: bool = True) -> dict[str, Any]:
        """All tensors at once: one parallel job over all chunks of all tensors. See `load_file`."""
        target = None if dtype is None else float_dtype(dtype)
        ties = self.ties
        for file in self.files:
            file.prefetch()
        names = [name for name in self if name not in ties]
        infos = [self.info(name) for name in names]
        decodings = (_decoding(self._file(name), info) for name, info in zip(names, infos, strict=True))
        result: dict[str, Any] = {}
        jobs = []
        tensors = decode(decodings, self._run)
        with shared_pages():
            for name, info, tensor in zip(names, infos, tensors, strict=True):
                if not info.is_quantized:
                    array = tensor if packed or dtype is None or not _is_float(tensor.dtype) else tensor.astype(target)
                    result[name] = array if array.flags.writeable else array.copy()  # not a view of the file
                elif packed:
                    result[name] = tensor
                else:
                    result[name] = _empty(tensor.shape, float_dtype(target or numpy_dtype(tensor.dtype)))
                    jobs += (level_jobs if info.rate else dequantize_jobs)(tensor, result[name])
        for _ in self._run(_call, jobs):
            pass
        result.update((name, result[stored]) for name, stored in ties.items())
        return dict(sorted(result.items()))

    def close(self) -> None:
        """Close the files and end the threads. Idempotent. Arrays that were returned stay valid."""
        self._closed = True
        self._stack.close()
        self._files, self._home = [], {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise InvalidArgumentError("the checkpoint is closed")

    def _file(self, name: str) -> Reader:
        self._check_open()
        if name not in self._home:
            raise InvalidArgumentError(f"no tensor named {name!r}; `keys()` and `qzc ls` show the names")
        return self._home[name]


def open(path: str | Path, threads: int = 0, base: str | Path | None = None) -> Model:
    """Open a `.qzc` file or a folder of them. See `Model`."""
    return Model(path, threads, base)


def load_file(
    path: str | Path,
    dtype: DTypeLike | None = None,
    *,
    packed: bool = True,
    threads: int = 0,
    base: str | Path | None = None,
) -> dict[str, Any]:
    """Decode a whole `.qzc` checkpoint into memory.

    Returns name -> QuantizedTensor (packed integer codes, scale, zero point, shape) or LevelTensor (integers, scales of
    columns and rows) for quantized tensors and name -> ndarray for all others. With `packed=False` or a `dtype` (float32, float16, ml_dtypes.bfloat16) quantized tensors are
    dequantized to ndarrays of `dtype`, by default that of the checkpoint before quantization. Names that are tied give
    the same object. base: the checkpoint that a delta was packed against.

    Raises FileAccessError, CorruptionError, UnsupportedError; InvalidArgumentError for a missing or wrong base.
    """
    with Model(path, threads, base) as model:
        return model.load(dtype, packed and dtype is None)


def _decoding(file: Reader, info: TensorInfo) -> Decoding:
    if info.rate:
        return file.level_decoding(info.name)
    return file.decoding(info.name) if info.args else file.array_decoding(info.name)


def _is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f" or dtype.name.startswith(("bfloat", "float"))


def _call(job: Callable[[], None]) -> None:
    job()


def _empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    return empty(prod(shape) * dtype.itemsize).view(dtype).reshape(shape)
