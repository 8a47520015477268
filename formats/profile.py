"""What a `.qzc` file is made of: member names, metadata keys and their JSON (SPEC sections 1 to 3)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from math import prod
from typing import Any, NoReturn, cast

from ..codec.errors import CorruptionError, UnsupportedError
from ..codec.tensor import QuantizationArgs

FORMAT = "qzc"
VERSION = "0.1"
CHECKSUMS = "qzc.checksums"
BANK_ROW_NBYTES = {"ans16": 16, "ans256": 384, "huffman": 128}
"""Bytes of a table of each bank, in the order of the banks in a file."""
SCALE_DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
CODED_DTYPES = ("F64", "F32", "F16", "BF16")
"""What a coded tensor can have been before quantization: the dtypes that it can be turned back into."""

_MAX_ELEMENTS = 1 << 48  # above any tensor, and below where sizes in bits leave 64 bits
_MAX_DIMENSIONS = 64  # NumPy's limit


def bank_member(bank: str) -> str:
    return f"qzc.tables.{bank}"


def part(name: str, what: str) -> str:
    """The member that holds one part of a coded tensor: `payload`, `chunks`, `scale`, `row_class`, `column_class`."""
    return f"{name}.qzc.{what}"


def is_reserved(name: str) -> bool:
    """Whether a tensor must not have this name: it would be taken for a part of the format (SPEC section 1)."""
    return name in ("qzc", "__metadata__") or name.startswith("qzc.") or name.endswith(".qzc") or ".qzc." in name


@dataclass(frozen=True)
class CodedTensor:
    """What the header says of a coded tensor: dtype and shape before quantization, and its grid."""

    dtype: str
    shape: tuple[int, ...]
    args: QuantizationArgs


@dataclass(frozen=True)
class Profile:
    """The decoded `__metadata__` of a `.qzc` file."""

    coded: dict[str, CodedTensor]
    ties: dict[str, str]
    source_metadata: dict[str, str] | None
    writer: str

    def to_metadata(self) -> dict[str, str]:
        """The strings that go into `__metadata__`; the same profile gives the same strings."""
        grids: list[QuantizationArgs] = []
        coded: dict[str, Any] = {}
        for name in sorted(self.coded):
            tensor = self.coded[name]
            if tensor.args not in grids:
                grids.append(tensor.args)
            coded[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "grid": grids.index(tensor.args)}
        metadata = {"format": FORMAT, "qzc.version": VERSION, "qzc.writer": self.writer, "qzc.coded": _dump(coded)}
        if grids:
            metadata["qzc.grids"] = _dump([asdict(grid) for grid in grids])
        if self.ties:
            metadata["qzc.ties"] = _dump(dict(sorted(self.ties.items())))
        if self.source_metadata is not None:
            metadata["qzc.source"] = _dump(dict(sorted(self.source_metadata.items())))
        return metadata

    def grids_by_name(self) -> str:
        """JSON: the grid of every coded tensor under its name, for files that hold the integers in plain tensors."""
        return _dump({name: asdict(self.coded[name].args) for name in sorted(self.coded)})

    @classmethod
    def from_metadata(cls, metadata: dict[str, str], path: str) -> Profile:
        """Raises UnsupportedError for another version, CorruptionError for anything that is not as it must be."""
        if metadata.get("format") != FORMAT:
            raise UnsupportedError(f"{path}: not a .qzc file (its metadata does not say format: qzc)")
        version = metadata.get("qzc.version", "none")
        if version != VERSION:
            raise UnsupportedError(f"{path}: format version {_shown(version)}; this qzc reads version {VERSION}")
        if "qzc.writer" not in metadata:
            raise CorruptionError(f"{path}: metadata has no qzc.writer")
        grids = [_grid(value, path) for value in _load(metadata, "qzc.grids", list, path)]
        coded = {
            name: _coded(name, value, grids, path) for name, value in _load(metadata, "qzc.coded", dict, path).items()
        }
        ties = _strings(_load(metadata, "qzc.ties", dict, path), "qzc.ties", path)
        source = None
        if "qzc.source" in metadata:
            source = _strings(_load(metadata, "qzc.source", dict, path), "qzc.source", path)
        return cls(coded, ties, source, metadata["qzc.writer"])


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _shown(value: object) -> str:
    """For a one-line message: as it is if it is a short and plain text, else escaped and cut."""
    if isinstance(value, str) and len(value) <= 40 and value.isprintable():
        return value
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}.."


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate key")
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _load(metadata: dict[str, str], key: str, kind: type, path: str) -> Any:
    text = metadata.get(key)
    if text is None:
        if key == "qzc.coded":
            raise CorruptionError(f"{path}: metadata has no {key}")
        return kind()
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        if "\\u" in text:
            _dump(value).encode()  # fails for half of a surrogate pair: such a name could not be written or printed
    except (ValueError, RecursionError) as error:
        raise CorruptionError(f"{path}: metadata {key} is not valid JSON ({error})") from None
    if not isinstance(value, kind):
        raise CorruptionError(f"{path}: metadata {key} is not a JSON {'array' if kind is list else 'object'}")
    return value


def _strings(value: dict[str, Any], key: str, path: str) -> dict[str, str]:
    if not all(isinstance(item, str) for item in value.values()):
        raise CorruptionError(f"{path}: metadata {key} has a value that is not a string")
    return cast("dict[str, str]", value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _grid(value: Any, path: str) -> QuantizationArgs:
    keys = {"num_bits", "symmetric", "strategy", "group_size", "scale_method", "scale_dtype"}
    if not isinstance(value, dict) or not keys <= value.keys():
        raise CorruptionError(f"{path}: a grid must have the keys {', '.join(sorted(keys))}")
    if not _whole(value["num_bits"]) or not isinstance(value["symmetric"], bool):
        raise CorruptionError(f"{path}: a grid's num_bits must be a whole number and symmetric true or false")
    if value["group_size"] is not None and not _whole(value["group_size"]):
        raise CorruptionError(f"{path}: a grid's group_size must be a whole number or null")
    try:
        return QuantizationArgs(**{key: value[key] for key in keys})
    except (ValueError, TypeError) as error:
        raise CorruptionError(f"{path}: bad grid: {error}") from None


def _coded(name: str, value: Any, grids: list[QuantizationArgs], path: str) -> CodedTensor:
    if not isinstance(value, dict) or not {"dtype", "shape", "grid"} <= value.keys():
        raise CorruptionError(f"{path}: coded tensor {name!r} needs dtype, shape and grid")
    dtype, shape, grid = value["dtype"], value["shape"], value["grid"]
    if dtype not in CODED_DTYPES:
        raise CorruptionError(
            f"{path}: coded tensor {name!r} has dtype {_shown(dtype)}, not one of {', '.join(CODED_DTYPES)}"
        )
    if not isinstance(shape, list) or not all(_whole(d) and d >= 0 for d in shape):
        raise CorruptionError(f"{path}: coded tensor {name!r} has a shape that is not a list of sizes")
    # Dimensions of 0 are left out of the product: libraries multiply the others even where a tensor is empty.
    if len(shape) > _MAX_DIMENSIONS or prod(d or 1 for d in shape) >= _MAX_ELEMENTS:
        raise CorruptionError(f"{path}: coded tensor {name!r} has an impossible shape")
    if not _whole(grid) or not 0 <= grid < len(grids):
        raise CorruptionError(f"{path}: coded tensor {name!r} names grid {_shown(grid)} of {len(grids)}")
    return CodedTensor(dtype, tuple(shape), grids[grid])
