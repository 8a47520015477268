"""What is in the golden files. `fixtures/make_golden.py` writes them once; `test_golden.py` reads them for ever."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import xxhash
from numpy.typing import NDArray

from qzc.codec.packing import pack_codes
from qzc.codec.rate_tensor import LevelTensor, RateTensor
from qzc.codec.records import Records, gathered
from qzc.codec.tensor import QuantizationArgs, QuantizedTensor
from qzc.formats.dtypes import file_bytes, safetensors_dtype
from qzc.formats.safetensors import SafetensorsFile
from qzc.quantize.rtn import quantize
from tests.builders import Lossless, Plan, Source, Tensors, build
from tests.reference_decoder import Decoded
from tests.strategies import CODERS

WRITER = "qzc golden"
PLAN = Plan(WRITER, chunk_codes=1200)


@dataclass(frozen=True)
class Golden:
    """The content of a golden file, and how it is coded."""

    name: str
    tensors: Tensors
    plan: Plan = field(default=PLAN)

    @property
    def base(self) -> dict[str, bytes]:
        """The bytes of the base's tensors."""
        tensors = {name: tensor.base for name, tensor in self.tensors.items() if isinstance(tensor, Lossless)}
        return {name: base for name, base in tensors.items() if base is not None}


def golden(model: Path) -> Iterator[Golden]:
    """Every golden file, from the weights of the fixture `model`."""
    with SafetensorsFile(model) as file:
        down = np.array(file.array("model.layers.0.mlp.down_proj.weight")[:9])  # 192 columns: a short last group
        embed = np.array(file.array("model.embed_tokens.weight")[96:105])
        norm = np.array(file.array("model.norm.weight")[:32])
    # Outliers, as large models have them: they leave most levels unused, and so few codes gain from coding at all.
    down[5, 17] = 8 * down.max()
    embed[:, ::128] = 6 * embed.max()
    for coder in CODERS:
        for bits in range(1, 9):
            channel = QuantizationArgs(bits, True, "channel" if bits % 2 else "tensor", None, "absmax", "float16")
            group = QuantizationArgs(bits, False, "group", 128, "absmax", "bfloat16")
            weights: Tensors = {
                "down.weight": quantize(down, channel, "F32"),
                "embed.weight": quantize(embed, group, "F32"),
                "norm.weight": norm,
            }
            yield Golden(f"{coder}-{bits}bit", weights, replace(PLAN, coder=coder))
    fine = QuantizationArgs(4, True, "group", 128, "mse", "float16")
    whole = QuantizationArgs(4, True, "tensor", None, "absmax", "float32")
    half = down[:, :48].astype(ml_dtypes.bfloat16)
    yield Golden("float32_scale", {"w": quantize(down, whole, "F32"), "v": quantize(half, whole, "BF16")})
    yield Golden("class_maps", dict(with_class_maps(down)))
    shared: Tensors = {"a.weight": quantize(down[:8], fine, "F32"), "n.weight": norm}
    ties = {"b.weight": "a.weight", "m.weight": "n.weight"}
    yield Golden("ties", shared, replace(PLAN, coder="huffman", ties=ties))
    metadata = {"format": "pt", "ключ": "значение"}
    yield Golden("uncoded_dtypes", dict(of_every_dtype()), replace(PLAN, metadata=metadata))
    large = replace(PLAN, chunk_codes=1 << 17)
    yield Golden("streams", dict(skewed()), large)
    yield Golden("constant", {"zeros": quantize(np.zeros((4, 300), np.float32), whole, "F32")})
    yield Golden("no_tensors", {})
    yield Golden("lossless_floats", dict(floats(down)))
    yield Golden("lossless_records", dict(of_odd_records(embed)))
    yield Golden("lossless_gathered", dict(of_gathered_records()))
    yield Golden("palettes", dict(with_few_values()), replace(PLAN, coder="huffman"))
    yield Golden("scaled_palettes", dict(times_scales()))
    yield Golden("delta", dict(against_a_base(down[:5])))
    yield Golden("rate", dict(at_a_rate()))
    yield Golden("rate_trellis", dict(on_a_trellis()))
    yield restorable(down[:4].astype(ml_dtypes.bfloat16), norm)


