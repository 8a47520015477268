"""How kernels are found and compiled: lazily, with or without a cache folder, and as the environment says."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qzc.codec.errors import InvalidArgumentError
from qzc.codec.kernels.select import ans_kernels

ROOT = Path(__file__).parent.parent


def run_python(code: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(autouse=True)
def fresh_selection() -> Iterator[None]:
    ans_kernels.cache_clear()
    yield
    ans_kernels.cache_clear()


def test_importing_the_room_does_not_import_numba() -> None:
    assert (
        run_python("import sys, qzc.codec; print('numba' in sys.modules, 'llvmlite' in sys.modules)") == "False False\n"
    )


PACK = "import numpy as np; from qzc.codec.packing import pack_codes; print(pack_codes(np.array([1, 2], np.uint8), 4).tolist())"


def test_no_place_for_a_cache_costs_only_time() -> None:
    """numba refuses to cache if no locator finds a folder: here the only one allowed needs a setting that is not made."""
    assert run_python(PACK, NUMBA_CACHE_LOCATOR_CLASSES="UserProvidedCacheLocator", NUMBA_CACHE_DIR="") == "[33]\n"


def test_a_cache_folder_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    assert run_python(PACK, NUMBA_CACHE_DIR=str(blocker)) == "[33]\n"


def test_a_damaged_cache_costs_only_time(tmp_path: Path) -> None:
    assert run_python(PACK, NUMBA_CACHE_DIR=str(tmp_path)) == "[33]\n"
    files = [path for path in tmp_path.rglob("*") if path.suffix in (".nbi", ".nbc")]
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[:7])
    assert run_python(PACK, NUMBA_CACHE_DIR=str(tmp_path)) == "[33]\n"
    for path in files:
        path.unlink()
        path.mkdir()
    assert run_python(PACK, NUMBA_CACHE_DIR=str(tmp_path)) == "[33]\n"


def test_portable_kernels_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    from qzc.codec.kernels import ans_portable

    monkeypatch.setenv("QZC_KERNELS", "portable")
    assert ans_kernels().encode_ans16 is ans_portable.encode_ans16
    assert ans_kernels().encode_ans256 is ans_portable.encode_ans256


def test_no_vector_code_when_numba_compiles_for_another_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from numba import config

    from qzc.codec.kernels import ans_portable

    monkeypatch.setenv("QZC_KERNELS", "auto")
    monkeypatch.setattr(config, "CPU_NAME", "generic")
    assert ans_kernels().encode_ans16 is ans_portable.encode_ans16


def test_an_unknown_choice_of_kernels_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QZC_KERNELS", "avx9")
    with pytest.raises(InvalidArgumentError, match="QZC_KERNELS is 'avx9'; choose auto or portable"):
        ans_kernels()
