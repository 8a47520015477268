"""What `pack` reads: the files of a checkpoint, whatever their format, and what is known of how they were quantized."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from .codec.records import Records
from .formats.access import naming_os_errors
from .formats.checkpoint import Checkpoint
from .formats.header import read_file_header
from .formats.layouts.layout import Found, detect
from .formats.safetensors import SafetensorsFile

CONFIGS = ("config.json", "quantize_config.json", "quant_config.json")
MAX_CONFIG_NBYTES = 1 << 24


class SourceInfo(Protocol):
    """Dtype, shape and size of a tensor in a file."""

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def nbytes(self) -> int: ...


class SourceTensors(Protocol):
    """A file of tensors: `SafetensorsFile` or `GgufFile`."""

    @property
    def kind(self) -> Literal["safetensors", "gguf"]: ...

    @property
    def metadata(self) -> dict[str, str]: ...

    @property
    def nbytes(self) -> int: ...

    def keys(self) -> list[str]: ...

    def info(self, name: str) -> SourceInfo: ...

    def raw(self, name: str) -> NDArray[np.uint8]: ...

    def array(self, name: str) -> NDArray[Any]: ...

    def records(self, name: str) -> tuple[Records, ...]:
        """How the format itself says that the bytes of a tensor may be split, best first."""
        ...

    def release(self, name: str) -> None: ...

    def offset(self, name: str) -> int:
        """Where the bytes of a tensor begin in the file."""
        ...

    def rest(self) -> bytes:
        """All bytes of the file that belong to no tensor, in their order."""
        ...

    def xxh3(self) -> int:
        """XXH3-64 of the whole file."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


def open_source(path: Path) -> SourceTensors:
    """Open a file of weights by what it begins with."""
    if _is_gguf(path):
        from .formats.gguf import GgufFile

        return GgufFile(path)
    return SafetensorsFile(path)


def find_layout(checkpoint: Checkpoint) -> Found | None:
    """In which layout a checkpoint is quantized already, from its config and the names, dtypes and shapes of its tensors."""
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for path in checkpoint.files:
        if _is_gguf(path):
            return _found_gguf(path)
        members = read_file_header(path).members
        tensors.update((name, (member.dtype, member.shape)) for name, member in members.items())
    folder = checkpoint.root if checkpoint.root.is_dir() else checkpoint.root.parent
    config: dict[str, Any] = {}
    for name in reversed(CONFIGS):
        config = {**config, **_read_config(folder / name)}
    return detect(config or None, tensors)


def _is_gguf(path: Path) -> bool:
    with naming_os_errors(path, "read"), path.open("rb") as file:
        start = file.read(9)
    return start[:4] == b"GGUF" and start[8:] != b"{"  # the length of a safetensors header may look like anything


def _found_gguf(path: Path) -> Found | None:
    """How the file says itself that its tensors are quantized."""
    with open_source(path) as file:
        kinds = Counter(
            file.info(name).dtype.removeprefix("GGUF_") for name in file.keys() if _is_quantized(file, name)
        )
    if not kinds:
        return None
    text = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items(), key=lambda item: (-item[1], item[0])))
    return Found("gguf", f"GGUF ({text})", {}, sum(kinds.values()))


def _is_quantized(file: SourceTensors, name: str) -> bool:
    return file.info(name).dtype.startswith("GGUF_")


def _read_config(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is none that can be read: what it says is no more than a hint."""
    try:
        if path.stat().st_size > MAX_CONFIG_NBYTES:
            return {}
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
