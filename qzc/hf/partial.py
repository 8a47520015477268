"""What an unfinished `qzc calibrate` keeps on disk: statistics of finished blocks, and hidden states."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ..codec.errors import CorruptionError, FileAccessError
from ..formats.access import naming_os_errors
from ..formats.atomic import atomic_writer
from ..formats.dtypes import file_bytes
from ..formats.safetensors import SafetensorsFile, place, write_safetensors
from .inputs import InputStatistics
from .sensitivity import Trial


@dataclass(frozen=True)
class Part:
    """Statistics of a part of the model, in memory or in a file of a finished block.

    inputs: tensors and tokens, by input. trials: that begin in this part.
    """

    inputs: dict[str, tuple[tuple[str, ...], int]]
    arrays: dict[str, NDArray[np.float32]]
    trials: list[Trial] = field(default_factory=list)


class Partial:
    """The folder of an unfinished run. job: what must be the same for a run to go on with the work of another."""

    def __init__(self, folder: Path, job: dict[str, str]) -> None:
        self.folder = folder
        self._job = json.dumps(job, sort_keys=True, indent=1)

    def hidden(self, index: int) -> Path:
        """Of the hidden states before a block: float32 [windows, length, width]."""
        return self.folder / f"hidden-{index:05}.npy"

    def trials(self, index: int) -> Path:
        """Of the hidden states before a block in all trials begun before it: [trials * windows, length, width]."""
        return self.folder / f"trials-{index:05}.npy"

    def resume(self, blocks: int, trials: bool) -> list[Part]:
        """The finished blocks of an earlier run of the same job; otherwise the folder is begun anew."""
        with naming_os_errors(self.folder, "write"):
            note = self.folder / "job.json"
            if note.is_file() and note.read_text("utf-8") == self._job:
                parts: list[Part] = []
                while len(parts) < blocks and self._block(len(parts)).is_file():
                    parts.append(_read(self._block(len(parts))))
                states = [self.hidden(len(parts)), *([self.trials(len(parts))] if trials else [])]
                if all(path.is_file() for path in states):
                    return parts
            if self.folder.exists() and not note.is_file() and any(self.folder.iterdir()):
                raise FileAccessError(f"{self.folder} is in the way: unfinished work would be kept there; move it")
            self.remove()
            self.folder.mkdir()
        with atomic_writer(note) as stream:
            stream.write(self._job.encode())
        return []

    def finish(self, index: int, part: Part) -> Part:
        """Keep the statistics of a block whose successor's hidden states are kept: the same, in a file."""
        trials = json.dumps([[trial.name, trial.parameter, trial.error] for trial in part.trials])
        write_parts(self._block(index), [part], {"trials": trials}, True)
        self.hidden(index).unlink()
        self.trials(index).unlink(missing_ok=True)
        return _read(self._block(index))

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _block(self, index: int) -> Path:
        return self.folder / f"block-{index:05}.safetensors"


def part_of(results: list[InputStatistics], trials: list[Trial] | None = None) -> Part:
    """An input has the name of the first tensor that reads it."""
    inputs, arrays = {}, {}
    for result in results:
        key = result.tensors[0].removesuffix(".weight") + ".input"
        inputs[key] = (result.tensors, result.tokens)
        arrays[f"{key}.mean"], arrays[f"{key}.power"] = result.mean, result.power
        if result.triangle is not None:
            arrays[f"{key}.gram"] = result.triangle
    return Part(inputs, arrays, trials or [])


def write_parts(path: Path, parts: Sequence[Part], metadata: dict[str, str], overwrite: bool) -> int:
    """Write a file of statistics. Returns its size in bytes."""
    arrays = {name: array for part in parts for name, array in part.arrays.items()}
    entries = {
        tensor: (key, tokens) for part in parts for key, (tensors, tokens) in part.inputs.items() for tensor in tensors
    }
    text = json.dumps(dict(sorted(entries.items())), ensure_ascii=False, separators=(",", ":"))
    members = place((name, "F32", arrays[name].shape, arrays[name].nbytes) for name in sorted(arrays))
    pieces = (file_bytes(arrays[member.name]) for member in members)
    return write_safetensors(path, members, pieces, {**metadata, "tensors": text}, overwrite=overwrite)


def keep_states(path: Path, windows: int, states: Iterable[NDArray[np.float32]]) -> None:
    """Write hidden states [.., length, width], so many windows in all, as one array in .npy."""
    with atomic_writer(path, True) as stream:
        begun = False
        for state in states:
            if not begun:
                shape = (windows, *state.shape[1:])
                npy.write_array_header_2_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
            begun = True
            stream.write(file_bytes(state.astype(np.float32, copy=False)))
        if not begun:
            npy.write_array_header_2_0(stream, {"descr": "<f4", "fortran_order": False, "shape": (0, 0, 0)})


class KeptStates:
    """The hidden states that `keep_states` wrote."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with naming_os_errors(path, "read"), path.open("rb") as file:
            npy.read_magic(file)
            self._shape = npy.read_array_header_2_0(file)[0]
            self._start = file.tell()

    def rows(self, first: int, count: int) -> NDArray[np.float32]:
        """The states of some windows: [count, length, width]."""
        length, width = self._shape[1:]
        with naming_os_errors(self._path, "read"), self._path.open("rb") as file:
            file.seek(self._start + 4 * first * length * width)
            flat = np.fromfile(file, np.dtype("<f4"), count * length * width)
        return flat.reshape(count, length, width)

    def picked(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The states of these windows."""
        return np.concatenate([self.rows(int(row), 1) for row in rows])


def _read(path: Path) -> Part:
    with ExitStack() as stack:
        file = stack.enter_context(SafetensorsFile(path))  # the arrays stay views of the file
        try:
            entries: dict[str, tuple[str, int]] = json.loads(file.metadata["tensors"])
            trials: list[Any] = json.loads(file.metadata["trials"])
        except (KeyError, ValueError):
            raise CorruptionError(f"{path}: damaged; remove the folder {path.parent} and begin anew") from None
        inputs: dict[str, tuple[tuple[str, ...], int]] = {}
        for tensor, (key, tokens) in entries.items():
            inputs[key] = ((*inputs.get(key, ((), 0))[0], tensor), tokens)
        arrays = {name: file.array(name) for name in file.keys()}
        return Part(inputs, arrays, [Trial(*trial) for trial in trials])
