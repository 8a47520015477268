"""What a roofline needs to know of a model on disk: how many weights, how they are stored, the shape of its cache."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from .analysis.devices import Device, devices_from
from .analysis.roofline import ModelShape, WeightFormat, model_shape
from .codec.errors import CorruptionError, InvalidArgumentError
from .formats.access import naming_os_errors, open_input
from .formats.checkpoint import is_qzc, open_checkpoint
from .formats.dtypes import is_float
from .formats.header import read_file_header

GROUP_SCALE_BITS = 16 / 128  # of int4 in groups of 128 with float16 scales
_MAX_SIZE = 16 << 20  # bytes of a config or a table of devices


@dataclass(frozen=True)
class ModelFacts:
    """parameters: numbers in floating-point tensors, stored or coded. coded_bits: measured bits per weight of a `.qzc`.

    shape: from config.json beside the weights, None without one that says. generates: whether config.json names a model
    that writes text token by token; None if it does not tell.
    """

    source: Path
    parameters: int
    coded_bits: float | None
    coded_codes_bits: float | None
    shape: ModelShape | None
    generates: bool | None


def model_facts(path: str | Path) -> ModelFacts:
    """Look at the headers of a checkpoint (`.safetensors` or `.qzc`, a file or a folder) and the config.json beside it.

    Raises FileAccessError, CorruptionError, InvalidArgumentError, UnsupportedError.
    """
    checkpoint = open_checkpoint(path)
    root = checkpoint.root if checkpoint.is_folder else checkpoint.root.parent
    config = _config(root / "config.json")
    coded = codes = None
    if all(is_qzc(file) for file in checkpoint.files):
        parameters, coded, codes = measured_bits(path, checkpoint.files)
    else:
        members = [m for file in checkpoint.files for m in read_file_header(file).members.values()]
        parameters = sum(prod(m.shape) for m in members if is_float(m.dtype))
    if parameters == 0:
        raise InvalidArgumentError(f"{path}: no tensor of floating-point numbers, so no weights to read")
    return ModelFacts(Path(path), parameters, coded, codes, model_shape(config), _generates(config))


def measured_bits(path: str | Path, files: tuple[Path, ...]) -> tuple[int, float, float]:
    """Of a `.qzc` checkpoint: weights, bits per weight of its files, and bits per weight of what comes out of the decoder."""
    from .model import open as open_model

    parameters = decoded = 0
    with open_model(path) as model:
        for name in model:
            info = model.info(name)
            if info.tied_to or not is_float(info.dtype):
                continue
            parameters += prod(info.shape)
            width = info.args.storage_bits if info.args else 0
            decoded += prod(info.shape) * ((16 if info.rate.wide else 8) if info.rate else width)
    nbytes = sum(file.stat().st_size for file in files)
    weights = max(1, parameters)
    return parameters, 8 * nbytes / weights, decoded / weights


def weight_formats(bits: int, coded_bits: float | None, decoded_bits: float | None = None) -> tuple[WeightFormat, ...]:
    """FP16, int8, int`bits` in groups of 128, and the coded model where its bits per weight are known.

    decoded_bits: bits per weight that the decoder of the coded model delivers; by default those of the packed grid.
    """
    formats = [WeightFormat("FP16", 16.0), WeightFormat("int8", 8.0)]
    if bits != 8:
        formats.append(WeightFormat(f"int{bits}", bits + GROUP_SCALE_BITS))
    if coded_bits is not None:
        packed = float(1 << (bits - 1).bit_length()) if decoded_bits is None else decoded_bits
        formats.append(WeightFormat("coded", coded_bits, packed or None))
    return tuple(formats)


def read_devices(path: str | Path) -> tuple[Device, ...]:
    """Devices from a `.json` or `.toml` file (see `devices_from`). Raises FileAccessError, InvalidArgumentError."""
    text = read_text(Path(path))
    try:
        document = tomllib.loads(text) if str(path).lower().endswith(".toml") else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"{path}: not a table of devices: {error}") from None
    try:
        return devices_from(document)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{path}: {error}") from None


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise CorruptionError(f"{path}: not JSON: {error}") from None
    return config if isinstance(config, dict) else {}


def _generates(config: dict[str, Any]) -> bool | None:
    names = config.get("architectures")
    if not isinstance(names, list) or not names:
        return None
    return any(str(name).endswith(("CausalLM", "LMHeadModel", "ConditionalGeneration")) for name in names)


def read_text(path: Path) -> str:
    """A small text file. Raises FileAccessError, InvalidArgumentError."""
    with naming_os_errors(path, "read"), open_input(path) as file:
        data = file.read(_MAX_SIZE + 1)
    if len(data) > _MAX_SIZE:
        raise InvalidArgumentError(f"{path}: larger than {_MAX_SIZE:,} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidArgumentError(f"{path}: not UTF-8 text") from None
