"""Two small `.qzc` files with everything in them that the format has, from the reference encoder."""

import json
import struct
import zlib

import ml_dtypes
import numpy as np

from tests import reference_encoder as encoder
from tests.reference_encoder import Chunk, Coded, Member, Records


def code_chunks(banks: encoder.Banks, codes: list[int], width: int, cuts: list[tuple[int, int, int]]) -> list[Chunk]:
    """Chunks of (codes, coder, streams) each, every one but raw and constant with a table of its own."""
    rng = np.random.default_rng(0)
    chunks = []
    for count, coder, streams in cuts:
        buffer, codes, table = encoder.pack(codes[:count], width), codes[count:], 0
        payload = buffer[:1] if coder == 1 else buffer
        if coder >= 2:
            row = encoder.random_table(rng, coder, buffer)
            payload = encoder.encode_huffman(buffer, row) if coder == 4 else b""
            if coder < 4:
                payload = encoder.encode_ans(buffer, row, coder, streams)
            banks[coder].append(row)
            table = len(banks[coder]) - 1
        assert len(payload) <= len(buffer)
        chunks.append(Chunk(count, coder, streams, table, payload))
    assert not codes
    return chunks


NUMBERS = np.linspace(-1, 1, 24).astype(ml_dtypes.bfloat16).tobytes()
BASE = {"f": (np.frombuffer(NUMBERS, np.uint16) - 3).astype(np.uint16).tobytes()}
RECORDS = Records([(8, 1), (4, 2)], True, 1, 2)
VALUES = b"abcdef"


def lossless_parts(banks: encoder.Banks) -> list[Coded]:
    """`f` of BF16, interleaved in pairs, against `BASE`; `p`, 10 elements of an unknown dtype with 3 different values."""
    pairs = list(zip(encoder.take_apart(NUMBERS, RECORDS), encoder.take_apart(BASE["f"], RECORDS), strict=True))
    xor, difference = (
        [a ^ b for a, b in zip(*pairs[0], strict=True)],
        [(a - b) % 16 for a, b in zip(*pairs[1], strict=True)],
    )
    f = [chunk._replace(delta=1) for chunk in code_chunks(banks, xor, 8, [(24, 0, 0)])]
    f += [chunk._replace(delta=2) for chunk in code_chunks(banks, difference[:16], 4, [(16, 0, 0)])]
    f += code_chunks(banks, pairs[1][0][16:], 4, [(32, 0, 0)])
    p = code_chunks(banks, [0, 1, 2, 2, 1, 0, 0, 0, 2, 2], 2, [(10, 0, 0)]) + code_chunks(
        banks, [*VALUES], 8, [(6, 0, 0)]
    )
    return [Coded("f", {}, f, []), Coded("p", {}, p, [])]


def lossless_entries() -> dict[str, object]:
    return {
        "f": {"dtype": "BF16", "shape": [2, 12], "records": 0, "base": f"{encoder.xxh3(BASE['f']):016x}"},
        "p": {"dtype": "Q9", "shape": [3], "nbytes": 20, "records": 1, "palette": 3},
    }


def small_file() -> bytes:
    """About 4 KB with coders 0 to 4, all kinds of planes, class maps, deltas, ties and uncoded tensors."""
    banks = encoder.no_tables()
    skewed = [6 + (i % 11 == 0) - (i % 13 == 5) for i in range(600)]
    scale = np.linspace(0.5, 2, 12).astype(np.float16).tobytes()
    a = code_chunks(banks, skewed[:230] + [1] * 70, 8, [(150, 3, 1), (80, 4, 0), (70, 1, 0)])
    a += code_chunks(banks, [*scale[:6]], 8, [(6, 0, 0)])
    # By row and column classes, the runs of b hold 2 * 299, 2 + 299, 1 + 299 and 1 codes.
    b = code_chunks(banks, skewed[:598], 4, [(300, 2, 1), (298, 4, 0)])
    b += code_chunks(banks, skewed[:301], 4, [(301, 4, 0)]) + code_chunks(banks, skewed[:300], 4, [(300, 4, 0)])
    b += code_chunks(banks, [7], 4, [(1, 0, 0)])
    b += code_chunks(banks, [1, 2, 3, 4, 5, 6, 0, 0, 3, 3, 3, 3], 4, [(8, 0, 0), (4, 1, 0)])
    b += code_chunks(banks, [*scale], 8, [(12, 0, 0), (12, 0, 0)])
    grids: list[dict[str, object]] = [
        {"num_bits": 8, "symmetric": True, "strategy": "channel", "group_size": None},
        {"num_bits": 3, "symmetric": False, "strategy": "group", "group_size": 140},
    ]
    entries = lossless_entries() | {
        "a": {"dtype": "F32", "shape": [3, 100], "grid": 0, "scale": 1},
        "b": {"dtype": "BF16", "shape": [4, 300], "grid": 1, "scale": 1},
    }
    metadata = {
        "format": "qzc",
        "qzc.version": "0.2",
        "qzc.writer": "test",
        "qzc.coded": json.dumps(entries),
        "qzc.grids": json.dumps([grid | {"scale_method": "mse", "scale_dtype": "float16"} for grid in grids]),
        "qzc.records": json.dumps([RECORDS.to_json(), Records([(8, 2)]).to_json()]),
        "qzc.ties": json.dumps({"c": "a", "d": "bias"}),
        "qzc.base": "{}",
        "qzc.source": "{}",
    }
    maps = [
        Member("b.qzc.row_class", "U8", (4,), bytes([0, 1, 0, 2])),
        Member("b.qzc.column_class", "U8", (300,), bytes([1] + [0] * 299)),
    ]
    coded = [Coded("a", {}, a, []), Coded("b", {}, b, maps), *lossless_parts(banks)]
    plain = [Member("bias", "F32", (2,), bytes(range(8))), Member("empty", "I64", (0, 3), b"")]
    return encoder.seal(metadata, encoder.lay_out(plain, coded, banks))


SOURCE = b"header" + NUMBERS + b"12345678" + bytes(6) + b"12345678" + b"abcdefefcdabababefef" + b"end"


def restorable_file() -> bytes:
    """SOURCE: `f` and `p` as in `small_file`, `u`, which is stored, `v`, which is the same, and `e`, which is empty."""
    banks = encoder.no_tables()
    offsets = {"e": 3, "f": 6, "p": 76, "u": 68, "v": 54}
    rest = zlib.compress(b"header" + bytes(6) + b"end")
    metadata = {
        "format": "qzc",
        "qzc.version": "0.2",
        "qzc.writer": "test",
        "qzc.coded": json.dumps(lossless_entries()),
        "qzc.records": json.dumps([RECORDS.to_json(), Records([(8, 2)]).to_json()]),
        "qzc.ties": json.dumps({"v": "u"}),
        "qzc.base": "{}",
        "qzc.source_file": json.dumps({"kind": "gguf", "nbytes": len(SOURCE), "xxh3": f"{encoder.xxh3(SOURCE):016x}"}),
    }
    members = [
        Member("qzc.source.rest", "U8", (len(rest),), rest),
        Member("qzc.source.offsets", "U8", (5, 8), struct.pack("<5Q", *offsets.values())),
    ]
    plain = [Member("u", "U8", (8,), b"12345678"), Member("e", "U8", (0,), b"")]
    return encoder.seal(metadata, encoder.lay_out(plain, lossless_parts(banks), banks, members))
