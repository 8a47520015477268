"""What `ls` and `info` show of a file, from its header alone; `.safetensors` files are listed too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

from ..codec.tensor import QuantizationArgs
from ..formats.checkpoint import is_qzc, open_checkpoint
from ..formats.rate_entry import RateEntry
from ..formats.reader import Reader
from ..sources import open_source


@dataclass(frozen=True)
class Listed:
    """A tensor in a file. stored: bytes by part; args: its grid if it has one; rate: its unbounded grid; coding: as in `TensorInfo`."""

    file: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    args: QuantizationArgs | None
    stored: dict[str, int]
    tied_to: str | None
    coding: str = "plain"
    rate: RateEntry | None = None

    @property
    def is_quantized(self) -> bool:
        """Whether it has a grid of either kind."""
        return self.args is not None or self.rate is not None

    @property
    def parameters(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return sum(self.stored.values())

    @property
    def bits_per_weight(self) -> float | None:
        return 8 * self.nbytes / self.parameters if self.parameters and not self.tied_to else None


@dataclass(frozen=True)
class ListedFile:
    """A file: format ("qzc", "safetensors" or "gguf"), size, bytes that belong to no tensor, metadata of the checkpoint."""

    path: str
    format: str
    version: str | None
    writer: str | None
    nbytes: int
    overhead: dict[str, int]
    metadata: dict[str, str]
    tensors: tuple[Listed, ...]


def list_files(path: Path) -> Iterator[ListedFile]:
    """The files of a checkpoint. Raises as `qzc.open`."""
    for file in open_checkpoint(path).files:
        yield _list_qzc(file) if is_qzc(file) else _list_source(file)


def _list_qzc(path: Path) -> ListedFile:
    from ..formats.profile import VERSION

    with Reader(path) as reader:
        tensors = []
        for name in reader.keys():
            info = reader.info(name)
            stored = {} if info.tied_to else info.stored
            coding = "delta" if info.delta else info.coding
            tensors.append(
                Listed(path.name, name, info.dtype, info.shape, info.args, stored, info.tied_to, coding, info.rate)
            )
        profile = reader.profile
        return ListedFile(
            str(path), "qzc", VERSION, profile.writer, reader.file_size, reader.overhead, profile.source_metadata or {},
            tuple(tensors),
        )  # fmt: skip


def _list_source(path: Path) -> ListedFile:
    with open_source(path) as file:
        infos = [(name, file.info(name)) for name in sorted(file.keys())]
        tensors = tuple(
            Listed(path.name, name, info.dtype, info.shape, None, {"data": info.nbytes}, None) for name, info in infos
        )
        overhead = {"header": file.nbytes - sum(info.nbytes for _, info in infos)}
        return ListedFile(str(path), file.kind, None, None, file.nbytes, overhead, file.metadata, tensors)
