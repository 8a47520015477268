"""qzc: entropy-coded model weights.

import qzc

qzc.pack("model.safetensors", "model.qzc")
with qzc.open("model.qzc") as model:
    tensor = model.packed("lm_head.weight")     # packed integer codes, scale, zero point
    weights = model.dequantize("lm_head.weight", rows=slice(0, 128))
tensors = qzc.load_file("model.qzc")
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .version import VERSION as __version__

if TYPE_CHECKING:
    from .benchmark import bench
    from .codec.errors import (
        CorruptionError,
        FileAccessError,
        InvalidArgumentError,
        QzcError,
        TruncationError,
        UnsupportedError,
        VerificationError,
    )
    from .codec.rate_tensor import LevelTensor
    from .codec.tensor import QuantizationArgs, QuantizedTensor
    from .model import Model, load_file, open
    from .packer import PackOptions, PackReport, pack, plan
    from .quantize.select import Selection, parse_bits
    from .rating import RateOptions
    from .save import save_file
    from .statistics.measure import stats
    from .unpacker import unpack
    from .verifier import verify

__all__ = [
    "CorruptionError",
    "FileAccessError",
    "InvalidArgumentError",
    "LevelTensor",
    "Model",
    "PackOptions",
    "PackReport",
    "QuantizationArgs",
    "QuantizedTensor",
    "QzcError",
    "RateOptions",
    "Selection",
    "TruncationError",
    "UnsupportedError",
    "VerificationError",
    "__version__",
    "bench",
    "load_file",
    "open",
    "pack",
    "parse_bits",
    "plan",
    "save_file",
    "stats",
    "unpack",
    "verify",
]

_ROOMS = {
    ".benchmark": "bench",
    ".codec.errors": "CorruptionError FileAccessError InvalidArgumentError QzcError TruncationError UnsupportedError "
    "VerificationError",
    ".codec.rate_tensor": "LevelTensor",
    ".codec.tensor": "QuantizationArgs QuantizedTensor",
    ".model": "Model load_file open",
    ".packer": "PackOptions PackReport pack plan",
    ".quantize.select": "Selection parse_bits",
    ".rating": "RateOptions",
    ".save": "save_file",
    ".statistics.measure": "stats",
    ".unpacker": "unpack",
    ".verifier": "verify",
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names.split()}


def __getattr__(name: str) -> object:
    """Names are loaded on first use: `qzc --help` and completion must not pay for numpy."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name], __name__), name)


def __dir__() -> list[str]:
    """So that completion shows what has not been loaded yet."""
    return __all__
