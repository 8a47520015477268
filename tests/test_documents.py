"""The documents are true: their commands and snippets run, their links lead somewhere, nothing is left to fill in."""

import contextlib
import doctest
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "fixtures/README.md")]
DOCUMENTS += sorted((ROOT / "docs").glob("*.md")) + sorted((ROOT / "benchmarks").glob("*.md"))
NAMES = [path.relative_to(ROOT).as_posix() for path in DOCUMENTS]

# What a fence may say it holds. The first two run; the others are shown only.
RUN = {"sh", "python"}
SHOWN = {"text", "json", "toml", "diff"}

# Commands that stand in the documents and are not run here, by how they begin, and why.
NOT_RUN = {
    "python3 -m venv .venv": "installs from the network; .ci/run extracts these lines from the README and runs them",
    "pytest": "the suite does not run itself",
    "ruff ": "a step of .ci/run",
    "mypy ": "a step of .ci/run",
    ".ci/run": "runs this test",
    "python benchmarks/coders.py": "measures for minutes; test_bench.py runs it for a moment",
    "python fixtures/make_model.py": "needs the model it cuts from; test_fixtures.py runs it where that lies",
}


@dataclass(frozen=True)
class Fence:
    """A fenced block: its language, its text and the number of its first line."""

    language: str
    text: str
    line: int


def fences(text: str) -> list[Fence]:
    found = []
    for match in re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        found.append(Fence(match[1].strip(), match[2], text.count("\n", 0, match.start()) + 2))
    return found


def commands(block: str) -> list[str]:
    """The commands of a shell block: one a line, continued by a backslash; lines of comment are left out."""
    lines = block.replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line.strip() and not line.lstrip().startswith("#")]


def not_run(command: str) -> str | None:
    """The entry of NOT_RUN that a command falls under."""
    return next((start for start in NOT_RUN if command.startswith(start)), None)


@pytest.fixture
def desk(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder as a reader has it: the fixtures, a model of one's own, and `qzc` on the PATH."""
    folder = tmp_path / "desk"
    shutil.copytree(model_folder, folder / "fixtures" / "model")
    shutil.copy(model_folder / "model.safetensors", folder / "model.safetensors")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, arguments in (("qzc", "-m qzc"), ("python", "")):
        (programs / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {arguments} "$@"\n')
        (programs / name).chmod(0o755)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return folder


def run_shell(block: str, where: str) -> None:
    for command in commands(block):
        if not_run(command):
            continue
        stated = re.search(r"# exit code (\d+)", command)
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", command], capture_output=True, text=True)
        assert done.returncode == int(stated[1] if stated else 0), f"{where}: {command}\n{done.stdout}{done.stderr}"


def run_python(block: str, where: str, names: dict[str, object]) -> None:
    """Run a snippet in `names`, which the snippets of a document share; one with >>> is compared with its output."""
    if ">>> " in block:
        example = doctest.DocTestParser().get_doctest(block, {}, where, where, 0)
        example.globs = names  # the parser would copy them
        report = io.StringIO()
        failed = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=report.write, clear_globs=False)
        assert not failed.failed, report.getvalue()
    else:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(block, where, "exec"), names)


@pytest.mark.parametrize("name", NAMES)
def test_commands_and_snippets_run(name: str, desk: Path) -> None:
    names: dict[str, object] = {"__name__": "__document__"}
    for fence in fences((ROOT / name).read_text("utf-8")):
        where = f"{name}:{fence.line}"
        assert fence.language in RUN | SHOWN, f"{where}: the fence names no language that this test knows"
        if fence.language == "sh":
            run_shell(fence.text, where)
        elif fence.language == "python":
            run_python(fence.text, where, names)


def test_every_exception_is_still_needed() -> None:
    blocks = [fence for path in DOCUMENTS for fence in fences(path.read_text("utf-8"))]
    written = {not_run(command) for fence in blocks if fence.language == "sh" for command in commands(fence.text)}
    assert set(NOT_RUN) == written - {None}


@pytest.mark.parametrize("block", ["false\n", "true\nqzc no-such-command\n", "true # exit code 3\n", "false | cat\n"])
def test_a_command_that_fails_is_found(block: str, desk: Path) -> None:
    with pytest.raises(AssertionError, match=r"README\.md:1"):
        run_shell(block, "README.md:1")


@pytest.mark.parametrize("block", ["assert 1 + 1 == 3\n", ">>> 1 + 1\n3\n"])
def test_a_snippet_that_fails_is_found(block: str) -> None:
    with pytest.raises(AssertionError):
        run_python(block, "README.md:1", {})


def readme_command(name: str) -> str:
    """The command that the README marks with `<!-- command: name -->`, as .ci/run reads it."""
    text = (ROOT / "README.md").read_text("utf-8")
    (block,) = re.findall(rf"^<!-- command: {name} -->\n```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert isinstance(block, str)
    return block


@pytest.mark.parametrize("name", ["demo", "tests"])
def test_set_up_is_one_command(name: str) -> None:
    (line,) = readme_command(name).splitlines()
    assert line.startswith("python3 -m venv .venv && .venv/bin/pip install ")
    assert ";" not in line


def test_main_job_of_the_readme_runs(desk: Path) -> None:
    # The part after the installation, here with the package under test; .ci/run does all of it with a built wheel.
    steps = readme_command("demo").strip().split(" && ")[2:]
    assert steps and all(step.startswith(".venv/bin/qzc ") for step in steps)
    run_shell(" && ".join(step.removeprefix(".venv/bin/") for step in steps), "README.md")
    assert (desk / "model.qzc").stat().st_size < (desk / "model.safetensors").stat().st_size / 4


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them: lower case, no punctuation, dashes for blanks."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(path: Path, text: str) -> list[str]:
    """The links of a document, standing at `path`, that lead to no file in the repository or to no heading in it."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        if not target.is_relative_to(ROOT.resolve()) or not target.exists():
            broken.append(link)
        elif anchor and anchor not in anchors(target.read_text("utf-8") if file else text):
            broken.append(link)
    return broken


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    assert not broken_links(ROOT / name, (ROOT / name).read_text("utf-8"))


@pytest.mark.parametrize("link", ["docs/no-such-page.md", "docs/SPEC.md#no-such-heading", "#nowhere", "../elsewhere"])
def test_a_broken_link_is_found(link: str) -> None:
    assert broken_links(ROOT / "README.md", f"# Title\n[text]({link}) and [this](#title)") == [link]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_left_to_fill_in(name: str) -> None:
    assert "TBD" not in (ROOT / name).read_text("utf-8")
