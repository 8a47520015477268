"""Which room may import what: the law of the house, read from the source and tried in a fresh interpreter."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FRONT = "qzc"
ROOMS = ("codec", "quantize", "analysis", "formats", "cli")
MAY_IMPORT = {
    "codec": {"codec"},
    "quantize": {"quantize", "codec"},
    "analysis": {"analysis", "codec"},
    "formats": {"formats", "codec"},
    FRONT: {FRONT, "codec", "quantize", "analysis", "formats"},
    "cli": {"cli", FRONT, "codec", "quantize", "analysis", "formats"},
}
# Libraries that only some rooms may know. constriction is an oracle: files must be readable without it.
ONLY_IN = {
    "click": {"cli"},
    "constriction": {"analysis"},
    "gguf": {"formats"},
    "llvmlite": {"codec", "quantize"},
    "numba": {"codec", "quantize"},
    "rich": {"cli"},
    "safetensors": {"formats"},
    "zlib": {"analysis", "formats"},
    "zstandard": {"analysis"},
}


def imports(source: str, package: list[str]) -> Iterator[tuple[list[str], bool]]:
    """Every module that a file of `package` names, as absolute parts, and whether it says so relatively.

    `from ..codec.model import X` in qzc.formats -> [qzc, codec, model, X], True. Imports in functions and under
    TYPE_CHECKING count like all others. A level too high gives a name without qzc in front, which is an offence.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split("."), False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: max(0, len(package) - node.level + 1)] if node.level else []
            module = node.module.split(".") if node.module else []
            yield from (([*base, *module, alias.name], node.level > 0) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            name = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
            if not isinstance(name, str):
                yield ["a module named at run time"], False
                continue
            level = len(name) - len(name.lstrip("."))
            base = package[: max(0, len(package) - level + 1)] if level else []
            yield [*base, *(part for part in name.split(".") if part)], level > 0


def offences(source: str, room: str, package: list[str]) -> list[str]:
    """What a file of `room`, in the package of these parts, imports against the law."""
    found: list[str] = []
    for parts, relative in imports(source, package):
        name = ".".join(parts)
        if parts[0] != FRONT:
            if relative:
                found.append(f"{name}: the dots lead out of the package")
            elif parts[0] in ROOMS:
                found.append(f"{name}: a second copy of the room; write `from ..{parts[0]}`")
            elif room not in ONLY_IN.get(parts[0], {room}):
                found.append(f"{name}: belongs to {' and '.join(sorted(ONLY_IN[parts[0]]))}")
            elif " " in name and room not in (FRONT, "cli"):  # these two may import every room anyway
                found.append(f"{name}: hides from this test")
            continue
        target = parts[1] if len(parts) > 1 and parts[1] in ROOMS else FRONT
        if target not in MAY_IMPORT[room]:
            found.append(f"{name}: {room} may not import {target}")
        elif not relative:
            found.append(f"{name}: imports between rooms are relative")
    return found


def python_files(room: str) -> list[Path]:
    """The modules of a room. The front door's folder also shows the rooms, as links."""
    folder = ROOT / room
    links = {folder / name for name in ROOMS}
    return sorted(path for path in folder.rglob("*.py") if not links & set(path.parents))


def package_of(path: Path) -> list[str]:
    folders = list(path.parent.relative_to(ROOT).parts)
    return folders if folders[0] == FRONT else [FRONT, *folders]


def module_name(path: Path) -> str:
    return ".".join(package_of(path) + ([] if path.stem == "__init__" else [path.stem]))


def all_modules() -> list[str]:
    paths = [path for room in MAY_IMPORT for path in python_files(room) if path.name != "__main__.py"]
    return sorted(module_name(path) for path in paths)


def in_fresh_interpreter(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_room_imports_only_its_neighbours(room: str) -> None:
    files = python_files(room)
    assert files
    found = {
        str(path.relative_to(ROOT)): offences(path.read_text("utf-8"), room, package_of(path))
        for path in files
        # The one file of the front door that may start the command line.
        if path != ROOT / FRONT / "__main__.py"
    }
    assert not {path: wrong for path, wrong in found.items() if wrong}


@pytest.mark.parametrize("folder", ["tests", "benchmarks", "fixtures"])
def test_others_know_the_package_and_not_the_folders(folder: str) -> None:
    for path in sorted((ROOT / folder).rglob("*.py")):
        named = {parts[0] for parts, relative in imports(path.read_text("utf-8"), [folder]) if not relative}
        assert not named & set(ROOMS), (
            f"{path.relative_to(ROOT)}: write `from qzc.codec import`, not `from codec import`"
        )


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("qzc.codec", "from ..formats import read"),
        ("qzc.codec", "from .. import formats"),
        ("qzc.codec", "from .. import open"),
        ("qzc.codec", "import qzc.formats.reader"),
        ("qzc.codec", "from qzc.codec import tensor"),
        ("qzc.codec", "from ..quantize.rtn import quantize"),
        ("qzc.codec", "def late():\n    from ..analysis import entropy"),
        ("qzc.codec", "if TYPE_CHECKING:\n    from ..cli import main"),
        ("qzc.codec", "import safetensors"),
        ("qzc.codec", "import constriction"),
        ("qzc.codec", "__import__('rich')"),
        ("qzc.codec.kernels", "from ...formats import read"),
        ("qzc.codec.kernels", "from ... import load_file"),
        ("qzc.codec.kernels", "from ....codec import tensor"),
        ("qzc.analysis", "from ..formats.reader import Reader"),
        ("qzc.analysis", "import qzc"),
        ("qzc.analysis", "from numba import njit"),
        ("qzc.formats", "from ..analysis import shannon_entropy"),
        ("qzc.formats", "from ..quantize import quantize"),
        ("qzc.formats", "from codec import CODERS"),
        ("qzc.formats", "import codec.tensor"),
        ("qzc.formats", "import click"),
        ("qzc.formats", "import numba as nb"),
        ("qzc.formats", "importlib.import_module('..analysis', __package__)"),
        ("qzc.formats", "import_module(name)"),
        ("qzc.quantize", "from .. import save_file"),
        ("qzc.quantize", "from ..errors import QzcError"),
        ("qzc.quantize", "from ..analysis.entropy import shannon_entropy"),
        ("qzc.quantize", "import rich.progress"),
        ("qzc", "from .cli.main import main"),
        ("qzc", "from . import cli"),
        ("qzc", "import click"),
        ("qzc", "import numba"),
        ("qzc.cli", "import numba"),
        ("qzc.cli", "from codec import CODERS"),
    ],
)
def test_a_planted_offence_is_found(package: str, line: str) -> None:
    parts = package.split(".")
    assert len(offences(line, parts[1] if len(parts) > 1 else FRONT, parts)) == 1


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("qzc.codec", "from .tensor import QuantizedTensor"),
        ("qzc.codec", "from .kernels import rans"),
        ("qzc.codec", "import numba"),
        ("qzc.codec.kernels", "from ..errors import CorruptionError"),
        ("qzc.codec.kernels", "from ...codec import errors"),
        ("qzc.formats", "from ..codec.tensor import QuantizedTensor"),
        ("qzc.formats", "from . import header"),
        ("qzc.formats", "import json.decoder"),
        ("qzc.analysis", "import zlib"),
        ("qzc", "from .pack import pack"),
        ("qzc", "from .codec import tensor"),
        ("qzc", "import_module(home, __name__)"),
        ("qzc.cli", "from .. import pack"),
        ("qzc.cli", "from ..analysis import entropy"),
        ("qzc.cli", "import click"),
    ],
)
def test_what_the_law_allows(package: str, line: str) -> None:
    parts = package.split(".")
    assert not offences(line, parts[1] if len(parts) > 1 else FRONT, parts)


