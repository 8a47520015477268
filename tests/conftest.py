"""What many tests share: where the fixtures are, a home folder of their own, and the data beside the checkout."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).parent.parent

# No deadline: the first call of a kernel compiles it. In CI the same examples each time: red means that the code changed.
settings.register_profile("qzc", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("qzc")


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty home folder, and none of the variables by which a user changes how programs look."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        patch.setenv("USERPROFILE", str(folder))
        for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "COLUMNS", "FORCE_COLOR", "NO_COLOR"):
            patch.delenv(name, raising=False)
        yield folder


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder of weights and golden files that are part of the repository."""
    return ROOT / "fixtures"


@pytest.fixture(scope="session")
def model_folder(fixtures: Path) -> Path:
    """A small checkpoint of real trained weights: FP32, tied embeddings, config and tokenizer. Read only."""
    return fixtures / "model"


@pytest.fixture(scope="session")
def model_file(model_folder: Path) -> Path:
    """The one .safetensors file of `model_folder`. Read only."""
    return model_folder / "model.safetensors"


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """`shared_data("wikillama-7m")`: a folder of larger models and texts beside the checkout.

    It is no part of the repository: a test that asks for it is skipped where it does not exist.
    """

    def find(name: str) -> Path:
        path = ROOT.parent / "shared" / "data" / name
        if not path.exists():
            pytest.skip(f"needs the data folder {name} beside the checkout")
        return path

    return find
