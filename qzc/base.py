"""The tensors of the checkpoint that a delta refers to, wherever they lie."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from .codec.errors import InvalidArgumentError
from .formats.checkpoint import is_qzc, open_checkpoint
from .formats.reader import Reader
from .formats.safetensors import SafetensorsFile


class BaseTensors:
    """A checkpoint by tensors: safetensors, or `.qzc` whose tensors are not quantized; a file or a folder.

    Raises as `open_checkpoint`, and InvalidArgumentError for a tensor that it does not have.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._home: dict[str, SafetensorsFile | Reader] = {}
        with ExitStack() as stack:
            for file in open_checkpoint(path).files:
                source: SafetensorsFile | Reader = Reader(file) if is_qzc(file) else SafetensorsFile(file)
                stack.enter_context(source)
                self._home.update(dict.fromkeys(source.keys(), source))
            self._stack = stack.pop_all()

    def __contains__(self, name: str) -> bool:
        return name in self._home

    def nbytes(self, name: str) -> int | None:
        """Bytes of a tensor; None if there is none, or only a quantized one."""
        source = self._home.get(name)
        if source is None:
            return None
        if isinstance(source, SafetensorsFile):
            return source.info(name).nbytes
        return None if source.info(name).is_quantized else source.tensor_nbytes(name)

    def tensor(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a tensor, uint8 [n]."""
        if name not in self._home:
            raise InvalidArgumentError(f"{self.path}: the base has no tensor named {name!r}")
        return self._home[name].raw(name)

    def close(self) -> None:
        """Close the files."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
