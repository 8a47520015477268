"""`qzc.save_file`: tensors in memory to a `.qzc` file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .codec.chunks import CHUNK_CODES
from .codec.coder import coder_for
from .codec.errors import InvalidArgumentError
from .codec.planes import PLAIN, encode_tensor
from .codec.rate_chunks import encode_rate
from .codec.rate_tensor import LevelTensor, RateTensor, codes_of
from .codec.records import BYTES
from .codec.tensor import QuantizedTensor
from .formats.atomic import atomic_writer
from .formats.dtypes import file_bytes, safetensors_dtype
from .formats.profile import CodedTensor, Profile
from .formats.rate_entry import rate_side
from .formats.writer import UncodedTensor, Writer
from .lossless import encode_lossless, plan_lossless
from .quantize.rate import bank_for
from .threads import thread_map
from .version import VERSION


def save_file(
    tensors: Mapping[str, QuantizedTensor | LevelTensor | NDArray[Any]],
    path: str | Path,
    metadata: Mapping[str, str] | None = None,
    *,
    coder: Literal["ans", "huffman", "raw"] = "ans",
    chunk_codes: int = CHUNK_CODES,
    threads: int = 0,
    overwrite: bool = False,
) -> int:
    """Write tensors to a `.qzc` file and return its size in bytes.

    QuantizedTensors are entropy-coded with `coder`, each chunk decoded again and compared, LevelTensors with a table bank
    of their own (all must be from one file, for they share it); ndarrays are stored as they are, or coded bit by bit if that makes them smaller. Names that stand for one and the same object are tied. `load_file(path)` gives the same mapping back.
    chunk_codes: about how many codes are coded together, 1 to 2^23 (below 512 counts as 512).
    Raises InvalidArgumentError (reserved names, unknown coder, codes beyond their grid), UnsupportedError (a dtype
    safetensors does not have), FileAccessError (also if `path` exists and `overwrite` is false).
    """
    coder_for(coder, 4)  # an unknown coder is refused before anything is written
    first: dict[int, str] = {}
    ties: dict[str, str] = {}
    coded: dict[str, QuantizedTensor] = {}
    rated: dict[str, RateTensor] = {}
    plain: dict[str, NDArray[Any]] = {}
    if not all(isinstance(name, str) for name in tensors):
        raise InvalidArgumentError("the names of tensors must be strings")
    for name in sorted(tensors):
        tensor = tensors[name]
        if id(tensor) in first:
            ties[name] = first[id(tensor)]
            continue
        first[id(tensor)] = name
        if isinstance(tensor, QuantizedTensor):
            coded[name] = tensor
        elif isinstance(tensor, LevelTensor):
            rated[name] = codes_of(tensor)
        elif isinstance(tensor, np.ndarray | np.generic):
            plain[name] = np.asarray(tensor)
        else:
            kind = type(tensor).__name__
            raise InvalidArgumentError(
                f"tensor {name!r} is a {kind}; give NumPy arrays, QuantizedTensors or LevelTensors"
            )
    if metadata is not None and not all(isinstance(x, str) for item in metadata.items() for x in item):
        raise InvalidArgumentError("metadata must map strings to strings")
    dtypes = {name: safetensors_dtype(array.dtype) for name, array in plain.items()}
    plans = {
        name: plan_lossless(file_bytes(array), dtypes[name], shape=array.shape)
        for name, array in plain.items()
        if coder != "raw"
    }
    lossless = {name: plan for name, plan in plans.items() if plan}
    uncoded = {
        name: UncodedTensor(dtypes[name], a.shape, a.nbytes) for name, a in plain.items() if name not in lossless
    }
    bank = bank_for(list(rated.values())) if rated else None
    side = rate_side(rated, bank) if bank else None
    entries = side.entries if side else {}
    profile = Profile(
        coded={
            name: CodedTensor(rated[name].dtype, rated[name].shape, None, BYTES, rate=e) for name, e in entries.items()
        }
        | {
            name: CodedTensor(t.dtype, tuple(map(int, t.shape)), t.args, PLAIN[t.scale.dtype.itemsize])
            for name, t in coded.items()
        }
        | {name: plan.entry(dtypes[name], plain[name].shape, plain[name].nbytes) for name, plan in lossless.items()},
        ties=ties,
        source_metadata=dict(metadata) if metadata else None,
        writer=f"qzc {VERSION}",
    )
    class_maps = [n for n, t in coded.items() if t.row_class is not None or t.column_class is not None]
    with thread_map(threads) as run, atomic_writer(path, overwrite) as stream:
        writer = Writer(stream, profile, uncoded, chunk_codes=chunk_codes, class_maps=class_maps, side=side)
        for name in writer.names:
            if name in uncoded:
                writer.write_uncoded(name, [file_bytes(plain[name])])
            elif name in lossless:
                raw = file_bytes(plain[name])
                writer.write_lossless(name, encode_lossless(raw, lossless[name], coder, chunk_codes, run=run)[0])
            elif bank and name in rated:
                writer.write_rate(name, encode_rate(rated[name], entries[name].wide, bank, chunk_codes, run=run))
            else:
                writer.write_quantized(name, encode_tensor(coded[name], coder, chunk_codes, run=run), coded[name])
        return writer.finish().nbytes
