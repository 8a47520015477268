"""`qzc.verify`: is a `.qzc` file whole, and does it hold what the original holds?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .analysis.distortion import float_distortion, weight_distortion
from .base import BaseTensors
from .codec.errors import InvalidArgumentError, VerificationError
from .codec.run_map import RunMap
from .codec.tensor import QuantizedTensor
from .formats.checkpoint import is_qzc, open_checkpoint
from .formats.coded_tensors import Base
from .formats.reader import Reader
from .progress import Progress
from .quantize.rtn import quantize
from .sources import SourceTensors, open_source
from .threads import thread_map

SNR_SLACK_DB = 0.1
"""A quantized tensor passes if it is as near to the original as rounding to its grid gets, but for this much."""


FEEDBACK_SLACK_DB = 12.0
"""More, where scales and zero points are those of the original: then the codes may be what error feedback makes of them."""
RATE_FLOOR_DB = -0.5
"""A tensor that was quantized at a rate passes if its error is not larger than its weights; another's would be -3 dB."""


@dataclass(frozen=True)
class Comparison:
    """One tensor against the original. exact: bit for bit (not quantized), or the codes that rounding gives.

    snr_db: weight SNR of a quantized tensor (inf if no weight changed); None if it is not quantized.
    """

    name: str
    quantized: bool
    exact: bool
    snr_db: float | None = None


@dataclass(frozen=True)
class VerifyReport:
    """What was checked: number of files, tensors and chunks, bytes of the files, and the comparisons if there were any.

    identical: how many of the originals come out of `unpack` byte by byte.
    """

    files: int
    tensors: int
    chunks: int
    nbytes: int
    comparisons: tuple[Comparison, ...] = ()
    identical: int = 0


def verify(
    path: str | Path,
    against: str | Path | None = None,
    *,
    base: str | Path | None = None,
    threads: int = 0,
    progress: Progress | None = None,
) -> VerifyReport:
    """Check every byte of a `.qzc` file or folder: checksums, structure, and that every chunk decodes.

    against: the checkpoint it was packed from. Then names, dtypes and shapes must agree, tensors that were not quantized
    must be equal bit for bit, and quantized ones as near to the original as their grid allows (at a rate: nearer than
    nothing). Files that were packed
    without loss must be the original in all their bytes. base: the checkpoint that a delta was packed against.

    Raises CorruptionError naming tensor, chunk and bytes; VerificationError naming the first tensor that differs;
    InvalidArgumentError if `against` is a `.qzc` file itself; FileAccessError, UnsupportedError.
    """
    checkpoint = open_checkpoint(path, "qzc")
    originals = () if against is None else open_checkpoint(against, "safetensors").files
    for original in originals:
        if is_qzc(original):
            raise InvalidArgumentError(
                f"{original}: the original must be a safetensors checkpoint, this is a .qzc file"
            )
    tell = progress or (lambda doing, done, total: None)
    total, done, tensors, chunks = sum(file.stat().st_size for file in checkpoint.files), 0, 0, 0
    identical = 0
    with thread_map(threads) as run, ExitStack() as stack:
        tensors_of_base = None if base is None else stack.enter_context(BaseTensors(base)).tensor
        for file in checkpoint.files:
            with Reader(file, tensors_of_base) as reader:
                reader.check_tables()
                if reader.profile.source_file:
                    reader.source_file()
                for name in reader.keys():
                    info = reader.info(name)
                    tensors += 1
                    if info.tied_to:
                        continue
                    reader.check(name)
                    if info.coding != "plain":
                        chunks += reader.check_chunks(name, run)
                    reader.release(name)
                    done += info.nbytes
                    tell(name, done, total)
        comparisons: tuple[Comparison, ...] = ()
        if against is not None:
            comparisons = tuple(_compare(checkpoint.files, originals, tensors_of_base, run))
            identical = _compare_files(checkpoint.files, originals)
    return VerifyReport(len(checkpoint.files), tensors, chunks, total, comparisons, identical)


def _compare_files(files: tuple[Path, ...], originals: tuple[Path, ...]) -> int:
    """How many files were packed without loss; each must have been packed from one of the originals, as it is now."""
    known: dict[tuple[int, int], Path] = {}
    identical = 0
    for file in files:
        with Reader(file) as reader:
            source = reader.profile.source_file
            if source is None:
                continue
            if not known:
                for path in originals:
                    with open_source(path) as original:
                        known[original.nbytes, original.xxh3()] = path
            if (source.nbytes, source.xxh3) not in known:
                raise VerificationError(f"{file} was packed from another file: the tensors agree, other bytes do not")
            identical += 1
    return identical


