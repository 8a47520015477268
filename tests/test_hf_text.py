"""Texts cut into windows of token ids. No torch is needed for it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import qzc
from qzc.hf.calibrate import calibrate
from qzc.hf.evaluate import evaluate
from qzc.hf.text import CHARACTERS, WindowOptions, read_windows
from tests.command_line import Argument, inside
from tests.shards import files_in


class Words:
    """A tokenizer: a word is the number that it says. Notes how much it was given."""

    cls_token_id, sep_token_id, bos_token_id, eos_token_id = 101, 102, 1, 2

    def __init__(self) -> None:
        self.given = 0

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        self.given += len(text)
        return {"input_ids": [int(word) for word in text.split()]}

    def convert_ids_to_tokens(self, index: int) -> str:
        return f"<{index}>"


def no_tokenizer() -> Any:
    raise AssertionError("not needed")


def ids(path: Path, array: Any) -> Path:
    np.save(path, np.asarray(array))
    return path


def rows(*texts: Path | str, count: int = 100, length: int = 4) -> NDArray[np.int64]:
    return read_windows(texts, WindowOptions(count, length), True, no_tokenizer).ids


def test_windows_of_one_text(tmp_path: Path) -> None:
    path = ids(tmp_path / "a.npy", np.arange(11, dtype=np.uint16))
    assert rows(path).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert rows(path, count=1).tolist() == [[0, 1, 2, 3]]
    assert rows(path, length=11).tolist() == [list(range(11))]
    found = read_windows([path], WindowOptions(2, 4), False, no_tokenizer)
    assert str(found) == "2 windows of 4 tokens from a.npy; token ids as given, no special tokens"


def test_windows_come_from_several_texts_in_turn(tmp_path: Path) -> None:
    a = ids(tmp_path / "a.npy", np.arange(12))
    b = ids(tmp_path / "b.npy", np.arange(100, 109))
    assert rows(a, b)[:, 0].tolist() == [0, 100, 4, 104, 8]
    assert rows(b, a, count=3)[:, 0].tolist() == [100, 0, 104]


def test_arrays_in_archives(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", train=np.arange(8), test=np.arange(50, 58))
    np.savez(tmp_path / "one.npz", np.arange(8))
    assert rows(f"{tmp_path}/t.npz:test")[:, 0].tolist() == [50, 54]
    assert rows(tmp_path / "one.npz").shape == (2, 4)
    for wrong in (tmp_path / "t.npz", f"{tmp_path}/t.npz:valid"):
        with pytest.raises(qzc.InvalidArgumentError, match=r"say which array.*it has train, test"):
            rows(wrong)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(9), "is not token ids"),
        (np.zeros((3, 5), np.int64), "is not token ids"),
        (np.zeros((1, 3, 4), np.int64), "is not token ids"),
        (np.full(9, -1), "must lie in"),
        (np.full(9, 1 << 31), "must lie in"),
        (np.zeros(3, np.int64), "not enough for one window"),
        (np.zeros(0, np.int64), "not enough for one window"),
    ],
)
def test_arrays_that_are_no_ids(array: NDArray[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(qzc.InvalidArgumentError, match=message):
        rows(ids(tmp_path / "a.npy", array))


def test_files_that_are_no_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "o.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "cut.npy").write_bytes(ids(tmp_path / "a.npy", np.arange(20)).read_bytes()[:-20])
    np.savez(tmp_path / "z.npz", np.arange(80))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "z.npz").read_bytes()[:-30])
    (tmp_path / "empty.npy").touch()
    for name in ("o.npy", "cut.npy", "cut.npz", "empty.npy"):
        with pytest.raises(qzc.InvalidArgumentError, match=f"{name}: not an array of token ids"):
            rows(tmp_path / name)
    with pytest.raises(qzc.FileAccessError, match="no such file"):
        rows(tmp_path / "missing.npy")


def test_a_matrix_is_windows_already(tmp_path: Path) -> None:
    assert rows(ids(tmp_path / "a.npy", [[1, 2, 3, 4], [5, 6, 7, 8]])).tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]


def test_special_tokens(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("3 4 5 6 7 8 9")

    def cut(encoder: bool, special: bool | None, path: Path = text) -> list[list[int]]:
        found: list[list[int]] = read_windows([path], WindowOptions(9, 4, special), encoder, Words).ids.tolist()
        return found

    assert cut(True, None) == [[101, 3, 4, 102], [101, 5, 6, 102], [101, 7, 8, 102]]
    assert cut(True, False) == cut(False, None) == [[3, 4, 5, 6]]
    assert cut(False, True) == [[1, 3, 4, 5], [1, 6, 7, 8]]
    assert cut(True, True, ids(tmp_path / "a.npy", [3, 4, 5])) == [[101, 3, 4, 102]]
    assert "<101> ... <102>" in read_windows([text], WindowOptions(9, 4), True, Words).tokenization
    with pytest.raises(qzc.InvalidArgumentError, match="no room"):
        read_windows([text], WindowOptions(9, 2), True, Words)


@pytest.mark.parametrize("line", [1, 7, 100_000])
def test_a_long_text_is_tokenized_as_far_as_it_is_used(line: int, tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    words = [str(i) for i in range(50_000)]
    text.write_text("\n".join(" ".join(words[i : i + line]) for i in range(0, len(words), line)))
    tokenizer = Words()
    found = read_windows([text], WindowOptions(5, 200), False, lambda: tokenizer)
    assert found.ids.ravel().tolist() == list(range(1000))
    assert tokenizer.given < 6 * CHARACTERS * 1000 or line == 100_000  # no line ends before the end of the text


def test_text_must_be_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"1 2 3\xff")
    (tmp_path / "empty.txt").touch()
    for name, message in (("a.txt", "not UTF-8 text .byte 5"), ("empty.txt", "0 tokens, not enough")):
        with pytest.raises(qzc.InvalidArgumentError, match=message):
            read_windows([tmp_path / name], WindowOptions(), False, Words)


def test_the_hash_is_of_the_ids_that_are_used(tmp_path: Path) -> None:
    long = ids(tmp_path / "a.npy", np.arange(8, dtype=np.uint16))
    short = ids(tmp_path / "b.npy", np.arange(9, dtype=np.int64))
    other = ids(tmp_path / "c.npy", np.arange(1, 9))
    hashes = [read_windows([path], WindowOptions(2, 4), False, no_tokenizer).hash for path in (long, short, other)]
    assert hashes[0] == hashes[1] != hashes[2] and len(hashes[0]) == 16


def test_options_without_meaning() -> None:
    for count, length in ((0, 4), (4, 1)):
        with pytest.raises(qzc.InvalidArgumentError):
            WindowOptions(count, length)
    with pytest.raises(qzc.InvalidArgumentError, match="no text"):
        rows()


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_without_the_extra_it_is_named(
    missing: str, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    text = ids(tmp_path / "a.npy", np.arange(600))
    with pytest.raises(qzc.UnsupportedError, match=r"pip install 'qzc\[hf\]'"):
        calibrate(model_folder, [text], tmp_path / "s")
    with pytest.raises(qzc.UnsupportedError, match=r"pip install 'qzc\[hf\]'"):
        evaluate(model_folder, [text])
    assert files_in(tmp_path) == {"a.npy"}


@pytest.mark.parametrize("command", ["calibrate", "eval"])
def test_checkpoints_that_cannot_be_read(command: str, model_file: Path, tmp_path: Path) -> None:
    """Found out before anything of the extra is needed."""
    text = ids(tmp_path / "a.npy", np.arange(600))
    whole = qzc.pack(model_file, tmp_path / "model.qzc").output.read_bytes()
    (tmp_path / "empty").mkdir()
    cases = [(tmp_path / "missing", 1, "no such file"), (tmp_path / "empty", 2, "no weights")]
    for size in (0, 9, 5000, len(whole) - 1):
        (tmp_path / f"{size}.qzc").write_bytes(whole[:size])
        cases.append((tmp_path / f"{size}.qzc", 3, f"{size}.qzc"))
    cases.append((tmp_path / "model.qzc", 2, "config.json"))
    before = files_in(tmp_path)
    for path, code, message in cases:
        more: list[Argument] = ["-o", tmp_path / "out"] if command == "calibrate" else []
        failed = inside(command, path, text, *more)
        assert (failed.code, message in failed.error, failed.raw) == (code, True, b""), (path, failed)
    assert files_in(tmp_path) == before
