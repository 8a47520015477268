"""What decided the layout of `ans`: four streams of 32 lanes side by side, or one stream of 128; seeded with the tail or not.

    python benchmarks/layout_lanes.py MODEL.safetensors [--seconds 20]

The product's kernel decodes four streams whose word pointers do not wait for each other. Its twin here takes the same
steps on one stream of 128 lanes: per step lanes 0..31 of each quarter, one pointer through all of them. Both run on the same
codes (chunks of 262,144, group 128), checked, in one interleaved run; sizes are payloads, with initial states and word counts.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import qzc
from qzc.analysis.speed import take_turns
from qzc.codec.ans import ANS16
from qzc.codec.histogram import byte_counts
from qzc.codec.kernels.ans16_decode_avx2 import (
    _decode,
    _down,
    _fill,
    _in_order,
    _low,
    _multiply,
    _rank,
    _tables,
    decode_ans16,
)
from qzc.codec.kernels.ans_header import I, U
from qzc.codec.kernels.ans_states_avx2 import STATE
from qzc.codec.kernels.ans_streams_avx2 import take_words
from qzc.codec.kernels.jit import inlined, kernel
from qzc.codec.kernels.simd import (
    add_u64,
    blend_b,
    load,
    load_twice,
    mul_h,
    or_,
    scratch,
    shuffle_b,
    store,
    store_u16,
)

CODES, LANES, PAD = 1 << 18, 128, 1024
_states = scratch(4 * 128)


@kernel
def decode_four(
    payload: NDArray[np.uint8], streams: int, frequencies: NDArray[np.uint16], out: NDArray[np.uint8]
) -> int:
    return decode_ans16(payload, streams, frequencies, out, U(0), U(0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--seconds", type=float, default=20)
    options = parser.parse_args()
    chunks = [
        packed[at : at + CODES // 2]
        for packed in quantized(options.model)
        for at in range(0, len(packed) - CODES // 2 + 1, CODES // 2)
    ]
    chunks = chunks[:: max(1, len(chunks) // 16)]
    four: list[Any] = []
    one: list[Any] = []
    nbytes = np.zeros(3, np.int64)
    for chunk in chunks:
        table = ANS16.fit(byte_counts(chunk))
        payload, out = ANS16.encode(chunk, table, 4), np.zeros(len(chunk), np.uint8)
        four.append(partial(decode_four, payload, 4, table.frequencies.copy(), out))
        four[-1]()
        assert np.array_equal(out, chunk)
        words, states = np.zeros(len(chunk) + PAD, np.uint16), np.zeros(LANES, np.uint32)
        used = encode_128(chunk, table.frequencies.copy(), words, states)
        out = np.zeros(len(chunk), np.uint8)
        one.append(partial(decode_128, words[len(chunk) - used :].copy(), states, table.frequencies.copy(), out))
        one[-1]()
        assert np.array_equal(out, chunk)
        # Seeding leaves the last 256 bytes of the chunk to the states and is otherwise the same code.
        tail = encode_128(chunk[:-256], table.frequencies.copy(), words, states)
        nbytes += payload.size, 2 * used + 4 * LANES + 4, 2 * tail + 4 * LANES + 4
    race = take_turns({"4 x 32": (partial(_all, four),), "1 x 128": (partial(_all, one),)}, options.seconds)
    codes = CODES * len(chunks)
    print(f"{options.model.name}: {len(chunks)} chunks of {CODES:,} codes, {race.clock_ghz:.2f} GHz\n")
    print("| layout | bits/code | cycles/code, median |\n|---|---|---|")
    seconds = {key: timing.median for key, timing in race.timings.items()}
    rows = [
        ("4 streams of 32 lanes, seeded (the format)", nbytes[0], seconds["4 x 32"]),
        ("1 stream of 128 lanes, not seeded", nbytes[1], seconds["1 x 128"]),
        ("1 stream of 128 lanes, seeded", nbytes[2], seconds["1 x 128"]),
    ]
    for title, size, taken in rows:
        print(f"| {title} | {8 * size / codes:.4f} | {taken * race.clock_ghz * 1e9 / codes:.3f} |")


def quantized(model: Path) -> list[NDArray[np.uint8]]:
    """The packed codes of every tensor that `pack` quantizes to 4 bits by default."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.qzc"
        qzc.pack(model, path, qzc.PackOptions(coder="raw", verify=False))
        return [t.packed for t in qzc.load_file(path).values() if isinstance(t, qzc.QuantizedTensor)]


def _all(calls: list[Any]) -> None:
    for call in calls:
        call()


