"""Factors of the statistics of inputs while a rate is searched for: in memory as long as they are small, else in a file.

A search comes back to each of them a dozen times, and making one takes about as long as quantizing a square matrix.
"""

from __future__ import annotations

import mmap
import tempfile
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from .calibration import Calibration
from .codec.run_map import RunMap
from .formats.access import naming_os_errors, release_pages
from .quantize.hessian import Factor, Order, factorize

IN_MEMORY_NBYTES = 160 << 20


class Factors:
    """By input: tensors that read the same one share its factor. scratch: the folder of the file, which has no name and goes with the process."""

    def __init__(self, calibration: Calibration, order: Order, run: RunMap, scratch: Path) -> None:
        self._calibration, self._run, self._scratch = calibration, run, scratch
        self._order: Order = order
        self._known: dict[str, Factor | None] = {}
        self._maps: dict[str, mmap.mmap] = {}
        self._nbytes = 0

    def of(self, name: str) -> Factor | None:
        """Of the input that a tensor reads; None if there is no Gram matrix of it. Raises as `factorize`."""
        key = self._calibration.input_of(name) or name
        if key not in self._known:
            gram = self._calibration.gram(name)
            if gram is None:
                self._known[key] = None
            else:
                factor = factorize(gram, order=self._order, name=name, run=self._run, overwrite=True)
                del gram
                self._known[key] = self._kept(key, factor)
        return self._known[key]

    def release(self, name: str) -> None:
        """Give the memory of a factor that lies in the file back, until it is used again."""
        mapped = self._maps.get(self._calibration.input_of(name) or name)
        if mapped is not None:
            release_pages(mapped, 0, len(mapped))

    def _kept(self, key: str, factor: Factor) -> Factor:
        self._nbytes += factor.unit.nbytes
        if self._nbytes <= IN_MEMORY_NBYTES:
            return factor
        self._nbytes -= factor.unit.nbytes
        with naming_os_errors(self._scratch, "write"), tempfile.TemporaryFile(dir=self._scratch) as file:
            file.write(factor.unit)
            file.flush()
            # Kernels are compiled for factors that could be written to: a private map, of which nothing is written.
            self._maps[key] = mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return replace(factor, unit=np.frombuffer(mapped, np.float32).reshape(factor.unit.shape))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._known.clear()
        self._maps.clear()
