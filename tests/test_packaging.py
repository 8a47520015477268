"""What is installed is what lies in the checkout: sdist -> wheel -> every module under qzc/, and nothing else."""

import ast
import contextlib
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import qzc

ROOT = Path(__file__).parent.parent
ROOMS = ("codec", "quantize", "analysis", "formats", "cli")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
NOT_PACKAGED = shutil.ignore_patterns(".git", ".*cache", ".venv", ".hypothesis", "__pycache__", "dist", "build")


def expected_modules() -> set[str]:
    """The names in the wheel of all modules in the checkout: `codec/ans.py` -> `qzc/codec/ans.py`."""
    rooms = {f"qzc/{path.relative_to(ROOT).as_posix()}" for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    links = {ROOT / "qzc" / room for room in ROOMS}
    front = {path for path in (ROOT / "qzc").rglob("*.py") if not links & set(path.parents)}
    return rooms | {path.relative_to(ROOT).as_posix() for path in front}


def distribution(name: str) -> str:
    """`ml_dtypes`, `ML-Dtypes >= 0.5; marker` -> `ml-dtypes`."""
    return "".join(c if c.isalnum() else "-" for c in name.split(">")[0].split(";")[0].split("[")[0].strip()).lower()


def build(checkout: Path, out: Path) -> tuple[Path, Path]:
    """An sdist of `checkout`, and a wheel built from that sdist."""
    # Without isolation: the tools are in the dev extra, and a test must not need the network.
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(checkout)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return build(ROOT, tmp_path_factory.mktemp("dist"))


@pytest.mark.slow
def test_wheel_holds_every_module_and_nothing_else(built: tuple[Path, Path]) -> None:
    names = set(zipfile.ZipFile(built[1]).namelist())
    modules = {name for name in names if ".dist-info/" not in name}
    assert built[1].name == f"qzc-{qzc.__version__}-py3-none-any.whl"
    assert modules == expected_modules() | {"qzc/py.typed"}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_sdist_holds_what_a_packager_needs(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        members = {member.name.partition("/")[2]: member for member in archive.getmembers()}
    for name in ("pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md", "docs/SPEC.md", "tests/conftest.py"):
        assert name in members
    assert "fixtures/model/model.safetensors" in members
    # Links in an archive, or text files in their place, would hide that a room is missing.
    assert not {f"qzc/{room}" for room in ROOMS} & members.keys()
    assert not [name for name, member in members.items() if member.issym()]


@pytest.mark.slow
def test_wheel_runs_away_from_the_checkout(built: tuple[Path, Path], tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(built[1]).extractall(site)
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import qzc; from qzc.cli.main import main; "
        "print(qzc.__file__, flush=True); main()"
    )
    command = [sys.executable, "-c", code, str(site), "--version"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    where, version = done.stdout.splitlines()
    assert Path(where) == site / "qzc" / "__init__.py"
    assert qzc.__version__ in version


@pytest.mark.slow
def test_wheel_is_the_same_where_links_are_text_files(built: tuple[Path, Path], tmp_path: Path) -> None:
    # A clone on Windows without the right to make links has small text files in their place.
    shutil.copytree(ROOT, tmp_path / "clone", symlinks=True, ignore=NOT_PACKAGED)
    for room in ROOMS:
        link = tmp_path / "clone" / "qzc" / room
        link.unlink()
        link.write_text(f"../{room}")
    wheel = build(tmp_path / "clone", tmp_path / "dist")[1]
    assert set(zipfile.ZipFile(wheel).namelist()) == set(zipfile.ZipFile(built[1]).namelist())


def test_version_is_the_one_that_is_installed() -> None:
    # A checkout that is not installed has no metadata to compare, and must run all the same.
    with contextlib.suppress(metadata.PackageNotFoundError):
        assert metadata.version("qzc") == qzc.__version__, "the metadata is old: install the checkout again"
    assert qzc.__version__[0].isdigit()


def test_every_import_is_declared() -> None:
    declared = {distribution(line) for line in PROJECT["dependencies"]}
    extras = PROJECT["optional-dependencies"]
    declared |= {distribution(line) for extra in extras if extra != "dev" for line in extras[extra]}
    assert "ml-dtypes" in declared
    # llvmlite comes with numba, in the version that numba wants; _typeshed exists for type checkers only.
    brought_along = {"llvmlite", "_typeshed"}
    for folder in ("qzc", *ROOMS):
        for path in sorted((ROOT / folder).glob("*.py") if folder == "qzc" else (ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    names = [node.module]
                for name in {name.split(".")[0] for name in names} - sys.stdlib_module_names - brought_along:
                    assert distribution(name) in declared, f"{path}: {name} is no dependency of qzc"


def test_changelog_tells_of_this_version() -> None:
    assert f"\n## {qzc.__version__}" in (ROOT / "CHANGELOG.md").read_text("utf-8")
