"""Sums over the inputs of linear layers, collected by hooks while a model runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..codec.errors import InvalidArgumentError
from .model import import_hf

RECENT = 16  # inputs that are kept to be compared with: layers that share one follow each other


class Stop(Exception):
    """Raised by a hook where the rest of the forward pass is of no use."""


@dataclass(frozen=True, eq=False)
class InputStatistics:
    """Statistics of one input X [tokens, columns]. tensors: those that are multiplied by it.

    triangle: the lower triangle of X'X / tokens, row after row, float32 [columns (columns + 1) / 2], or None. power, mean:
    float32 [columns], of the squares and of the values.
    """

    tensors: tuple[str, ...]
    tokens: int
    triangle: NDArray[np.float32] | None
    power: NDArray[np.float32]
    mean: NDArray[np.float32]


@dataclass(eq=False)
class _Sums:
    tokens: int
    total: Any
    squares: Any  # X'X, or its diagonal alone

    def add(self, other: _Sums) -> None:
        self.tokens += other.tokens
        self.total += other.total
        self.squares += other.squares

    def copy(self) -> _Sums:
        return _Sums(self.tokens, self.total.clone(), self.squares.clone())


class InputSums:
    """Collects sums for `modules`, linear layers by the name of the tensor that holds their weights.

    Layers share their sums as long as they are called with one and the same tensor: known by its memory, not by names.
    grams: X'X; else only its diagonal. last: the layer after whose input the forward pass is of no more use, if any.
    """

    def __init__(self, modules: Mapping[str, Any], grams: bool, last: str | None = None) -> None:
        self._torch, _ = import_hf()
        self._modules, self._grams, self._last = dict(modules), grams, last
        self._sums: dict[str, _Sums] = {}
        self._added: dict[str, _Sums] = {}  # of this forward pass, by layer: the same object where it is shared
        self._recent: deque[tuple[Any, int, _Sums]] = deque(maxlen=RECENT)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within this context every forward pass counts; each must be followed by `end_pass`."""
        hooks = [m.register_forward_pre_hook(partial(self._see, name)) for name, m in self._modules.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def end_pass(self) -> None:
        """Add what the last forward pass brought."""
        groups: dict[tuple[int, int | None], list[str]] = {}
        for name, added in self._added.items():
            before = self._sums.get(name)
            groups.setdefault((id(added), None if before is None else id(before)), []).append(name)
        taken: set[int] = set()
        for names in groups.values():
            added, sums = self._added[names[0]], self._sums.get(names[0])
            if sums is None:
                sums = added.copy()
            else:
                # Layers that have parted: one group goes on with the sums they had together, the others with copies.
                others = any(other is sums and name not in names for name, other in self._sums.items())
                if id(sums) in taken or others:
                    sums = sums.copy()
                taken.add(id(sums))
                sums.add(added)
            self._sums.update(dict.fromkeys(names, sums))
        self._added.clear()
        self._recent.clear()

    def results(self) -> list[InputStatistics]:
        """What was collected, by input. Layers that were never called are not in it.

        Raises InvalidArgumentError for inputs that are NaN or infinite.
        """
        groups: dict[int, list[str]] = {}
        for name in sorted(self._sums):
            groups.setdefault(id(self._sums[name]), []).append(name)
        return [self._result(names) for names in groups.values()]

    def _result(self, names: list[str]) -> InputStatistics:
        sums = self._sums[names[0]]
        mean = (sums.total / sums.tokens).float().cpu().numpy()
        squares = (sums.squares / sums.tokens).float().cpu().numpy()
        if not (np.isfinite(mean).all() and np.isfinite(squares).all()):
            raise InvalidArgumentError(f"the inputs of {names[0]} are NaN or infinite; does the model run in float32?")
        if not self._grams:
            return InputStatistics(tuple(names), sums.tokens, None, squares, mean)
        triangle = np.concatenate([squares[row, : row + 1] for row in range(len(squares))])
        return InputStatistics(tuple(names), sums.tokens, triangle, np.diagonal(squares).copy(), mean)

    def _see(self, name: str, module: Any, arguments: tuple[Any, ...]) -> None:
        x = arguments[0]
        sums = next((sums for seen, version, sums in self._recent if _same(seen, version, x)), None)
        if sums is None and x.numel():
            sums = self._sums_of(x)
            self._recent.append((x, x._version, sums))  # held, so that its memory is not used again for another input
        if sums is not None:
            if name in self._added:  # called more than once in a pass
                again, sums = sums, self._added[name].copy()
                sums.add(again)
            self._added[name] = sums
        if name == self._last:
            raise Stop

    def _sums_of(self, x: Any) -> _Sums:
        """Products in float32, sums over forward passes in float64."""
        rows = x.detach().reshape(-1, x.shape[-1]).float()
        wide = self._torch.float64
        squares = (rows.T @ rows).to(wide) if self._grams else (rows * rows).sum(0, dtype=wide)
        return _Sums(len(rows), rows.sum(0, dtype=wide), squares)


def _same(seen: Any, version: int, x: Any) -> bool:
    """Whether `x` is the memory of `seen`, and nothing has been written to it since. Views of one tensor share a version."""
    same = seen.data_ptr() == x.data_ptr() and seen.shape == x.shape and seen.stride() == x.stride()
    return bool(same and seen.dtype == x.dtype and version == x._version)
