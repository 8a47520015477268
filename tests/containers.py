"""What the tests of `.qzc` files share: a small file with everything in it, and how to compare, read and refuse one."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qzc.codec.errors import QzcError
from qzc.codec.tensor import QuantizationArgs, QuantizedTensor
from qzc.formats.reader import Reader
from tests.reference_decoder import Decoded
from tests.strategies import quantized, written


@cache
def sample() -> bytes:
    """About 5 KB from the real writer: every coder and part, both planes, a tie, tensors that are not coded."""
    tensors: dict[str, Any] = {
        "a": quantized((9, 150), QuantizationArgs(3, False, "group", 40), row_classes=2, column_classes=2, spread=0.1),
        "h": quantized((3, 400), QuantizationArgs(8, True, "channel", None, "absmax", "float32"), spread=0.01),
        "z": quantized((600,), QuantizationArgs(2, True, "tensor", None, "mse", "bfloat16"), spread=0),
        "r": quantized((40, 30), QuantizationArgs(1, True, "tensor", None)),
        "bias": np.arange(5, dtype=np.float32),
        "empty": np.zeros((0, 3), np.int64),
    }
    return written(tensors, {"h": "huffman", "r": "raw"}, {"tied": "a", "second": "bias"})


def check(path: Path, data: bytes | bytearray) -> dict[str, Decoded]:
    """Read all there is in a file, as `qzc verify` does and more; the content in the reference decoder's words."""
    path.write_bytes(data)
    with np.errstate(all="ignore"), Reader(path) as reader:
        reader.check_tables()
        for name in reader.keys():
            assert reader.info(name).nbytes >= 0
            reader.check(name)
            if not reader.info(name).args:
                reader.uncoded(name)
        return {name: as_decoded(reader, name) for name in reader.keys()}


def as_decoded(reader: Reader, name: str) -> Decoded:
    """What our reader makes of a tensor, in the reference decoder's words."""
    info = reader.info(name)
    if info.args is None:
        return Decoded(info.dtype, info.shape, reader.raw(name).tobytes())
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
