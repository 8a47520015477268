"""What may be asked of `qzc.pack`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..codec.chunks import CHUNK_CODES
from ..codec.errors import InvalidArgumentError
from ..quantize.select import Selection
from ..rating import RateOptions


@dataclass(frozen=True)
class PackOptions:
    """What to quantize and how to code it.

    selection: grids by tensor name; None for the default grid, and for none if the input is quantized already. lossless:
    quantize nothing; the output then gives the input back byte by byte. base: code lossless tensors as what they differ
    from those of this checkpoint, where that is smaller. rate: quantize at a rate, in place of the grids of the selection.
    method: how codes on a grid are found; `gptq` needs stats, the statistics of `qzc calibrate`. coder: "ans", "huffman" or "raw". chunk_codes: target codes per chunk. nonfinite:
    "error" refuses tensors with NaN or Inf, "keep" stores them as they are. verify: read the file again and compare before
    it takes its place. threads: 0 for all CPUs. overwrite: replace an existing output.
    """

    selection: Selection | None = None
    lossless: bool = False
    base: Path | None = None
    rate: RateOptions | None = None
    method: Literal["rtn", "gptq"] = "rtn"
    stats: Path | None = None
    coder: Literal["ans", "huffman", "raw"] = "ans"
    chunk_codes: int = CHUNK_CODES
    nonfinite: Literal["error", "keep"] = "error"
    verify: bool = True
    threads: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.lossless and self.selection is not None:
            raise InvalidArgumentError("lossless means that nothing is quantized: give either it or a selection")
        if self.rate is not None and (self.lossless or self.method != "rtn" or self.coder != "ans"):
            raise InvalidArgumentError("a rate goes with entropy coding, on grids without a number of bits")
        if self.method not in ("rtn", "gptq"):
            raise InvalidArgumentError(f"unknown method {self.method!r} for grids; choose rtn or gptq")
        if self.method == "gptq" and self.stats is None:
            raise InvalidArgumentError("gptq needs the statistics that `qzc calibrate` gathers")
        if self.stats is not None and self.method == "rtn" and self.rate is None:
            raise InvalidArgumentError("statistics have no use for rounding to nearest: choose gptq, or a rate")
        if self.coder not in ("ans", "huffman", "raw"):
            raise InvalidArgumentError(f"unknown coder {self.coder!r}; choose ans, huffman or raw")
        if self.nonfinite not in ("error", "keep"):
            raise InvalidArgumentError(f"unknown choice {self.nonfinite!r} for nonfinite; choose error or keep")
        if not 1 << 10 <= self.chunk_codes <= 1 << 23:
            raise InvalidArgumentError(f"chunk_codes is {self.chunk_codes}; it may be 1024 to {1 << 23}")
