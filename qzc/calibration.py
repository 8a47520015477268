"""Calibration statistics: the file that `qzc calibrate` writes, read with NumPy alone, and what ties it to a model."""

from __future__ import annotations

import json
import math
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import numpy as np
import xxhash
from numpy.typing import NDArray

from .codec.errors import CorruptionError, InvalidArgumentError, UnsupportedError
from .formats.checkpoint import Checkpoint, open_checkpoint
from .formats.safetensors import SafetensorsFile, pieces_of
from .progress import Progress
from .sources import SourceTensors, open_source

FORMAT = "qzc-calibration"
VERSION = "1"
COUNTS = ("tokens", "windows", "window_length")


class Calibration:
    """Statistics of the inputs X [tokens, columns] of linear layers, by the name of the tensor that holds their weights.

    Tensors that read the same input (query, key and value; gate and up) share its statistics. The arrays that the
    methods give are fresh. Use it as a context manager, or call `close()`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = SafetensorsFile(path)
        try:
            self.metadata = self._checked_metadata()
        except BaseException:
            self._file.close()
            raise

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a file that `qzc calibrate` wrote.

        Raises FileAccessError, CorruptionError, InvalidArgumentError (another kind of file), UnsupportedError (another
        version of the format).
        """
        return cls(path)

    @property
    def tensors(self) -> list[str]:
        """The names of all tensors with statistics, sorted."""
        return sorted(self._inputs)

    @property
    def model_hash(self) -> str:
        """`fingerprint` of the checkpoint that the statistics were taken on."""
        return self.metadata["model_hash"]

    @property
    def text_hash(self) -> str:
        """XXH3-64 of the token ids, uint32 little-endian, window after window: 16 hexadecimal digits."""
        return self.metadata["text_hash"]

    def input_of(self, name: str) -> str | None:
        """The input that a tensor reads: the same text for tensors that share statistics. None without statistics."""
        found = self._inputs.get(name)
        return found[0] if found else None

    def tokens(self, name: str) -> int:
        """How many input vectors the statistics of a tensor are a mean over; 0 without statistics."""
        found = self._inputs.get(name)
        return found[1] if found else 0

    def gram(self, name: str) -> NDArray[np.float64] | None:
        """X'X / tokens, float64 [columns, columns], symmetric. None if it was not recorded."""
        key = self.input_of(name)
        if key is None or f"{key}.gram" not in self._file.header.members:
            return None
        count = self._count(key)
        matrix = symmetric(self._array(f"{key}.gram", count * (count + 1) // 2), count)
        self._file.release(f"{key}.gram")
        return matrix

    def power(self, name: str) -> NDArray[np.float64] | None:
        """The mean square of each input, float64 [columns]: the diagonal of the Gram matrix. None without statistics."""
        return self._vector(name, "power")

    def mean(self, name: str) -> NDArray[np.float64] | None:
        """The mean of each input, float64 [columns]. None without statistics."""
        return self._vector(name, "mean")

    @property
    def has_sensitivities(self) -> bool:
        """Whether it was measured what errors in the tensors cost the model."""
        return bool(self._sensitivities)

    def sensitivity(self, name: str) -> float | None:
        """What a squared error of one costs the model: KL divergence in nats, or 1 - cosine of embeddings.

        The squared error is tr(E G E') of the error E [rows, columns] of a tensor with the Gram matrix G: what it adds to
        a mean token's outputs. Without the matrix G has the power of the inputs in its diagonal; without statistics it is
        the identity. None if it was not measured, or if there was no harm to measure.
        """
        return self._sensitivities.get(name)

    def check_model(self, model: str | Path | Checkpoint, progress: Progress | None = None) -> None:
        """Raise InvalidArgumentError unless the statistics were taken on this checkpoint, which is read for it.

        Also raises what reading the checkpoint raises.
        """
        found = fingerprint(model, progress)
        if found != self.model_hash:
            shown = model.root if isinstance(model, Checkpoint) else model
            raise InvalidArgumentError(
                f"{self.path}: these statistics were taken on another model (fingerprint {self.model_hash}, that of "
                f"{shown} is {found}); run `qzc calibrate` on {shown}"
            )

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _checked_metadata(self) -> dict[str, str]:
        metadata = dict(self._file.metadata)
        if metadata.get("format") != FORMAT:
            raise InvalidArgumentError(f"{self.path}: not a file of statistics; `qzc calibrate` writes one")
        if metadata.get("version") != VERSION:
            raise UnsupportedError(
                f"{self.path}: statistics of version {metadata.get('version')!r}; this qzc reads {VERSION!r}"
            )
        for key in ("model_hash", "text_hash", *COUNTS):
            if key not in metadata or (key in COUNTS and not metadata[key].isdecimal()):
                self._fail(f"the metadata {key!r} is missing or wrong")
        try:
            listed = json.loads(metadata["tensors"])
        except (KeyError, ValueError, RecursionError):
            self._fail("the list of tensors is missing or not JSON")
        if not isinstance(listed, dict):
            self._fail("the list of tensors is not a JSON object")
        self._inputs: dict[str, tuple[str, int]] = {}
        for name, entry in listed.items():
            match entry:
                case [str(key), int(tokens)] if tokens > 0 and f"{key}.power" in self._file.header.members:
                    self._inputs[name] = (key, tokens)
                case _:
                    self._fail(f"there are no statistics behind the entry of tensor {name!r}")
        self._sensitivities = self._checked_sensitivities(metadata.get("sensitivities", "{}"))
        return metadata

    def _checked_sensitivities(self, text: str) -> dict[str, float]:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            self._fail("the sensitivities are not JSON")
        if not isinstance(found, dict):
            self._fail("the sensitivities are not a JSON object")
        for name, value in found.items():
            if not isinstance(value, float) or not 0 < value < math.inf:
                self._fail(f"the sensitivity of tensor {name!r} is {value!r}")
        return found

    def _vector(self, name: str, what: str) -> NDArray[np.float64] | None:
        key = self.input_of(name)
        return None if key is None else self._array(f"{key}.{what}", self._count(key)).astype(np.float64)

    def _count(self, key: str) -> int:
        shape = self._file.info(f"{key}.power").shape
        if len(shape) != 1:
            self._fail(f"the shape of {key}.power is {list(shape)}")
        return shape[0]

    def _array(self, member: str, count: int) -> NDArray[Any]:
        if member not in self._file.header.members:
            self._fail(f"{member} is missing")
        info = self._file.info(member)
        if info.dtype != "F32" or info.shape != (count,):
            self._fail(f"{member} is {info.dtype}{list(info.shape)}, not F32[{count}]")
        return self._file.array(member)

    def _fail(self, what: str) -> NoReturn:
        raise CorruptionError(f"{self.path}: {what}")


def symmetric(triangle: NDArray[Any], count: int) -> NDArray[np.float64]:
    """float64 [count, count] from its lower triangle, row after row."""
    matrix = np.empty((count, count), np.float64)
    for row in range(count):
        begin = row * (row + 1) // 2
        matrix[row, : row + 1] = triangle[begin : begin + row + 1]
        matrix[:row, row] = matrix[row, :row]
    return matrix


def fingerprint(model: str | Path | Checkpoint, progress: Progress | None = None) -> str:
    """What tells one checkpoint from another: 16 hexadecimal digits, the same however it is cut into files.

    XXH3-64 over, for each tensor in the order of names (by code points), the UTF-8 text `["name","dtype",[shape]]` (compact
    JSON) and then the XXH3-64 of the tensor's bytes, 8 bytes little-endian. Reads all weights. Metadata does not count.

    Raises as `open_checkpoint` and the readers of its files.
    """
    checkpoint = model if isinstance(model, Checkpoint) else open_checkpoint(model, "safetensors")
    whole = xxhash.xxh3_64()
    with ExitStack() as stack:
        files = [stack.enter_context(open_source(path)) for path in checkpoint.files]
        home = {name: file for file in files for name in file.keys()}
        total, done = sum(file.info(name).nbytes for name, file in home.items()), 0
        for name in sorted(home):
            info = home[name].info(name)
            if progress:
                progress(name, done, total)
            entry = json.dumps([name, info.dtype, list(info.shape)], ensure_ascii=False, separators=(",", ":"))
            whole.update(entry.encode() + _digest(home[name], name).to_bytes(8, "little"))
            done += info.nbytes
        if progress:
            progress("", total, total)
    return whole.hexdigest()


def _digest(file: SourceTensors, name: str) -> int:
    tensor = xxhash.xxh3_64()
    for piece in pieces_of(file.raw(name)):
        tensor.update(piece)
    file.release(name)
    return tensor.intdigest()