@pytest.mark.parametrize("room", ROOMS)
def test_links_point_at_the_rooms(room: str) -> None:
    assert (ROOT / FRONT / room).is_symlink()
    assert (ROOT / FRONT / room).resolve() == (ROOT / room).resolve()


def test_every_module_can_be_imported_first() -> None:
    # A cycle between modules works or breaks by who comes first: so each one comes first once.
    code = """
import importlib, sys
for first in sys.argv[1:]:
    for name in [name for name in sys.modules if name.split(".")[0] == "qzc"]:
        del sys.modules[name]
    try:
        importlib.import_module(first)
    except ImportError as error:
        print(f"{first}: {error}")
"""
    assert in_fresh_interpreter(code, *all_modules()) == ""


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        # Half a second and more before anything happens: `--help` and completion need none of it.
        ("qzc", {"numpy", "numba", "rich", "click"}),
        ("qzc.cli.main", {"numpy", "numba", "rich", "safetensors"}),
        # Compiled kernels are for coding and decoding; `ls` and `info` only read headers.
        ("qzc.codec", {"numba"}),
        ("qzc.quantize", {"numba"}),
        ("qzc.analysis", {"numba"}),
        ("qzc.formats", {"numba"}),
    ],
)
def test_importing_does_not_load(module: str, heavy: set[str]) -> None:
    loaded = in_fresh_interpreter(f"import sys, {module}; print(*sys.modules)").split()
    assert module in loaded
    assert not heavy & set(loaded)


def test_no_module_of_formats_loads_the_compiler() -> None:
    names = [name for name in all_modules() if name.startswith("qzc.formats")]
    code = "import importlib, sys; [importlib.import_module(n) for n in sys.argv[1:]]; print('numba' in sys.modules)"
    assert in_fresh_interpreter(code, *names) == "False"
