"""What `qzc.pack` did: the files that it wrote, and their bytes by part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..formats.writer import Layout
from ..planner import FilePlan, PlannedTensor

CHECKSUM_NBYTES = 8


@dataclass(frozen=True)
class PackedFile:
    """One file of the output. layout: its bytes by part; they add up to `layout.nbytes`."""

    output: Path
    plan: FilePlan
    layout: Layout
    source_nbytes: int


@dataclass(frozen=True)
class PackReport:
    """What `pack` did. All sizes in bytes; `nbytes` and `source_nbytes` are whole files.

    found: in which layout the input is quantized already, None if it is not. unused_rules: what of the selection had no
    effect. skipped: files of the input folder that were not copied, because
    they hold the weights in other formats or variants. rate_method: how tensors were quantized at a rate, None if none was;
    without_statistics: those of them for which there were none.
    """

    output: Path
    files: tuple[PackedFile, ...]
    seconds: float
    verified: bool
    unused_rules: tuple[str, ...] = ()
    skipped: tuple[Path, ...] = ()
    found: str | None = None
    rate_method: str | None = None
    without_statistics: tuple[str, ...] = ()

    @property
    def rated(self) -> list[PlannedTensor]:
        """The tensors that were quantized at a rate."""
        return [t for t in self.quantized if t.is_rated]

    @property
    def rate_bits(self) -> dict[str, float]:
        """Bits per weight of the tensors that were quantized at a rate, by part; all parts together are their rate.

        codes: payloads; vectors: steps and classes of rows and columns; tables: the bank; index: rows of the chunk index;
        header: what the header says of them, and checksums.
        """
        return rate_bits(self.files)

    @property
    def source_nbytes(self) -> int:
        return sum(file.source_nbytes for file in self.files)

    @property
    def nbytes(self) -> int:
        return sum(file.layout.nbytes for file in self.files)

    @property
    def quantized(self) -> list[PlannedTensor]:
        """The tensors that were quantized and coded."""
        return [tensor for file in self.files for tensor in file.plan.quantized]

    @property
    def lossless(self) -> list[PlannedTensor]:
        """The tensors that were coded bit by bit."""
        return [tensor for file in self.files for tensor in file.plan.lossless]

    @property
    def bits_per_weight(self) -> float:
        """Bits of all that the quantized tensors take (codes, scales, zero points, index, tables) per weight; 0 if none.

        Tables count in full, though lossless tensors may share them; at a rate the header counts, too.
        """
        if self.rated:
            return sum(self.rate_bits.values())
        weights = sum(t.parameters for t in self.quantized)
        parts = sum(sum(f.layout.coded[t.name].values()) for f in self.files for t in f.plan.quantized)
        tables = sum(f.layout.tables for f in self.files)
        return 8 * (parts + tables) / weights if weights else 0.0


def rate_bits(files: Sequence[PackedFile]) -> dict[str, float]:
    """As `PackReport.rate_bits`."""
    parts = dict.fromkeys(("codes", "vectors", "tables", "index", "header"), 0)
    weights = 0
    for file in files:
        names = [tensor.name for tensor in file.plan.tensors if tensor.is_rated]
        weights += sum(tensor.parameters for tensor in file.plan.tensors if tensor.is_rated)
        parts["codes"] += sum(file.layout.coded[name]["payload"] for name in names)
        parts["index"] += sum(file.layout.coded[name]["index"] for name in names)
        parts["header"] += sum(file.layout.entries[name] + CHECKSUM_NBYTES for name in names)
        parts["vectors"] += file.layout.vectors
        parts["tables"] += file.layout.classes
    return {what: 8 * nbytes / max(1, weights) for what, nbytes in parts.items()}
