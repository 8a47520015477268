"""What belongs to a checkpoint: one file of weights, or a folder with its shards, their index and everything beside them."""

from __future__ import annotations

import fnmatch
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeAlias

from ..codec.errors import CorruptionError, FileAccessError, InvalidArgumentError, UnsupportedError
from .access import naming_os_errors, open_input
from .header import Header, read_file_header

Kind: TypeAlias = Literal["safetensors", "qzc"]

WEIGHT_SUFFIXES = (".safetensors", ".qzc")

# Other copies of the weights: never copied along, or a packed folder would be larger than its source.
_OTHER_FORMATS = (
    "*.gguf", "*.ggml", "*.h5", "*.keras", "*.msgpack", "*.onnx", "*.onnx_data", "*.onnx.data", "*.ot", "*.tflite",
    "*.mlmodel", "openvino_*.bin", "*.nemo", "*.npz",
)  # fmt: skip
# These often are the only weights of a part (2_Dense/pytorch_model.bin): left out only beside safetensors of their own.
_TORCH = (
    "pytorch_model*.bin", "diffusion_pytorch_model*.bin", "adapter_model*.bin", "model*.bin", "*.pt", "*.pth", "*.ckpt",
    "pytorch_model*.bin.index*.json",
)  # fmt: skip
_INDEX = re.compile(r".+\.safetensors\.index(\.[^.]+)?\.json")
_MAX_INDEX_SIZE = 200_000_000

_MAGIC = (
    (b"PK\x03\x04", "a PyTorch (zip) file"),
    (b"\x80\x02", "a PyTorch (pickle) file"),
    (b"\x89HDF", "an HDF5 file"),
)


@dataclass(frozen=True)
class Checkpoint:
    """The files of a checkpoint. All paths are absolute or relative as the path that was opened.

    root: the file or folder that was opened. files: weights, sorted by name, each `.safetensors` or `.qzc` (`is_qzc`
    tells, the name does not), or one `.gguf`. side_files: config, tokenizer and the like, also in subfolders, to be copied unchanged.
    skipped: files that are left behind: weights in other formats or of other variants, things that are not files.
    index: the JSON of `index_file` where the folder has one; its `weight_map` has been compared with the files.
    """

    root: Path
    files: tuple[Path, ...]
    side_files: tuple[Path, ...] = ()
    skipped: tuple[Path, ...] = ()
    index: dict[str, Any] | None = None
    index_file: Path | None = None

    @property
    def is_folder(self) -> bool:
        """Whether a folder was opened, so that a folder should come out."""
        return self.root not in self.files


def open_checkpoint(path: str | os.PathLike[str], prefer: Kind | None = None) -> Checkpoint:
    """Find the weights at `path`: a file, a folder, or the `*.safetensors.index.json` of a folder.

    prefer: in a folder that has both safetensors and .qzc files, take the ones and skip the others; None takes all.
    Hidden files and folders (`.git`, `.cache`) are not looked at. In a folder the headers of all weight files are read.

    Raises FileAccessError, InvalidArgumentError (a folder without weights, two candidates), UnsupportedError (PyTorch,
    HDF5 ...), CorruptionError (a bad index, a shard or tensor that is missing or there twice).
    """
    root = Path(path)
    with naming_os_errors(root, "read"):
        root.stat()
        if root.is_dir():
            return _open_folder(root, None, prefer)
        if _INDEX.fullmatch(root.name):
            return _open_folder(root.parent, root, None)
    _refuse_foreign(root)
    return Checkpoint(root, (root,))


def is_qzc(path: str | os.PathLike[str]) -> bool:
    """Whether the file at `path` says that it is a .qzc file. False also for files that are nothing at all.

    Raises FileAccessError.
    """
    with naming_os_errors(path, "read"), open_input(path) as file:
        if file.read(40)[8:] == b'{"__metadata__":{"format":"qzc",':
            return True  # as our writer begins: also for a file that is cut off, so that its error is that of a .qzc
    try:
        header = read_file_header(path)
    except CorruptionError:
        return False
    return header.metadata.get("format") == "qzc"


def _open_folder(root: Path, index_file: Path | None, prefer: Kind | None) -> Checkpoint:
    files = sorted(_walk(root))
    top = [path for path in files if path.parent == root]
    indexes = [path for path in top if _INDEX.fullmatch(path.name) and path.is_file()]
    weights = [path for path in top if path.name.endswith(WEIGHT_SUFFIXES) and path.is_file()]
    if not weights and not indexes and prefer != "qzc":
        weights = _only_gguf(root, top)
    index_file = index_file or _choose_index(root, indexes, prefer)
    index, shards = (None, _of_kind(weights, prefer)) if index_file is None else _read_index(index_file)
    if not shards:
        _no_weights(root, top)
    _check_tensors(shards, index, index_file)
    of_their_own = {path.parent for path in files if path.name.endswith(WEIGHT_SUFFIXES)}
    side_files: list[Path] = []
    skipped: list[Path] = []
    for path in files:
        if path in shards or path == index_file:
            continue
        other = path in weights or path in indexes or _matches(path, _OTHER_FORMATS)
        other = other or (path.parent in of_their_own and _matches(path, _TORCH))
        (skipped if other or not path.is_file() else side_files).append(path)
    return Checkpoint(root, tuple(shards), tuple(side_files), tuple(skipped), index, index_file)


def _only_gguf(root: Path, top: list[Path]) -> list[Path]:
    """The one GGUF file of a folder without other weights; many are the same model in several sizes."""
    found = [path for path in top if path.name.endswith(".gguf") and path.is_file()]
    if len(found) > 1:
        raise InvalidArgumentError(f"{root}: has {len(found)} GGUF files; give the path of the one you mean")
    return found


