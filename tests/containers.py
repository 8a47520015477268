"""What the tests of `.qzc` files share: a small file with everything in it, and how to compare, read and refuse one."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from qzc.codec.errors import QzcError
from qzc.codec.records import Records
from qzc.codec.tensor import QuantizationArgs, QuantizedTensor
from qzc.formats.coded_tensors import Base
from qzc.formats.reader import Reader
from tests.builders import Lossless, Plan, build
from tests.reference_decoder import Decoded
from tests.small_files import BASE
from tests.strategies import quantized

SPLIT_BF16 = Records(((8, 1), (4, 2)), rotate=True)


@cache
def sample() -> bytes:
    """About 6 KB from the real writer: every coder and part, all kinds of planes, a tie, tensors that are not coded."""
    tensors: dict[str, Any] = {
        "a": quantized((9, 150), QuantizationArgs(3, False, "group", 40), row_classes=2, column_classes=2, spread=0.1),
        "f": Lossless("BF16", (2, 300), some_floats(600), SPLIT_BF16),
        "h": quantized((3, 400), QuantizationArgs(8, True, "channel", None, "absmax", "float32"), spread=0.01),
        "p": Lossless("I32", (200,), (np.arange(200) % 3).astype("<i4").tobytes(), Records(((8, 4),)), palette=True),
        "z": quantized((600,), QuantizationArgs(2, True, "tensor", None, "mse", "bfloat16"), spread=0),
        "r": quantized((40, 30), QuantizationArgs(1, True, "tensor", None)),
        "bias": np.arange(5, dtype=np.float32),
        "empty": np.zeros((0, 3), np.int64),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qzc.codec.chunks.SHORT_NBYTES", 0)  # ans16 for codes of any number
        return build(tensors, Plan(coders={"h": "huffman", "r": "raw"}, ties={"tied": "a", "second": "bias"}))


def some_floats(count: int) -> bytes:
    """BF16, normal around 0."""
    return np.random.default_rng(0).normal(0, 0.02, count).astype(ml_dtypes.bfloat16).tobytes()


def based(tensors: Mapping[str, bytes]) -> Base:
    """A base of these tensors, as a reader takes it."""
    return lambda name: np.frombuffer(tensors[name], np.uint8)


def check(path: Path, data: bytes | bytearray) -> dict[str, Decoded]:
    """`check_file` of these bytes."""
    path.write_bytes(data)
    return check_file(path)


def check_file(path: Path) -> dict[str, Decoded]:
    """Read all there is in a file, as `qzc verify` does and more; the content in the reference decoder's words."""
    with np.errstate(all="ignore"), Reader(path, based(BASE)) as reader:
        check_all(reader)
        return {name: as_decoded(reader, name) for name in reader.keys()}


def check_all(reader: Reader) -> None:
    """All that can be wrong with a file, but for its bases."""
    reader.check_tables()
    if reader.profile.source_file is not None:
        reader.source_file()
    for name in reader.keys():
        assert reader.info(name).nbytes >= 0
        reader.check(name)
        if reader.info(name).coding != "plain":
            reader.check_chunks(name)


def as_decoded(reader: Reader, name: str) -> Decoded:
    """What our reader makes of a tensor, in the reference decoder's words."""
    info = reader.info(name)
    if info.args is None:
        array = reader.array(name) if len(info.shape) <= 64 else reader.raw(name)
        assert array.tobytes() == reader.raw(name).tobytes()
        return Decoded(info.dtype, info.shape, array.tobytes())
    tensor = reader.quantized(name)
    zero_point = np.full(tensor.scale.shape, tensor.args.symmetric_zero_point, np.float32)
    if tensor.zero_point is not None:
        zero_point = tensor.zero_point.astype(np.float32)
    scale = tensor.scale.astype(np.float32)
    return Decoded(info.dtype, info.shape, None, tensor.codes, zero_point, scale, tensor.dequantize())


def assert_equal(found: Any, wanted: QuantizedTensor | NDArray[Any]) -> None:
    """Bit for bit, every field."""
    if isinstance(wanted, QuantizedTensor):
        assert isinstance(found, QuantizedTensor)
        assert (found.shape, found.dtype, found.args) == (wanted.shape, wanted.dtype, wanted.args)
        for field in ("packed", "scale", "zero_point", "row_class", "column_class"):
            mine, other = getattr(found, field), getattr(wanted, field)
            assert (mine is None) == (other is None), field
            if other is not None:
                assert mine.dtype == other.dtype and mine.shape == other.shape, field
                assert mine.tobytes() == other.tobytes(), field
    else:
        assert isinstance(found, np.ndarray)
        assert (found.dtype, found.shape, found.tobytes()) == (wanted.dtype, wanted.shape, wanted.tobytes())


@contextmanager
def raises(path: Path, kind: type[QzcError] = QzcError, message: str = "") -> Iterator[None]:
    """A QzcError that names the file in one line of a bearable length."""
    with pytest.raises(kind, match=message or None) as caught:
        yield
    text = str(caught.value)
    assert text.count(str(path)) == 1
    assert len(text) < 1000 and text.isprintable(), text
