"""`.qzc` files with tensors of all kinds, as the real writer makes them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from qzc.codec.palette import find_palette, indices
from qzc.codec.planes import PLAIN, EncodedTensor, encode_bytes, encode_palette, encode_scaled, encode_tensor
from qzc.codec.rate_chunks import encode_rate
from qzc.codec.rate_tensor import RateTensor
from qzc.codec.records import BYTES, Records
from qzc.codec.scaled_palette import ScaledPalette, fit, split
from qzc.codec.tensor import QuantizedTensor
from qzc.formats.dtypes import file_bytes, safetensors_dtype
from qzc.formats.profile import CodedTensor, Profile, SourceFile
from qzc.formats.rate_entry import rate_side
from qzc.formats.writer import UncodedTensor, Writer
from qzc.quantize.rate import bank_for


@dataclass(frozen=True)
class Lossless:
    """A tensor to be coded bit by bit. palette: by its values; group: with a scale for so many elements. base: the bytes that
    it is a delta to.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes
    records: Records = BYTES
    palette: bool = False
    base: bytes | None = None
    group: int = 0

    def scaled(self) -> ScaledPalette:
        palette = fit(np.frombuffer(self.data, np.uint8), self.dtype, self.group)
        assert palette is not None
        return palette

    def values(self) -> NDArray[np.uint8]:
        """uint8 [values, bytes of each]"""
        palette = find_palette(np.frombuffer(self.data, np.uint8), self.records.nbytes)
        assert palette is not None
        return palette

    def entry(self) -> CodedTensor:
        if self.group:
            size, count, records = len(self.data), len(self.scaled().values), self.scaled().records
            return CodedTensor(self.dtype, self.shape, None, records, size, count, group=self.group)
        return CodedTensor(
            self.dtype, self.shape, None, self.records, len(self.data), len(self.values()) if self.palette else 0
        )

    def encode(self, coder: str, chunk_codes: int) -> EncodedTensor:
        data = np.frombuffer(self.data, np.uint8)
        if self.group:
            return encode_scaled(split(data, self.scaled()), data.size, self.scaled(), coder, chunk_codes)
        if self.palette:
            return encode_palette(indices(data, self.values()), data.size, self.values(), coder, chunk_codes)
        base = None if self.base is None else np.frombuffer(self.base, np.uint8)
        return encode_bytes(data, self.records, (coder,) * len(self.records.fields), chunk_codes, base=base)


@dataclass(frozen=True)
class Source:
    """The file that a `.qzc` file is made from. offsets: where the tensors lie in it, ties included."""

    kind: Literal["safetensors", "gguf"]
    data: bytes
    offsets: Mapping[str, int]

    def rest(self, sizes: Mapping[str, int]) -> bytes:
        """All bytes that belong to no tensor."""
        rest, at = b"", 0
        for name in sorted(self.offsets, key=lambda name: (self.offsets[name], sizes[name])):
            rest += self.data[at : self.offsets[name]]
            at = self.offsets[name] + sizes[name]
        return rest + self.data[at:]


Tensors = Mapping[str, QuantizedTensor | RateTensor | Lossless | NDArray[Any]]


@dataclass(frozen=True)
class Plan:
    """How `build` writes a file. coders: of single tensors, where it is not `coder`."""

    writer: str = "a test"
    coder: str = "ans"
    coders: Mapping[str, str] = field(default_factory=dict)
    chunk_codes: int = 512
    ties: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] | None = None
    source: Source | None = None


def build(tensors: Tensors, plan: Plan) -> bytes:
    """The file."""
    uncoded, coded = {}, {}
    sizes: dict[str, int] = {}
    rated = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, RateTensor)}
    bank = bank_for(list(rated.values())) if rated else None
    side = rate_side(rated, bank) if bank else None
    for name, tensor in tensors.items():
        if isinstance(tensor, RateTensor):
            assert side is not None
            coded[name] = CodedTensor(tensor.dtype, tensor.shape, None, BYTES, rate=side.entries[name])
        elif isinstance(tensor, QuantizedTensor):
            records = PLAIN[tensor.scale.dtype.itemsize]
            coded[name] = CodedTensor(tensor.dtype, tensor.shape, tensor.args, records)
        elif isinstance(tensor, Lossless):
            coded[name] = tensor.entry()
            sizes[name] = len(tensor.data)
        else:
            uncoded[name] = UncodedTensor(safetensors_dtype(tensor.dtype), tensor.shape, tensor.nbytes)
            sizes[name] = tensor.nbytes
    bases = any(isinstance(tensor, Lossless) and tensor.base is not None for tensor in tensors.values())
    source, described = plan.source, None
    if source is not None:
        described = SourceFile(source.kind, len(source.data), xxhash.xxh3_64_intdigest(source.data))
    metadata = dict(plan.metadata) if plan.metadata else None
    base = {"name": "the base"} if bases else {}
    profile = Profile(coded, dict(plan.ties), metadata, plan.writer, described, base)
    maps = [
        name
        for name, tensor in tensors.items()
        if isinstance(tensor, QuantizedTensor) and not (tensor.row_class is None and tensor.column_class is None)
    ]
    stream = io.BytesIO()
    writer = Writer(stream, profile, uncoded, chunk_codes=plan.chunk_codes, class_maps=maps, side=side)
    for name in writer.names:
        tensor, coder = tensors[name], plan.coders.get(name, plan.coder)
        if isinstance(tensor, RateTensor):
            assert bank is not None and side is not None
            writer.write_rate(name, encode_rate(tensor, side.entries[name].wide, bank, plan.chunk_codes))
        elif isinstance(tensor, QuantizedTensor):
            writer.write_quantized(name, encode_tensor(tensor, coder, plan.chunk_codes), tensor)
        elif isinstance(tensor, Lossless):
            digest = None if tensor.base is None else xxhash.xxh3_64_intdigest(tensor.base)
            writer.write_lossless(name, tensor.encode(coder, plan.chunk_codes), digest)
        else:
            writer.write_uncoded(name, [file_bytes(tensor)])
    if source is None:
        writer.finish()
    else:
        sizes |= {name: sizes[target] for name, target in plan.ties.items()}
        writer.finish(source.rest(sizes), source.offsets)
    return stream.getvalue()