def with_class_maps(weights: NDArray[np.float32]) -> Iterator[tuple[str, QuantizedTensor]]:
    """Rows, columns and both in classes, so that the codes are not in row-major order."""
    rows = np.arange(weights.shape[0], dtype=np.uint8) % 3
    columns = (np.arange(weights.shape[1]) // 50 * 2).astype(np.uint8)
    args = QuantizationArgs(3, True, "channel", None, "mse", "float16")
    tensor = quantize(weights, args, "F16")
    for name, row_class, column_class in (("rows", rows, None), ("columns", None, columns), ("both", rows, columns)):
        yield (
            name,
            QuantizedTensor(tensor.packed, tensor.scale, None, tensor.shape, "F16", args, row_class, column_class),
        )


def of_every_dtype() -> Iterator[tuple[str, NDArray[Any]]]:
    dtypes: list[Any] = [
        np.bool_, np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64, np.float16,
        np.float32, np.float64, np.complex64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2,
    ]  # fmt: skip
    for dtype in dtypes:
        yield f"three.{np.dtype(dtype).name}", np.array([0, 1, 1]).astype(dtype)
    yield "scalar", np.array(-2.5, np.float32)
    yield "empty", np.zeros((0, 7), np.int32)
    yield "μ/нулл \N{SNOWMAN}", np.arange(6, dtype=np.int16).reshape(1, 2, 3)


def skewed() -> Iterator[tuple[str, QuantizedTensor]]:
    """So large that their chunks have several streams, and so skewed that they take little room."""
    some = random_numbers(1 << 17)
    few, many = [0, 127, 129, 255], list(range(0, 200, 10))  # too many for 15 symbols and an escape
    for name, bits, likely, others, rarity in (
        ("4bit", 4, 8, [1, 7, 9], 256),
        ("8bit", 8, 128, few, 64),
        ("8bit.many", 8, 128, many, 400),
    ):
        numbers = np.tile(some, 8 // bits)  # fewer than 2^17 bytes would get coders for short runs
        codes = np.full(numbers.size, likely, np.uint8)
        for i, other in enumerate(others):
            codes[numbers % rarity == i] = other
        args = QuantizationArgs(bits, True, "tensor", None, "absmax", "float16")
        shape = (64, codes.size // 64)
        yield name, QuantizedTensor(pack_codes(codes, bits), np.array([0.5], np.float16), None, shape, "F32", args)


def random_numbers(count: int) -> NDArray[np.int64]:
    """Below 2^16. Not from a generator of NumPy: those may change. Powers of 5 run through all residues."""
    return np.array([pow(5, i, 1 << 32) >> 16 for i in range(count)])


SPLIT = {
    "F16": Records(((8, 1), (4, 2))),
    "BF16": Records(((8, 1), (8, 1)), rotate=True),
    "F32": Records(((8, 2), (8, 1), (8, 1)), rotate=True),
    "F64": Records(((8, 6), (4, 1), (3, 1), (1, 9)), rotate=True),
    "I32": Records(((8, 1), (8, 1), (8, 2))),
}


def floats(weights: NDArray[np.float32]) -> Iterator[tuple[str, Lossless]]:
    """Numbers of common dtypes, sign and exponent apart from the rest."""
    numbers: dict[str, NDArray[Any]] = {
        "F16": weights[:3].astype(np.float16),
        "BF16": weights.astype(ml_dtypes.bfloat16),
        "F32": weights[:3],
        "F64": weights[:1].astype(np.float64),
        "I32": np.round(weights[:2] * 1000).astype(np.int32),
    }
    for dtype, array in numbers.items():
        yield f"some.{dtype}", Lossless(dtype, array.shape, file_bytes(array).tobytes(), SPLIT[dtype])
    yield "scalar", Lossless("BF16", (), b"\x80\x3f", SPLIT["BF16"])
    yield "empty", Lossless("F32", (0, 5), b"", SPLIT["F32"])


def of_odd_records(weights: NDArray[np.float32]) -> Iterator[tuple[str, Lossless]]:
    """Blocks of 18 bytes, interleaved and not; elements that do not fill bytes; every width of codes; many fields."""
    data = file_bytes(weights.astype(np.float16)).tobytes()
    block = ((8, 1), (4, 2), (4, 32))
    yield "blocks", Lossless("Q4_0", (90, 32), data[: 90 * 18], Records(block))
    yield "units", Lossless("Q4_0_4_8", (80, 32), data[: 80 * 18], Records(block, False, (2, 4)))
    yield "halves", Lossless("F4", (5, 3), data[:8], Records(((4, 2),)))
    widths = Records((*((bits, 1) for bits in range(1, 9)), (1, 4)))
    yield "widths", Lossless("U8", (9, 45), data[: 9 * 45], widths)
    yield "fields", Lossless("I64", (60,), data[:480], Records(((1, 1),) * 64, True, (4, 3)))


def of_gathered_records() -> Iterator[tuple[str, Lossless]]:
    """Blocks with the fifth bits of their codes apart, and codes whose bits lie across bytes, in an order of their own."""
    numbers = random_numbers(1280)
    codes = (8 + numbers % 9 + (numbers >> 5) % 9).astype(np.uint8).reshape(40, 32)
    scales = np.stack([numbers[:40] % 256, 40 + numbers[40:80] % 4], axis=1)
    fifth = np.packbits(codes >> 4, axis=1, bitorder="little")
    data = np.concatenate([scales, fifth, codes[:, :16] & 15 | codes[:, 16:] << 4], axis=1).astype(np.uint8).tobytes()
    whole = gathered(((), (8, 0)), ((), (8, 8)), ((2, 16), (4, 48, 4, 8), (1, 16, 16, 1)))
    yield "fifths", Lossless("GGUF_Q5_0", (40, 32), data, whole)
    across = gathered(
        ((2, 1, 2, 2), (3, 1, 3, 7, 12, 6), (1, 25, 4, 0, 1, 2)), ((), (1, 0), (7, 33)), ((8,), (1, 40, 1))
    )
    yield "across", Lossless("U8", (51, 6), data[: 51 * 6], across)


def with_few_values() -> Iterator[tuple[str, Lossless]]:
    numbers = random_numbers(900)
    for name, count, dtype in (("one", 1, "<f4"), ("two", 2, "<i8"), ("three", 3, "<i2"), ("many", 256, "<f8")):
        array = (numbers % count - 1).astype(dtype)
        plain = Records(((8, array.itemsize),))
        yield name, Lossless(safetensors_dtype(array.dtype), (3, 300), array.tobytes(), plain, palette=True)
    yield "bytes", Lossless("F8_E4M3", (900,), bytes((numbers % 5 * 17).tolist()), Records(((8, 1),)), palette=True)


def times_scales() -> Iterator[tuple[str, Lossless]]:
    """Whole numbers times scales: of four bits, ternary and with both zeros, of so many values that codes have 8 bits."""
    numbers = random_numbers(1000)
    for name, most, group, dtype in (
        ("channel", 7, 250, "F32"),
        ("group", 8, 32, "F16"),  # the last one is short
        ("ternary", 1, 100, "BF16"),
        ("wide", 100, 125, "F16"),
    ):
        scales = (1 + numbers[: -(-1000 // group)] % 512 / 512).astype(np.float32) / 64
        whole = (numbers >> 3) % (2 * most + 1) - most
        weights = np.copysign(whole, np.where(numbers % 2, whole, -0.0 if name == "ternary" else 0.0) + whole)
        exact = weights.astype(np.float32) * np.repeat(scales, group)[:1000]
        data = exact.astype({"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}[dtype])
        yield name, Lossless(dtype, (4, 250), file_bytes(data).tobytes(), palette=True, group=group)


def against_a_base(weights: NDArray[np.float32]) -> Iterator[tuple[str, Lossless]]:
    """As fine-tuning changes weights: a little; nearly nowhere; and all of them, so that the base is of no use."""
    base = weights.astype(ml_dtypes.bfloat16)
    raw, numbers = base.view(np.uint16), random_numbers(base.size).reshape(base.shape)
    changed = {
        "tuned": raw + (numbers % 7 // 2).astype(np.uint16),
        "sparse": np.where(numbers % 50 == 0, raw ^ 1, raw),
        "other": np.roll(raw, 1, axis=1),
    }
    for name, array in changed.items():
        yield name, Lossless("BF16", array.shape, array.tobytes(), SPLIT["BF16"], base=base.tobytes())
    yield "new", Lossless("BF16", base.shape, base.tobytes(), SPLIT["BF16"])


def restorable(weights: NDArray[Any], norm: NDArray[np.float32]) -> Golden:
    """From a safetensors file with a tensor that is in it twice."""
    tensors = {"norm": norm, "a.weight": weights, "b.weight": weights, "empty": norm[:0]}
    data, offsets = safetensors_file(tensors, {"format": "pt"})
    coded = Lossless("BF16", weights.shape, weights.tobytes(), SPLIT["BF16"])
    source = Source("safetensors", data, offsets)
    plan = replace(PLAN, ties={"b.weight": "a.weight"}, metadata={"format": "pt"}, source=source)
    return Golden("restorable", {"a.weight": coded, "norm": norm, "empty": norm[:0]}, plan)


def at_a_rate() -> Iterator[tuple[str, RateTensor | NDArray[Any]]]:
    """Steps and classes of rows and columns, some of them shared; codes that escape; chunks of all three coders."""
    numbers = random_numbers(4000)
    logs = (numbers[:40] % 17 - 8).astype(np.int8)
    rows = (numbers[40:70] % 9 - 4).astype(np.int8)
    codes = bell(numbers[:1200]).reshape(30, 40)
    grid: dict[str, Any] = {
        "column_log": logs,
        "row_class": rows,
        "class_offset": 99,
        "gain": gain_of(99 - logs.astype(int)),
    }
    yield "a.weight", RateTensor(codes, np.float32(0.0173), (30, 40), "F32", **grid)
    wide = codes.copy()
    wide[7, 3], wide[29, 39] = -3000, 129
    yield "b.weight", RateTensor(wide, np.float32(1.5), (30, 8, 5), "BF16", **{**grid, "row_log": rows[::-1].copy()})
    plain: dict[str, Any] = {"class_offset": 102, "gain": gain_of(np.full(40, 102))}
    yield "c.weight", RateTensor(codes[:3], np.float32(2e-5), (3, 40), "F16", **plain)
    yield "empty", RateTensor(codes[:0], np.float32(1), (0, 40), "F32", **plain)
    noise = (numbers[:200] % 256 - 128).astype(np.int16).reshape(5, 40)
    yield "raw", RateTensor(noise, np.float32(1), (5, 40), "F32", **plain)
    yield (
        "scalar",
        RateTensor(codes[:1, :1], np.float32(0.5), (), "F64", class_offset=130, gain=gain_of(np.array([130]))),
    )
    yield "zeros", RateTensor(np.zeros((30, 40), np.int16), np.float32(1), (30, 40), "F32", **plain)
    yield "norm", np.arange(4, dtype=np.float32)


def on_a_trellis() -> Iterator[tuple[str, RateTensor]]:
    """With few and many states, one and several restarts, and a tensor without."""
    numbers = random_numbers(3000)
    codes = bell(numbers[:1400]).reshape(35, 40)
    columns = (numbers[:40] % 5 - 2).astype(np.int8)
    for states, restart in ((0, 1), (4, 35), (8, 12), (32, 15), (256, 100)):
        wide = codes.copy()
        wide[30, 7] += 100 * (states == 32)
        gain = gain_of(100 + columns.astype(int))
        grid: dict[str, Any] = {"column_class": columns, "class_offset": 100, "gain": gain}
        yield f"w{states}", RateTensor(
            wide, np.float32(0.01), (35, 40), "F32", states=states, restart=restart, **grid
        )  # fmt: skip


def bell(numbers: NDArray[np.int64]) -> NDArray[np.int16]:
    """Codes like those of weights: most are small."""
    dice = (numbers & 15) + (numbers >> 4 & 15) + (numbers >> 8 & 15) + (numbers >> 12 & 15)
    codes: NDArray[np.int16] = ((dice - 30) // 5).astype(np.int16)
    return codes


def gain_of(classes: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Gains as a bank has them: the same for columns of one class."""
    return (120 + classes % 7).astype(np.uint8)


def safetensors_file(tensors: Mapping[str, NDArray[Any]], metadata: dict[str, str]) -> tuple[bytes, dict[str, int]]:
    """A file, and where its tensors begin. Not by the library, whose next version may lay them out in another way."""
    header: dict[str, Any] = {"__metadata__": metadata}
    offsets: dict[str, int] = {}
    body = b""
    for name, array in tensors.items():
        offsets[name] = len(body)
        body += file_bytes(array).tobytes()
        places = [offsets[name], len(body)]
        header[name] = {"dtype": safetensors_dtype(array.dtype), "shape": array.shape, "data_offsets": places}
    text = json.dumps(header, indent=1).encode()
    start = len(text).to_bytes(8, "little") + text
    return start + body, {name: len(start) + at for name, at in offsets.items()}


def base_file(base: Mapping[str, bytes]) -> bytes:
    """The base of a golden file, as a safetensors file of bytes."""
    return safetensors_file({name: np.frombuffer(data, np.uint8) for name, data in base.items()}, {})[0]


def encode(case: Golden) -> bytes:
    """The file of a case, as the writer makes it today."""
    return build(case.tensors, case.plan)


def described(tensor: QuantizedTensor | RateTensor | LevelTensor | Lossless | NDArray[Any]) -> dict[str, Any]:
    """What a decoder must make of a tensor: dtype, shape, and the XXH3-128 of its numbers, little-endian, row-major.

    Codes are one per byte, levels int16; scale, zero point and the dequantized weights float32.
    """
    if isinstance(tensor, Lossless):
        data = np.frombuffer(tensor.data, np.uint8)
        return {"dtype": tensor.dtype, "shape": [*tensor.shape], "data": digest(data)}
    if isinstance(tensor, RateTensor):
        return described(tensor.decoded())
    if isinstance(tensor, LevelTensor):
        levels = tensor.levels.reshape(tensor.shape).astype("<i2")
        return {
            "dtype": tensor.dtype,
            "shape": [*tensor.shape],
            "levels": digest(levels),
            "dequantized": digest(tensor.dequantize()),
        }
    if not isinstance(tensor, QuantizedTensor):
        return {"dtype": safetensors_dtype(tensor.dtype), "shape": [*tensor.shape], "data": digest(file_bytes(tensor))}
    zero_point = np.full(tensor.scale.shape, tensor.args.symmetric_zero_point, np.float32)
    if tensor.zero_point is not None:
        zero_point = tensor.zero_point.astype(np.float32)
    return {
        "dtype": tensor.dtype,
        "shape": [*tensor.shape],
        "codes": digest(tensor.codes),
        "scale": digest(tensor.scale.astype(np.float32)),
        "zero_point": digest(zero_point),
        "dequantized": digest(tensor.dequantize()),
    }


def described_by_reference(tensor: Decoded) -> dict[str, Any]:
    """The same of a tensor that the reference decoder has decoded."""
    described = {"dtype": tensor.dtype, "shape": [*tensor.shape]}
    if tensor.raw is not None:
        return {**described, "data": xxhash.xxh3_128_hexdigest(tensor.raw)}
    if tensor.levels is not None and tensor.dequantized is not None:
        levels = tensor.levels.astype("<i2")
        return {**described, "levels": digest(levels), "dequantized": digest(tensor.dequantized)}
    numbers = {what: getattr(tensor, what) for what in ("codes", "scale", "zero_point", "dequantized")}
    return {**described, **{what: digest(array) for what, array in numbers.items()}}


def digest(array: NDArray[Any]) -> str:
    return str(xxhash.xxh3_128_hexdigest(np.ascontiguousarray(array).tobytes()))
