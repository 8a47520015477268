"""compressed-tensors, the files of llm-compressor and vLLM.

pack-quantized: `weight_packed` I32 [.., out, in * bits / 32], rows packed from the lowest bit up; `weight_zero_point` is packed
    the same way, but down its columns. Codes cross from word to word; older versions left the rest of a word unused.
nvfp4, mxfp4, mxfp6: `weight_packed` U8, rows of 4- or 6-bit floats without gaps. int-, float-, naive-quantized, mxfp8: `weight`
    of I8 or F8 beside `weight_scale`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...codec.records import Records
from .found import BYTES, INT32_BYTES, Found, Hints, Tensors, dense, grid_name, number, padded, settings_of

_BITS = (4, 8, 3, 2, 6, 5, 7, 1)  # the usual ones first
_GROUPS = (16, 32, 64, 128, 256, 512, 1024)
_TRIED = 4  # splits for one tensor: trying costs the packer time
_PLAIN = {"I8": "int8", "F8_E4M3": "float8", "F8_E5M2": "float8"}
_FLOAT_BITS = {8: 4, 16: 4, 24: 6}  # bytes of weight for one scale: nvfp4 (groups of 16), mxfp4 (32), mxfp6 (32)


def find(config: Mapping[str, Any] | None, tensors: Tensors) -> Found | None:
    """compressed-tensors checkpoints. Bits come from the shapes where these tell them, else from the config's groups."""
    settings = settings_of(config)
    schemes = _schemes(settings)
    plain = _PLAIN if settings.get("quant_method", "compressed-tensors") == "compressed-tensors" else {}
    hints, kinds, matrices = Hints(tensors), set[str](), 0
    widths: list[int] = []
    groups: list[int | None] = []
    for name, (dtype, shape) in tensors.items():
        module = name.removesuffix("weight_packed")
        if module != name and dtype in ("I32", "U8") and len(shape) >= 2:
            if dtype == "U8":
                bits = _float_bits(tensors, module, shape)
                if hints.add(name, [dense(bits, shape[-1])]):
                    hints.add(module + "weight_scale", [BYTES])
                    kinds.add(f"fp{bits}")
                    matrices += 1
                continue
            widths_here = _widths(tensors, module, shape, schemes)
            if hints.add(name, list(dict.fromkeys(_rows(widths_here, shape[-1])))[:_TRIED]):
                hints.add(module + "weight_zero_point", _columns(tensors, module, widths_here))
                hints.add(module + "weight_g_idx", [INT32_BYTES])
                widths.append(widths_here[0])
                groups.extend(group for bits, group in schemes if bits == widths_here[0])
                matrices += 1
        elif name.endswith("weight") and dtype in plain and name + "_scale" in tensors and hints.add(name, [BYTES]):
            kinds.add(plain[dtype])
            matrices += 1
    if not matrices:
        return None
    names = [*([grid_name(widths, groups)] if widths else []), *sorted(kinds)]
    stored = settings.get("format")
    kind = f" ({stored})" if isinstance(stored, str) and len(stored) <= 40 and stored.isprintable() else ""
    return Found("compressed-tensors", f"compressed-tensors {' and '.join(names)}{kind}", hints.splits, matrices)


def _schemes(settings: Mapping[str, Any]) -> list[tuple[int, int | None]]:
    """Bits and group size (-1 per channel, None if not told) of every group of layers in the config."""
    groups = settings.get("config_groups")
    schemes: list[tuple[int, int | None]] = []
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping) and (bits := number(weights.get("num_bits"), _BITS)):
            size = number(weights.get("group_size"), range(1, 1 << 16))
            schemes.append((bits, -1 if weights.get("strategy") == "channel" else size))
    return schemes


def _widths(
    tensors: Tensors, module: str, shape: tuple[int, ...], schemes: list[tuple[int, int | None]]
) -> tuple[int, ...]:
    """Bits that the codes of a packed matrix may have, the likeliest first."""
    scale = tensors.get(module + "weight_scale", ("", ()))[1]
    zeros = tensors.get(module + "weight_zero_point", ("", ()))[1]
    index = tensors.get(module + "weight_g_idx", ("", ()))[1]
    columns = scale[-1] if scale else 1
    possible = [
        bits
        for bits in _BITS
        if (len(index) != 1 or _packs(index[0], shape[-1], bits))
        and (len(zeros) < 2 or _packs(shape[-2], zeros[-2], bits))
        and (len(index) == 1 or columns == 1 or any(_packs(columns * group, shape[-1], bits) for group in _GROUPS))
    ]
    exact = [
        bits for bits, size in schemes if size is not None and size > 0 and _packs(columns * size, shape[-1], bits)
    ]
    told = sorted((bits for bits, _ in schemes), key=lambda bits: bits not in possible)
    return tuple(dict.fromkeys(exact or told or possible)) or (4, 8)


def _packs(codes: int, words: int, bits: int) -> bool:
    return words in (-(-codes * bits // 32), -(-codes // (32 // bits)))


def _rows(widths: tuple[int, ...], words: int) -> Iterator[Records | None]:
    for bits in widths:
        yield dense(bits, 4 * words)
        yield padded(bits)


def _columns(tensors: Tensors, module: str, widths: tuple[int, ...]) -> Iterator[Records | None]:
    """Zero points: words follow one another down the columns of [.., words, groups]."""
    shape = tensors.get(module + "weight_zero_point", ("", ()))[1]
    if len(shape) >= 2 and shape[-1]:
        for bits in widths[:2]:
            yield dense(bits, 4 * shape[-2], (4, shape[-1]))
            yield padded(bits)


def _float_bits(tensors: Tensors, module: str, shape: tuple[int, ...]) -> int:
    scale = tensors.get(module + "weight_scale", ("", ()))[1]
    return _FLOAT_BITS.get(shape[-1] // scale[-1], 4) if scale and scale[-1] else 4