@kernel
def encode_128(
    packed: NDArray[np.uint8], frequencies: NDArray[np.uint16], words: NDArray[np.uint16], states: NDArray[np.uint32]
) -> int:
    """Scalar. Words end PAD before the end of `words`; returns their number. packed.size must be a multiple of 128."""
    starts = np.zeros(16, np.int64)
    for s in range(1, 16):
        starts[s] = starts[s - 1] + I(frequencies[s - 1])
    x = np.full(LANES, 1 << 16, np.int64)
    p = words.size - PAD
    for at in range(packed.size - 1, -1, -1):
        lane = at % LANES
        low, high = I(packed[at]) & 15, I(packed[at]) >> 4
        f, g, y = I(frequencies[low]), I(frequencies[high]), x[lane]
        if y >= (f * g) << 16:
            p -= 1
            words[p] = y & 65535
            y >>= 16
        y = (y // g) << 8 | (y % g + starts[high] + 128) & 255
        x[lane] = (y // f) << 8 | (y % f + starts[low] + 128) & 255
    for lane in range(LANES):
        states[lane] = x[lane]
    return words.size - PAD - p


@kernel
def decode_128(
    words: NDArray[np.uint16], states: NDArray[np.uint32], frequencies: NDArray[np.uint16], out: NDArray[np.uint8]
) -> None:
    """No checks: `words` needs PAD words behind the stream."""
    tables, s = _tables(), _states()
    _fill(frequencies, tables)
    for i in range(LANES):
        lane, place = i & 31, s + STATE * U(i >> 5)
        place += U((lane & 8) * 4 + (lane & 7) * 2 + (lane >> 4) * 16)
        store_u16(place, U(states[i]) & U(65535))
        store_u16(place + U(64), U(states[i]) >> U(16))
    _steps_128(U(out.size // LANES), s, U(words.ctypes.data), U(out.ctypes.data), tables)


@inlined
def _steps_128(steps: Any, s: Any, p: Any, target: Any, t0: Any) -> None:
    t = (
        load_twice(t0), load_twice(t0 + U(16)), load_twice(t0 + U(32)), load_twice(t0 + U(48)), load_twice(t0 + U(64)),
        load_twice(t0 + U(80)), load_twice(t0 + U(96)), load_twice(t0 + U(112)), load_twice(t0 + U(128)),
        load_twice(t0 + U(144)),
    )  # fmt: skip
    for _ in range(steps):
        p = _step_128((s, s + STATE), (s + U(2) * STATE, s + U(3) * STATE), p, target, t)
        target += U(LANES)


@inlined
def _step_128(s: Any, z: Any, p: Any, target: Any, t: Any) -> Any:
    """As the product's `_step`, but for the pointer."""
    la, lb, lc, ld = load(s), load(add_u64(s, U(32))), load(z), load(add_u64(z, U(32)))
    slot, slot2 = _low(la, lb), _low(lc, ld)
    rank, rank2 = _rank(slot, t), _rank(slot2, t)
    ya, yb, fa, fb = _decode(slot, rank, _down(la), _down(lb), t)
    yc, yd, fc, fd = _decode(slot2, rank2, _down(lc), _down(ld), t)
    slot, slot2 = _low(ya, yb), _low(yc, yd)
    high, high2 = _rank(slot, t), _rank(slot2, t)
    ua, ub, ga, gb = _decode(slot, high, _down(ya), _down(yb), t)
    uc, ud, gc, gd = _decode(slot2, high2, _down(yc), _down(yd), t)
    fa, fb, fc, fd = mul_h(fa, ga), mul_h(fb, gb), mul_h(fc, gc), mul_h(fd, gd)
    na, nb, la, lb, m = _multiply(s, fa, fb, ua, ub)
    nc, nd, lc, ld, m2 = _multiply(z, fc, fd, uc, ud)
    wa, wb, p = take_words(p, m[0])
    va, vb, p = take_words(p, m[1])
    store(s, blend_b(na, (wa, va), la))
    store(add_u64(s, U(32)), blend_b(nb, (wb, vb), lb))
    wa, wb, p = take_words(p, m2[0])
    va, vb, p = take_words(p, m2[1])
    store(z, blend_b(nc, (wa, va), lc))
    store(add_u64(z, U(32)), blend_b(nd, (wb, vb), ld))
    store((target, target + U(32)), shuffle_b(or_(shuffle_b(t[8], rank), shuffle_b(t[9], high)), _in_order()))
    second = shuffle_b(or_(shuffle_b(t[8], rank2), shuffle_b(t[9], high2)), _in_order())
    store((target + U(64), target + U(96)), second)
    return p


if __name__ == "__main__":
    main()