def _walk(root: Path) -> Iterator[Path]:
    """All files below `root` but the hidden ones. Links to files are followed (a Hub cache is made of them)."""

    def fail(error: OSError) -> NoReturn:
        raise error

    for folder, subfolders, names in os.walk(root, onerror=fail):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        yield from (Path(folder, name) for name in names if not name.startswith("."))


def _matches(path: Path, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(path.name, pattern) for pattern in patterns)


def _no_weights(root: Path, top: list[Path]) -> NoReturn:
    foreign = [path.name for path in top if _matches(path, (*_TORCH, *_OTHER_FORMATS))]
    if foreign:
        raise UnsupportedError(
            f"{root}: no .safetensors, .gguf or .qzc file, but {foreign[0]}; convert it to safetensors first"
        )
    raise InvalidArgumentError(f"{root}: the folder has no weights (no .safetensors, .gguf or .qzc file)")


def _of_kind(weights: list[Path], prefer: Kind | None) -> list[Path]:
    """Those of the preferred kind, if there are any: a model is often packed to a file beside itself."""
    if prefer is None or len(weights) < 2:
        return weights
    return [path for path in weights if is_qzc(path) == (prefer == "qzc")] or weights


def _choose_index(root: Path, indexes: list[Path], prefer: Kind | None) -> Path | None:
    """The only index, or the only one without a variant (`model.safetensors.index.json`, not `...index.fp16.json`)."""
    packed = [path for path in indexes if path.name.endswith(".safetensors.index.qzc.json")]
    plain = [path for path in indexes if path.name.endswith(".safetensors.index.json")]
    choice = (packed if prefer == "qzc" else []) or plain or indexes
    if len(choice) > 1:
        names = " and ".join(path.name for path in choice[:2])
        raise InvalidArgumentError(f"{root}: more than one index, {names}; give the path of the one you mean")
    return choice[0] if choice else None


def _read_index(path: Path) -> tuple[dict[str, Any], list[Path]]:
    """The index and the paths of its shards, sorted; every shard exists."""

    def fail(what: str) -> NoReturn:
        raise CorruptionError(f"{path}: {what}")

    with naming_os_errors(path, "read"), open_input(path) as file:
        raw = file.read(_MAX_INDEX_SIZE + 1)
    if len(raw) > _MAX_INDEX_SIZE:
        fail(f"the index is larger than {_MAX_INDEX_SIZE:,} bytes")
    try:
        index = json.loads(raw.decode(), object_pairs_hook=_unique)
    except UnicodeDecodeError:
        fail("the index is not UTF-8")
    except RecursionError:
        fail("the index is nested too deeply")
    except ValueError as error:
        fail(f"the index is not JSON ({error})")
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        fail("the index has no weight_map, or an empty one")
    shards: set[str] = set()
    for name, shard in weight_map.items():
        if not isinstance(shard, str):
            fail(f"the weight_map of tensor {name!r} is not the name of a file")
        if shard not in shards:
            _check_shard_name(shard, path)
            shards.add(shard)
    paths = [path.parent / shard for shard in sorted(shards)]
    for shard_path in paths:
        if not shard_path.is_file():
            raise FileAccessError(f"{path}: shard {shard_path.name} is missing")
    return index, paths


def _check_shard_name(shard: str, path: Path) -> None:
    """A shard lies beside its index. Anything else could make a reader open, or a writer replace, a file elsewhere."""
    if not shard or shard.startswith(".") or not shard.isprintable() or re.search(r"[/\\:]", shard):
        raise CorruptionError(f"{path}: {shard!r} is not the name of a shard in the same folder")
    if not shard.endswith(WEIGHT_SUFFIXES):
        raise UnsupportedError(f"{path}: shard {shard!r} is not a .safetensors or .qzc file")


def _check_tensors(shards: list[Path], index: dict[str, Any] | None, index_file: Path | None) -> None:
    """No tensor is in two files, and each is where the index says."""
    places: dict[str, Path] = {}
    for path in shards:
        _refuse_foreign(path)
        if path.name.endswith(".gguf"):
            continue  # the only one
        for name in tensor_names(read_file_header(path)):
            if name in places:
                advice = "" if index else "; give the path of one file, or add an index"
                raise CorruptionError(f"{path}: tensor {name!r} is also in {places[name].name}{advice}")
            places[name] = path
    for name, shard in (index or {}).get("weight_map", {}).items():
        if name not in places:
            raise CorruptionError(f"{index_file}: tensor {name!r} is not in {shard}, nor in any other shard")
        if places[name].name != shard:
            raise CorruptionError(f"{index_file}: tensor {name!r} is in {places[name].name}, not in {shard}")


def tensor_names(header: Header) -> set[str]:
    """The names of the tensors of a safetensors or .qzc file; those of a .qzc file without its parts, with its ties."""
    if header.metadata.get("format") != "qzc":
        return set(header.members)
    names = {name.partition(".qzc.")[0] for name in header.members if not name.startswith("qzc.")}
    try:
        ties = json.loads(header.metadata.get("qzc.ties", "{}"))
    except (ValueError, RecursionError):
        return names  # the reader of .qzc files will say what is wrong with it
    return names | set(ties) if isinstance(ties, dict) else names


def _refuse_foreign(path: Path) -> None:
    with naming_os_errors(path, "read"), open_input(path) as file:
        start = file.read(9)
    for magic, what in _MAGIC:
        # A safetensors file begins with the length of its header, which may look like anything; then comes a brace.
        if start.startswith(magic) and start[8:] != b"{":
            raise UnsupportedError(f"{path}: this is {what}; convert it to safetensors first")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is there twice")
    return result