def _compare(
    files: tuple[Path, ...], originals: tuple[Path, ...], base: Base | None, run: RunMap
) -> Iterator[Comparison]:
    places: dict[str, Path] = {}
    for path in originals:
        with open_source(path) as original:
            places.update(dict.fromkeys(original.keys(), path))
    seen: set[str] = set()
    for file in files:
        with Reader(file, base) as reader:
            for path in sorted({places[name] for name in reader.keys() if name in places}):
                with open_source(path) as original:
                    for name in reader.keys():
                        if places.get(name) == path:
                            yield _compare_tensor(reader, original, name, run)
                            seen.add(name)
            for name in reader.keys():
                if name not in places:
                    raise VerificationError(f"tensor {name!r} is in {file} and not in the original")
    missing = sorted(places.keys() - seen)
    if missing:
        raise VerificationError(f"tensor {missing[0]!r} of the original is missing ({len(missing)} missing in all)")


def _compare_tensor(reader: Reader, original: SourceTensors, name: str, run: RunMap) -> Comparison:
    info, member = reader.info(name), original.info(name)
    if (info.dtype, info.shape) != (member.dtype, member.shape):
        raise VerificationError(
            f"tensor {name!r} is {info.dtype}{list(info.shape)}, in the original {member.dtype}{list(member.shape)}"
        )
    if info.rate:
        comparison = _compare_levels(reader, original, name, run)
        original.release(name)
        return comparison
    if info.args is None:
        stored = reader.raw(name, run)
        if not np.array_equal(stored, original.raw(name)):
            raise VerificationError(f"tensor {name!r} is not quantized and differs from the original")
        original.release(name)
        return Comparison(name, quantized=False, exact=True)
    array, decoded = original.array(name), reader.quantized(name, run=run)
    try:
        fresh = quantize(array, info.args, dtype=info.dtype, name=f"tensor {name!r}", run=run)
        if info.args.symmetric and not _same_grid(decoded, fresh):  # gptq has another one
            every = quantize(array, info.args, dtype=info.dtype, all_levels=True, name=f"tensor {name!r}", run=run)
            fresh = every if _same_grid(decoded, every) else fresh
    except InvalidArgumentError as error:
        raise VerificationError(f"the original cannot be what was packed: {error}") from None
    comparison = _compare_codes(name, decoded, fresh, array, run)
    original.release(name)
    return comparison


def _compare_levels(reader: Reader, original: SourceTensors, name: str, run: RunMap) -> Comparison:
    """At a rate no grid says how near each weight must be: error feedback makes large errors where they do no harm."""
    weights = original.array(name)
    snr_db = float_distortion(weights, reader.leveled(name, run=run).dequantize(np.float32)).snr_db
    if not snr_db >= RATE_FLOOR_DB:
        raise VerificationError(
            f"tensor {name!r} is {snr_db:.2f} dB from the original: these are not the same weights at any rate"
        )
    return Comparison(name, quantized=True, exact=False, snr_db=snr_db)


def _compare_codes(
    name: str, decoded: QuantizedTensor, fresh: QuantizedTensor, array: NDArray[Any], run: RunMap
) -> Comparison:
    snr_db = weight_distortion(array, decoded, run=run).snr_db
    same = np.array_equal(decoded.packed, fresh.packed) and _same_grid(decoded, fresh)
    if not same:
        best = weight_distortion(array, fresh, run=run).snr_db
        slack = FEEDBACK_SLACK_DB if _same_grid(decoded, fresh) else SNR_SLACK_DB
        if not snr_db >= best - slack:  # NaN, where a scale is none, is not near
            raise VerificationError(f"tensor {name!r} differs from the original (SNR {snr_db:.1f} dB)")
    return Comparison(name, quantized=True, exact=same, snr_db=snr_db)


def _same_grid(a: QuantizedTensor, b: QuantizedTensor) -> bool:
    same = np.array_equal(a.scale, b.scale)
    if a.zero_point is not None and b.zero_point is not None:
        same = same and np.array_equal(a.zero_point, b.zero_point)
    return same
