"""What belongs to a checkpoint: single files, folders, shards with an index, and what is left behind."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from qzc.codec.errors import CorruptionError, FileAccessError, InvalidArgumentError, QzcError, UnsupportedError
from qzc.formats.checkpoint import is_qzc, open_checkpoint, tensor_names
from qzc.formats.header import Header, Member, build_header
from tests.malformed import GOOD, MALFORMED

INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def save(path: Path, *names: str) -> None:
    save_file({name: np.ones(3, np.float32) for name in names}, path)


def save_qzc(path: Path, coded: tuple[str, ...], plain: tuple[str, ...] = (), ties: str | None = None) -> None:
    """The header of a .qzc file, with tensors of no elements."""
    members = [Member(name, "F32", (0,), 0, 0) for name in plain]
    members += [
        Member(f"{name}.qzc.{part}", "U8", (0,), 0, 0) for name in coded for part in ("payload", "chunks", "scale")
    ]
    members.append(Member("qzc.checksums", "U8", (0,), 0, 0))
    metadata = {"format": "qzc", "qzc.version": "0.1"} | ({} if ties is None else {"qzc.ties": ties})
    path.write_bytes(build_header(metadata, members))


def write_index(folder: Path, weight_map: Any, name: str = INDEX) -> None:
    (folder / name).write_text(json.dumps({"metadata": {"total_size": 24}, "weight_map": weight_map}))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    save(folder / SHARDS[0], "a", "b")
    save(folder / SHARDS[1], "c")
    write_index(folder, {"a": SHARDS[0], "b": SHARDS[0], "c": SHARDS[1]})
    (folder / "config.json").write_text("{}")
    return folder


def names(paths: tuple[Path, ...], root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


def test_single_file(model_file: Path) -> None:
    checkpoint = open_checkpoint(str(model_file))
    assert checkpoint.files == (model_file,) and checkpoint.root == model_file
    assert checkpoint.side_files == () and checkpoint.index is None and not checkpoint.is_folder


def test_folder_of_one_file(model_folder: Path) -> None:
    checkpoint = open_checkpoint(model_folder)
    assert names(checkpoint.files, model_folder) == ["model.safetensors"]
    assert "config.json" in names(checkpoint.side_files, model_folder)
    assert checkpoint.skipped == () and checkpoint.index is None and checkpoint.is_folder


def test_shards_with_index(sharded: Path) -> None:
    checkpoint = open_checkpoint(sharded)
    assert names(checkpoint.files, sharded) == list(SHARDS)
    assert names(checkpoint.side_files, sharded) == ["config.json"]
    assert checkpoint.index_file == sharded / INDEX
    assert checkpoint.index is not None and checkpoint.index["metadata"] == {"total_size": 24}


def test_shards_without_index(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    checkpoint = open_checkpoint(sharded)
    assert names(checkpoint.files, sharded) == list(SHARDS) and checkpoint.index is None


def test_relative_paths(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sharded)
    for path in (".", INDEX, f"./{INDEX}"):
        checkpoint = open_checkpoint(path)
        assert [str(file) for file in checkpoint.files] == list(SHARDS) and checkpoint.is_folder
        assert [str(file) for file in checkpoint.side_files] == ["config.json"]


def test_files_that_are_not_in_the_index_are_skipped(sharded: Path) -> None:
    save(sharded / "consolidated.safetensors", "a", "b", "c")
    write_index(sharded, {}, "model.safetensors.index.fp16.json")
    checkpoint = open_checkpoint(sharded)
    assert names(checkpoint.files, sharded) == list(SHARDS)
    assert names(checkpoint.skipped, sharded) == ["consolidated.safetensors", "model.safetensors.index.fp16.json"]


def test_index_of_a_variant(sharded: Path) -> None:
    (sharded / INDEX).rename(sharded / "model.safetensors.index.qzc.json")
    assert open_checkpoint(sharded).index_file == sharded / "model.safetensors.index.qzc.json"


def test_two_indexes(sharded: Path) -> None:
    write_index(sharded, {"c": SHARDS[1]}, "other.safetensors.index.json")
    with pytest.raises(InvalidArgumentError, match=r"more than one index, model.* and other"):
        open_checkpoint(sharded)
    checkpoint = open_checkpoint(sharded / "other.safetensors.index.json")
    assert names(checkpoint.files, sharded) == [SHARDS[1]] and checkpoint.is_folder
    assert names(checkpoint.skipped, sharded) == [SHARDS[0], INDEX]


def test_side_files(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors", "a")
    kept = [
        "1_Pooling/config.json", "2_Dense/pytorch_model.bin", "3_Dense/model.safetensors", "README.md", "spiece.model",
        "tokenizer.json", "training_args.bin", "vocab.txt",
    ]  # fmt: skip
    left = [
        "3_Dense/pytorch_model.bin", "flax_model.msgpack", "model.Q4.gguf", "onnx/model.onnx", "openvino/openvino_model.bin",
        "optimizer.pt", "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json", "tf_model.h5",
    ]  # fmt: skip
    hidden = [".git/config", ".cache/huggingface/x", "sub/.hidden/y", ".model.qzc.17-abc.tmp"]
    for name in kept + left + hidden:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_bytes(GOOD if name.endswith(".safetensors") else b"x")
    checkpoint = open_checkpoint(tmp_path)
    assert names(checkpoint.files, tmp_path) == ["model.safetensors"]
    assert names(checkpoint.side_files, tmp_path) == kept
    assert names(checkpoint.skipped, tmp_path) == left


@pytest.mark.skipif(os.name != "posix", reason="needs links and pipes")
def test_links_and_pipes(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    save(blobs / "1", "a")
    (blobs / "2").write_text("{}")
    (snapshot / "model.safetensors").symlink_to(blobs / "1")
    (snapshot / "config.json").symlink_to(blobs / "2")
    (snapshot / "gone.txt").symlink_to(blobs / "3")
    (snapshot / "loop").symlink_to(snapshot)
    os.mkfifo(snapshot / "pipe.safetensors")
    checkpoint = open_checkpoint(snapshot)
    assert names(checkpoint.files, snapshot) == ["model.safetensors"]
    assert names(checkpoint.side_files, snapshot) == ["config.json"]
    assert names(checkpoint.skipped, snapshot) == ["gone.txt", "pipe.safetensors"]


def test_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InvalidArgumentError, match="the folder has no weights"):
        open_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
    with pytest.raises(UnsupportedError, match=r"but pytorch_model\.bin; convert it to safetensors first"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("start", "what"),
    [(b"PK\x03\x04" + bytes(20), "PyTorch"), (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j", "PyTorch")],
)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.safetensors"])
def test_other_formats(tmp_path: Path, start: bytes, what: str, name: str) -> None:
    (tmp_path / name).write_bytes(start)
    with pytest.raises(UnsupportedError, match=f"a {what}.* file; convert it to safetensors first"):
        open_checkpoint(tmp_path / name)


def test_a_header_length_that_looks_like_a_pickle(tmp_path: Path) -> None:
    header = build_header(None, [], align=8, reserve=0x280 + 8)
    assert header[:2] == b"\x80\x02"
    (tmp_path / "a").write_bytes(header)
    assert open_checkpoint(tmp_path / "a").files == (tmp_path / "a",)


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileAccessError, match="no such file"):
        open_checkpoint(tmp_path / "none")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(FileAccessError, match="not a regular file"):
            open_checkpoint(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff{}", "is not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[]", "no weight_map"),
        (b"{}", "no weight_map"),
        (b'{"weight_map": []}', "no weight_map"),
        (b'{"weight_map": {}}', "or an empty one"),
        (b'{"weight_map": {"a": 1}}', "tensor 'a' is not the name of a file"),
        (b'{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "a key is there twice"),
        (b'{"weight_map": {"a": "../x.safetensors"}}', "not the name of a shard in the same folder"),
        (b'{"weight_map": {"a": "/etc/x.safetensors"}}', "not the name of a shard in the same folder"),
        (b'{"weight_map": {"a": "sub\\\\x.safetensors"}}', "not the name of a shard in the same folder"),
        (b'{"weight_map": {"a": "C:x.safetensors"}}', "not the name of a shard in the same folder"),
        (b'{"weight_map": {"a": "x\\u0000.safetensors"}}', "not the name of a shard in the same folder"),
        (b'{"weight_map": {"a": ""}}', "not the name of a shard in the same folder"),
    ],
)
def test_bad_indexes(sharded: Path, text: bytes, message: str) -> None:
    (sharded / INDEX).write_bytes(text)
    with pytest.raises(CorruptionError, match=message) as caught:
        open_checkpoint(sharded)
    assert str(caught.value).startswith(f"{sharded / INDEX}: ") and "\n" not in str(caught.value)


def lose_shard(folder: Path) -> None:
    (folder / SHARDS[1]).unlink()


def lose_tensor(folder: Path) -> None:
    save(folder / SHARDS[0], "a")


def swap_tensor(folder: Path) -> None:
    write_index(folder, {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[1]})


def double_tensor(folder: Path) -> None:
    save(folder / SHARDS[1], "c", "b")


def cut_shard(folder: Path) -> None:
    (folder / SHARDS[1]).write_bytes((folder / SHARDS[1]).read_bytes()[:-1])


def foreign_shard(folder: Path) -> None:
    (folder / SHARDS[1]).write_bytes(b"PK\x03\x04" + bytes(30))


def bin_shard(folder: Path) -> None:
    write_index(folder, {"a": "pytorch_model.bin"})


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lose_shard, FileAccessError, f"shard {SHARDS[1]} is missing"),
        (lose_tensor, CorruptionError, f"tensor 'b' is not in {SHARDS[0]}, nor in any other shard"),
        (swap_tensor, CorruptionError, f"tensor 'b' is in {SHARDS[0]}, not in {SHARDS[1]}"),
        (double_tensor, CorruptionError, f"{SHARDS[1]}: tensor 'b' is also in {SHARDS[0]}"),
        (cut_shard, CorruptionError, f"{SHARDS[1]}: the file ends after 11 of 12 bytes of data"),
        (foreign_shard, UnsupportedError, f"{SHARDS[1]}: this is a PyTorch"),
        (bin_shard, UnsupportedError, "shard 'pytorch_model.bin' is not a .safetensors or .qzc file"),
    ],
)
def test_damaged_folders(sharded: Path, damage: Callable[[Path], None], error: type[QzcError], message: str) -> None:
    damage(sharded)
    with pytest.raises(error) as caught:
        open_checkpoint(sharded)
    assert message in str(caught.value)


def test_tensor_in_two_files_without_index(tmp_path: Path) -> None:
    save(tmp_path / "model.fp16.safetensors", "a")
    save(tmp_path / "model.safetensors", "a")
    with pytest.raises(CorruptionError, match=r"'a' is also in model\.fp16\.safetensors; give the path of one file"):
        open_checkpoint(tmp_path)


def test_folder_of_qzc_files(tmp_path: Path) -> None:
    save_qzc(tmp_path / "1.qzc", ("a", "b"), ("norm",))
    save_qzc(tmp_path / "2.safetensors", ("c",), ties='{"head":"c"}')
    write_index(tmp_path, {"a": "1.qzc", "b": "1.qzc", "norm": "1.qzc", "c": "2.safetensors", "head": "2.safetensors"})
    checkpoint = open_checkpoint(tmp_path)
    assert names(checkpoint.files, tmp_path) == ["1.qzc", "2.safetensors"]
    assert all(is_qzc(path) for path in checkpoint.files)
    save_qzc(tmp_path / "1.qzc", ("a",), ("norm",))
    with pytest.raises(CorruptionError, match=r"tensor 'b' is not in 1\.qzc"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("ties", ["", "[" * 100_000, "[1]", "null", '{"x":'])
def test_names_of_a_broken_qzc(ties: str) -> None:
    header = Header({"format": "qzc", "qzc.ties": ties}, {"a.qzc.payload": Member("a.qzc.payload", "U8", (0,), 0, 0)})
    assert tensor_names(header) == {"a"}


def test_is_qzc_goes_by_content(tmp_path: Path, model_file: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_qzc(path, ("a",))
    assert is_qzc(path) and not is_qzc(model_file)
    path.write_bytes(path.read_bytes()[:60])
    assert is_qzc(path)  # a .qzc that is cut off is still one
    path.write_bytes(build_header({"other": "x", "format": "qzc"}, []))
    assert is_qzc(path)
    for case in MALFORMED.values():
        path.write_bytes(case.data)
        assert not is_qzc(path)
    with pytest.raises(FileAccessError):
        is_qzc(tmp_path)
