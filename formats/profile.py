"""What a `.qzc` file is made of: member names, metadata keys and their JSON (SPEC sections 1 to 4)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any, Literal, NoReturn, cast

from ..codec.errors import CorruptionError, UnsupportedError
from ..codec.records import BYTES, Records
from ..codec.scaled_palette import DTYPES as SCALABLE
from ..codec.scaled_palette import MAX_GROUP, MIN_GROUP
from ..codec.small_records import ROTATABLE
from ..codec.tensor import QuantizationArgs
from .dtypes import DTYPE_BITS
from .header import MAX_DTYPE
from .rate_entry import RateEntry
from .record_entry import read_records, records_json

FORMAT = "qzc"
VERSION = "0.2"
CHECKSUMS = "qzc.checksums"
CHUNKS = "qzc.chunks"
CLASSES, VECTORS = "qzc.tables.classes", "qzc.vectors"
REST, OFFSETS = "qzc.source.rest", "qzc.source.offsets"
BANK_ROW_NBYTES = {"ans16": 16, "ans256": 384, "huffman": 128, "escape16": 32, "short16": 24}
"""Bytes of a table of each bank, in the order of the banks in a file."""
QUANTIZED_DTYPES = ("F64", "F32", "F16", "BF16")
"""What a quantized tensor can have been before: the dtypes that it can be turned back into."""
SCALE_DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
MAX_PALETTE = 256

_MAX_ELEMENTS = 1 << 48  # above any tensor, and below where sizes in bits leave 64 bits
_MAX_DIMENSIONS = 64  # NumPy's limit
_MAX_NBYTES = 1 << 48
_KINDS = {"grid": {"scale"}, "records": {"nbytes", "palette", "group", "base"}, "rate": set[str]()}
_SOURCE_KINDS = ("safetensors", "gguf")


def bank_member(bank: str) -> str:
    return f"qzc.tables.{bank}"


def part(name: str, what: str) -> str:
    """The member that holds one part of a coded tensor: `payload`, `row_class`, `column_class`."""
    return f"{name}.qzc.{what}"


def is_reserved(name: str) -> bool:
    """Whether a tensor must not have this name: it would be taken for a part of the format (SPEC section 1)."""
    return name in ("qzc", "__metadata__") or name.startswith("qzc.") or name.endswith(".qzc") or ".qzc." in name


@dataclass(frozen=True)
class CodedTensor:
    """What the header says of a coded tensor.

    dtype, shape: before coding. args: its grid, None if it is lossless. records: how its scales, or the bytes of a lossless
    tensor, are split. nbytes, palette, base: of lossless tensors only: their size, how many values they have (0: these are
    not listed), and the XXH3-64 of the base's tensor that their deltas refer to (None: they have none). group: how many
    elements share a scale that the values are multiplied by (0: these have none).
    """

    dtype: str
    shape: tuple[int, ...]
    args: QuantizationArgs | None
    records: Records
    nbytes: int = 0
    palette: int = 0
    base: int | None = None
    group: int = 0
    rate: RateEntry | None = None

    @property
    def is_quantized(self) -> bool:
        """Whether it stands for floats that it does not have to the last bit."""
        return self.args is not None or self.rate is not None


@dataclass(frozen=True)
class SourceFile:
    """The file that a `.qzc` was packed from, for restoring it byte by byte. xxh3: XXH3-64 of all its bytes."""

    kind: Literal["safetensors", "gguf"]
    nbytes: int
    xxh3: int


@dataclass(frozen=True)
class Profile:
    """The decoded `__metadata__` of a `.qzc` file. base: free text about the base of its deltas, by key."""

    coded: dict[str, CodedTensor]
    ties: dict[str, str]
    source_metadata: dict[str, str] | None
    writer: str
    source_file: SourceFile | None = None
    base: dict[str, str] = field(default_factory=dict)

    def to_metadata(self) -> dict[str, str]:
        """The strings that go into `__metadata__`; the same profile gives the same strings."""
        names = sorted(self.coded)
        grids = _unique_in_order(self.coded[name].args for name in names if self.coded[name].args)
        records = _unique_in_order(self.coded[name].records for name in names if not self.coded[name].rate)
        coded = {name: _entry(self.coded[name], grids, records) for name in names}
        metadata = {"format": FORMAT, "qzc.version": VERSION, "qzc.writer": self.writer, "qzc.coded": _dump(coded)}
        if grids:
            metadata["qzc.grids"] = _dump([asdict(grid) for grid in grids])
        if records:
            metadata["qzc.records"] = _dump([records_json(item) for item in records])
        if self.ties:
            metadata["qzc.ties"] = _dump(dict(sorted(self.ties.items())))
        if self.source_metadata is not None:
            metadata["qzc.source"] = _dump(dict(sorted(self.source_metadata.items())))
        if self.source_file is not None:
            source = self.source_file
            metadata["qzc.source_file"] = _dump(
                {"kind": source.kind, "nbytes": source.nbytes, "xxh3": _hex(source.xxh3)}
            )
        if self.base:
            metadata["qzc.base"] = _dump(dict(sorted(self.base.items())))
        return metadata

    def grids_by_name(self) -> str:
        """JSON: the grid of every quantized tensor under its name, for files that hold the integers in plain tensors."""
        grids = {name: tensor.args for name, tensor in sorted(self.coded.items()) if tensor.args}
        return _dump({name: asdict(args) for name, args in grids.items()})

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
        records = [read_records(value, path) for value in _load(metadata, "qzc.records", list, path)]
        coded = {
            name: _coded(name, value, grids, records, path)
            for name, value in _load(metadata, "qzc.coded", dict, path).items()
        }
        ties = _strings(_load(metadata, "qzc.ties", dict, path), "qzc.ties", path)
        source = None
        if "qzc.source" in metadata:
            source = _strings(_load(metadata, "qzc.source", dict, path), "qzc.source", path)
        source_file = None
        if "qzc.source_file" in metadata:
            source_file = _source_file(_load(metadata, "qzc.source_file", dict, path), path)
            if any(tensor.is_quantized for tensor in coded.values()):
                raise CorruptionError(f"{path}: qzc.source_file beside quantized tensors, which cannot be restored")
        base = _strings(_load(metadata, "qzc.base", dict, path), "qzc.base", path)
        if ("qzc.base" in metadata) != any(tensor.base is not None for tensor in coded.values()):
            raise CorruptionError(f"{path}: metadata must have qzc.base where tensors have a base, and only there")
        return cls(coded, ties, source, metadata["qzc.writer"], source_file, base)


def _unique_in_order(items: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(items))


def _entry(tensor: CodedTensor, grids: list[QuantizationArgs], records: list[Records]) -> dict[str, Any]:
    entry: dict[str, Any] = {"dtype": tensor.dtype, "shape": list(tensor.shape)}
    if tensor.rate:
        return {**entry, "rate": tensor.rate.to_json()}
    index = records.index(tensor.records)
    if tensor.args:
        return {**entry, "grid": grids.index(tensor.args), "scale": index}
    entry["records"] = index
    if _implied_nbytes(tensor.dtype, tensor.shape) is None:
        entry["nbytes"] = tensor.nbytes
    if tensor.palette:
        entry["palette"] = tensor.palette
    if tensor.group:
        entry["group"] = tensor.group
    if tensor.base is not None:
        entry["base"] = _hex(tensor.base)
    return entry


def _hex(value: int) -> str:
    return f"{value:016x}"


def _implied_nbytes(dtype: str, shape: tuple[int, ...]) -> int | None:
    """The size of a tensor of a known dtype; None if the dtype is unknown or the elements do not fill whole bytes."""
    bits = DTYPE_BITS.get(dtype)
    return None if bits is None or prod(shape) * bits % 8 else prod(shape) * bits // 8


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


def _source_file(value: dict[str, Any], path: str) -> SourceFile:
    kind, nbytes = value.get("kind"), value.get("nbytes")
    if not isinstance(kind, str) or kind not in _SOURCE_KINDS:
        raise CorruptionError(f"{path}: qzc.source_file is of the unknown kind {_shown(kind)}")
    if not _whole(nbytes) or not 0 <= cast("int", nbytes) < _MAX_NBYTES:
        raise CorruptionError(f"{path}: qzc.source_file has an impossible size")
    return SourceFile(cast("Any", kind), cast("int", nbytes), _xxh3(value.get("xxh3"), "qzc.source_file", path))


def _xxh3(value: Any, what: str, path: str) -> int:
    if not isinstance(value, str) or len(value) != 16 or not set(value) <= set("0123456789abcdef"):
        raise CorruptionError(f"{path}: the XXH3 of {what} must be 16 hexadecimal digits")
    return int(value, 16)


def _coded(name: str, value: Any, grids: list[QuantizationArgs], records: list[Records], path: str) -> CodedTensor:
    where = f"{path}: coded tensor {name!r}"
    if not isinstance(value, dict) or not {"dtype", "shape"} <= value.keys() or len(value.keys() & _KINDS.keys()) != 1:
        raise CorruptionError(f"{where} needs dtype, shape and one of grid, records and rate")
    kind = next(iter(value.keys() & _KINDS.keys()))
    foreign = sorted(key for other, keys in _KINDS.items() for key in keys & value.keys() if other != kind)
    if foreign:
        raise CorruptionError(f"{where} has {foreign[0]}, which only tensors of the other kind have")
    dtype, shape = value["dtype"], value["shape"]
    if not isinstance(shape, list) or not all(_whole(d) and d >= 0 for d in shape):
        raise CorruptionError(f"{where} has a shape that is not a list of sizes")
    # Dimensions of 0 are left out of the product: libraries multiply the others even where a tensor is empty.
    if len(shape) > _MAX_DIMENSIONS or prod(d or 1 for d in shape) >= _MAX_ELEMENTS:
        raise CorruptionError(f"{where} has an impossible shape")
    if "records" in value:
        return _lossless(where, value, records, path)
    if dtype not in QUANTIZED_DTYPES:
        raise CorruptionError(f"{where} has dtype {_shown(dtype)}, not one of {', '.join(QUANTIZED_DTYPES)}")
    if "rate" in value:
        return CodedTensor(dtype, tuple(shape), None, BYTES, rate=RateEntry.from_json(value["rate"], where))
    args = grids[_number(where, value, "grid", len(grids))]
    scale = records[_number(where, value, "scale", len(records))]
    if scale.nbytes != DTYPE_BITS[SCALE_DTYPES[args.scale_dtype]] // 8 or scale.interleave or scale.gather:
        raise CorruptionError(f"{where} has scales of {args.scale_dtype}, which its records do not fit")
    return CodedTensor(dtype, tuple(shape), args, scale)


def _lossless(where: str, value: dict[str, Any], records: list[Records], path: str) -> CodedTensor:
    dtype, shape = value["dtype"], tuple(value["shape"])
    if not isinstance(dtype, str) or len(dtype) > MAX_DTYPE or not dtype.isascii() or not dtype.isprintable():
        raise CorruptionError(f"{where} has a dtype that is no short name")
    split = records[_number(where, value, "records", len(records))]
    implied = _implied_nbytes(dtype, shape)
    if (implied is None) != ("nbytes" in value):
        raise CorruptionError(f"{where} must say nbytes if dtype and shape do not, and only then")
    nbytes = value["nbytes"] if implied is None else implied
    if not _whole(nbytes) or not 0 <= nbytes < _MAX_NBYTES:
        raise CorruptionError(f"{where} has an impossible size")
    palette = 0
    if "palette" in value:
        palette = _number(where, value, "palette", MAX_PALETTE + 1)
        if not palette or split.nbytes not in ROTATABLE or split != Records(((8, split.nbytes),)) or "base" in value:
            raise CorruptionError(f"{where} has a palette that does not fit")
    group = 0
    if "group" in value:
        group = _number(where, value, "group", MAX_GROUP + 1)
        element = DTYPE_BITS[dtype] // 8 if dtype in SCALABLE else 0
        if group < MIN_GROUP or not palette or split.nbytes != element:
            raise CorruptionError(f"{where} has a group of scales that does not fit")
    if nbytes % split.span:
        raise CorruptionError(f"{where} has {nbytes} bytes, which are no whole number of its records")
    base = _xxh3(value["base"], "a base", path) if "base" in value else None
    return CodedTensor(dtype, shape, None, split, nbytes, palette, base, group)


def _number(where: str, value: dict[str, Any], key: str, count: int) -> int:
    number = value.get(key)
    if not _whole(number) or not 0 <= cast("int", number) < count:
        raise CorruptionError(f"{where}: {key} is {_shown(number)}, not below {count}")
    return cast("int", number)
