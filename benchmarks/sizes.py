"""The size table of the README: one model, two 4-bit grids, every coder, beside zstd and the entropy bound.

    python benchmarks/sizes.py MODEL.safetensors

Whole files, each verified against the model. "zstd -1" compresses the raw-coded file, which is the fair rival: packed codes
with everything that a reader needs. The bound is the ans file with its payload replaced by the order-0 entropy of the codes.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Literal

import zstandard

import qzc

GRIDS = {"groups of 128": qzc.Selection(), "--strategy channel": qzc.Selection(strategy="channel")}
CODERS: tuple[Literal["raw", "huffman", "ans"], ...] = ("raw", "huffman", "ans")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    model = parser.parse_args().model
    columns = {}
    original = {}
    with tempfile.TemporaryDirectory(prefix="qzc-bench-") as folder:
        for title, selection in GRIDS.items():
            cells: dict[str, str] = {}
            for coder in CODERS:
                path = Path(folder) / f"{coder}.qzc"
                report = qzc.pack(model, path, qzc.PackOptions(selection=selection, coder=coder, overwrite=True))
                qzc.verify(path, model)
                cells[coder] = f"{report.nbytes:,}"
                if coder == "raw":
                    compressed = zstandard.ZstdCompressor(level=1).compress(path.read_bytes())
                    cells["zstd -1 of the raw file"] = f"{len(compressed):,}"
            measured = qzc.stats(model, selection)
            codes = measured.totals.sizes.codes
            assert codes is not None
            payload = sum(p["payload"] for p in report.files[0].layout.coded.values())
            cells["entropy bound"] = f"{report.nbytes - payload + codes.entropy_bits / 8:,.0f}"
            cells["bits per weight"] = f"{report.bits_per_weight:.3f}"
            cells["weight SNR, dB"] = f"{codes.snr_db:.1f}"
            columns[title] = cells
            original = measured.totals.to_json()
    print(f"{model.name}: {model.stat().st_size:,} bytes\n")
    print(f"| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for row in next(iter(columns.values())):
        print(f"| {row} | {' | '.join(cells[row] for cells in columns.values())} |")
    print(f"\noriginal bytes: {original}")


if __name__ == "__main__":
    main()
