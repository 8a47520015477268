"""benchmarks/checkpoints.py runs on the fixture model; every round trip in it is checked by itself."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_it_prints_all_its_tables(model_file: Path, tmp_path: Path) -> None:
    weights = load_file(model_file)
    tuned = {name: (array * np.float32(1.0001)).astype(np.float32) for name, array in weights.items()}
    save_file(tuned, tmp_path / "tuned.safetensors")
    files = [str(model_file), "--seconds", "0.1", "--tuned", str(model_file), str(tmp_path / "tuned.safetensors")]
    command = [sys.executable, "-m", "benchmarks.checkpoints", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    sections = [part.partition("\n")[0] for part in done.stdout.split("## ")[1:]]
    assert len(sections) == 4
    for row in ("| AWQ int4 g128 | ", "| BF16, one for 128 weights | ", "| tuned against model | as it is | "):
        assert row in done.stdout
    gptq = next(line for line in done.stdout.splitlines() if "matrices | qzc" in line)
    assert float(gptq.split("|")[4].removesuffix("% ")) < 1.5  # small matrices: tables and index weigh more
