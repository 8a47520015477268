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
    original = ""
    with tempfile.TemporaryDirectory(prefix="qzc-bench-") as folder:
        for title, selection in GRIDS.items():
            cells: dict[str, str] = {}
            reports = {}
            for coder in CODERS:
                path = Path(folder) / f"{coder}.qzc"
                options = qzc.PackOptions(selection=selection, coder=coder, overwrite=True)
                reports[coder] = qzc.pack(model, path, options)
                qzc.verify(path, model)
                cells[coder] = f"{reports[coder].nbytes:,}"
                if coder == "raw":
                    compressed = zstandard.ZstdCompressor(level=1).compress(path.read_bytes())
                    cells["zstd -1 of the raw file"] = f"{len(compressed):,}"
            report = reports["ans"]
            measured = qzc.stats(model, selection)
            codes = measured.totals.sizes.codes
            assert codes is not None
            payload = sum(p["payload"] for p in report.files[0].layout.coded.values())
            cells["entropy bound"] = f"{report.nbytes - payload + codes.entropy_bits / 8:,.0f}"
            bits = (codes.per_code(codes.entropy_bits), codes.coded_bits("ans"), codes.packed_zstd_bits)
            cells["bits per code: entropy, ans, zstd -1 on packed"] = ", ".join(f"{b:.3f}" for b in bits if b)
            cells["bits per weight"] = f"{report.bits_per_weight:.3f}"
            cells["weight SNR, dB"] = f"{codes.snr_db:.1f}"
            columns[title] = cells
            sizes = measured.totals.sizes
            original = f"gzip -6 {sizes.gzip_nbytes:,}, zstd -3 {sizes.zstd_nbytes:,} bytes, tensor by tensor"
    print(f"{model.name}: {model.stat().st_size:,} bytes\n")
    print(f"| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for row in next(iter(columns.values())):
        print(f"| {row} | {' | '.join(cells[row] for cells in columns.values())} |")
    print(f"\nthe original: {original}")


if __name__ == "__main__":
    main()
