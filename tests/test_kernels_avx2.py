"""The vector kernels: the same bytes as the portable ones, and no access outside their buffers, whatever the payload.

As a program (`python test_kernels_avx2.py CODER SEED`) this file attacks one coder with buffers between guard pages,
where a single byte too far kills the process.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import ModuleType

import llvmlite.binding
import numpy as np
import pytest
from numpy.typing import NDArray

from qzc.codec.ans import encoded_bound
from qzc.codec.buffers import read_only
from qzc.codec.task import TASK

AVX2 = bool(llvmlite.binding.get_host_cpu_features().get("avx2", False))
pytestmark = pytest.mark.skipif(not AVX2, reason="this CPU has no AVX2")

LANES = 32
SIZES = [*range(1, 300), 8191, 8192, 8193, 20000]
Bytes = NDArray[np.uint8]
Table = NDArray[np.uint16]
Kernels = tuple[Callable[[Bytes, int, Table, Bytes], int], Callable[[Bytes, int, Table, Bytes], int]]


def kernels(encoders: ModuleType, loops: ModuleType, coder: str) -> Kernels:
    """Encoder and decoder of a coder. loops: those over batches of chunks, which decode a batch of one here."""
    loop = getattr(loops, f"decode_{coder}")

    def decode(payload: Bytes, streams: int, frequencies: Table, out: Bytes) -> int:
        tasks, status = np.zeros(1, TASK), np.full(1, -1)
        addresses = frequencies.ctypes.data, out.ctypes.data
        tasks[0] = (payload.ctypes.data, payload.size, streams, *addresses, out.size, *6 * (0,))
        loop(tasks, status)
        return int(status[0])

    return getattr(encoders, f"encode_{coder}"), decode


def portable(coder: str) -> Kernels:
    from qzc.codec.kernels import ans_portable, batch

    return kernels(ans_portable, batch, coder)


def vector(coder: str) -> Kernels:
    from qzc.codec.kernels import ans_avx2, batch_avx2

    return kernels(ans_avx2, batch_avx2, coder)


def fills(nbytes: int, streams: int) -> bool:
    return (streams - 1) * (-(-nbytes // (LANES * streams)) * LANES) < nbytes


def table(rng: np.random.Generator, symbols: int, used: NDArray[np.int64], skew: float) -> Table:
    """Frequencies of at least 1 for the symbols in use; the larger `skew`, the more unequal."""
    total = 256 if symbols == 16 else 4096
    weights = rng.random(used.size) ** skew + 1e-9
    frequencies = np.zeros(symbols, np.int64)
    frequencies[used] = 1 + np.floor(weights / weights.sum() * (total - used.size)).astype(np.int64)
    frequencies[used[np.argmax(weights)]] += total - frequencies.sum()
    return frequencies.astype(np.uint16)


def draw(rng: np.random.Generator, symbols: int, nbytes: int) -> tuple[Bytes, Table]:
    """Bytes and a table for them: any number of symbols, drawn by the table, evenly, or the rarest all the time."""
    used = rng.permutation(symbols)[: rng.integers(2, symbols + 1)]
    frequencies = table(rng, symbols, used, rng.choice([0.0, 1.0, 4.0, 100.0]))
    count = nbytes * (2 if symbols == 16 else 1)
    kind = rng.integers(3)
    if kind == 0:
        codes = rng.choice(symbols, count, p=frequencies / frequencies.sum())
    elif kind == 1:
        codes = rng.choice(used, count)
    else:
        codes = np.full(count, used[np.argmin(frequencies[used])])
    return (nibbles(codes) if symbols == 16 else codes.astype(np.uint8)), frequencies


def nibbles(codes: NDArray[np.int64]) -> Bytes:
    return (codes[::2] | codes[1::2] << 4).astype(np.uint8)


def symbols_of(coder: str) -> int:
    return 16 if coder == "ans16" else 256


def encoded(
    encode: Callable[[Bytes, int, Table, Bytes], int], packed: Bytes, streams: int, frequencies: Table
) -> Bytes:
    scratch = np.empty(encoded_bound(packed.size, streams), np.uint8)
    nbytes = encode(packed, streams, frequencies, scratch)
    return scratch[scratch.size - nbytes :].copy()


@pytest.mark.parametrize("coder", ["ans16", "ans256"])
@pytest.mark.parametrize("streams", range(1, 10))
def test_same_bytes_as_the_portable_kernels(coder: str, streams: int) -> None:
    rng = np.random.default_rng(streams)
    for nbytes in SIZES:
        if fills(nbytes, streams):
            packed, frequencies = draw(rng, symbols_of(coder), nbytes)
            payload = encoded(portable(coder)[0], packed, streams, frequencies)
            assert np.array_equal(encoded(vector(coder)[0], packed, streams, frequencies), payload), (
                nbytes,
                frequencies,
            )
            out = np.zeros(nbytes, np.uint8)
            assert vector(coder)[1](payload, streams, frequencies, out) == 0, (nbytes, frequencies)
            assert np.array_equal(out, packed), (nbytes, frequencies)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_every_frequency_of_a_nibble(share: float) -> None:
    rng = np.random.default_rng(7)
    for frequency in range(1, 256):
        frequencies = np.zeros(16, np.uint16)
        frequencies[[3, 12]] = frequency, 256 - frequency
        packed = nibbles(np.where(rng.random(8192) < share, 3, 12))
        payload = encoded(portable("ans16")[0], packed, 4, frequencies)
        assert np.array_equal(encoded(vector("ans16")[0], packed, 4, frequencies), payload), frequency


@pytest.mark.parametrize("largest", [180, 181, 182, 255])
def test_both_encoders_at_the_frequency_that_parts_them(largest: int) -> None:
    rng = np.random.default_rng(largest)
    rest = rng.multinomial(256 - largest, [1 / 4] * 4)
    frequencies = np.zeros(16, np.uint16)
    frequencies[[5, *(np.flatnonzero(rest) + 8)]] = largest, *rest[rest > 0]
    used = np.flatnonzero(frequencies)
    for share in (1.0, 0.9, 0.3, 0.0):  # of the most likely one: states become as large as they can, or as small
        codes = np.where(rng.random(40_000) < share, 5, rng.choice(used, 40_000))
        packed = nibbles(codes)
        payload = encoded(portable("ans16")[0], packed, 4, frequencies)
        assert np.array_equal(encoded(vector("ans16")[0], packed, 4, frequencies), payload), share


def test_counts_of_nibbles() -> None:
    from qzc.codec.kernels import bits, nibbles_avx2

    rng = np.random.default_rng(3)
    data = rng.choice(256, 200_000, p=rng.dirichlet(np.full(256, 0.1))).astype(np.uint8)
    data[100_000:] = 0x77  # all in one counter
    for nbytes in [*range(0, 600, 7), 255, 256, 257, 65279, 65280, 65281, 65536, 130_560, 199_000]:
        for offset in (0, 1, 31, 999):
            view = read_only(data[offset : offset + nbytes])
            expected = np.bincount(np.concatenate([view & 15, view >> 4]), minlength=16) + 5
            for module in (bits, nibbles_avx2):
                counts = np.full(16, 5, np.int64)
                module.count_nibbles(view, counts)
                assert counts.tolist() == expected.tolist(), (module.__name__, nbytes, offset)
    counts = np.zeros(16, np.int64)
    nibbles_avx2.count_nibbles(read_only(np.full(3_000_000, 0xFF, np.uint8)), counts)
    assert counts.tolist() == [0] * 15 + [6_000_000]


def test_reciprocals_are_exact() -> None:
    from qzc.codec.kernels import ans16_encode_avx2

    needs_delta = ans16_encode_avx2.needs_delta.py_func  # type: ignore[attr-defined]
    reciprocal = ans16_encode_avx2.reciprocal.py_func  # type: ignore[attr-defined]
    deltas = [needs_delta(f) for f in range(1, 256)]
    assert 1 in deltas and deltas.index(1) + 1 > 181
    for f in range(1, 256):
        u = np.arange(256 * f)
        # Beside a frequency that needs 1, which is above 181, there are only frequencies up to 74.
        for delta in {deltas[f - 1], 0 if f <= 181 else deltas[f - 1], 1 if f <= 74 else deltas[f - 1]}:
            k, m = reciprocal(f, delta)
            assert k < 256 and m < 65536 and (u[-1] + delta) * k < 65536
            assert np.array_equal((u + delta) * k * m >> 23, u // f), (f, delta)


@pytest.mark.parametrize("nbytes", [*range(1, 300), 8191, 8192, 8193])
def test_split_bytes_are_joined_as_by_the_portable_kernel(nbytes: int) -> None:
    from qzc.codec.kernels import split8, split8_avx2

    rng = np.random.default_rng(nbytes)
    payload, frequencies = split_payload(rng, nbytes, 1)
    found, expected = np.zeros((2, nbytes), np.uint8)
    assert split8_avx2.decode_split8(payload, 1, frequencies, found) == 0
    assert split8.decode_split8(payload, 1, frequencies, expected) == 0
    assert np.array_equal(found, expected)
    low, high = np.zeros((2, -(-nbytes // 2)), np.uint8)
    split8.split(found, low, high)
    assert np.array_equal(low, payload[: low.size])
    assert np.array_equal(encoded(portable("ans16")[0], high, 1, frequencies), payload[low.size :])


@pytest.mark.parametrize("coder", ["ans16", "ans256", "split8"])
@pytest.mark.parametrize("seed", range(2))
def test_no_access_out_of_bounds(coder: str, seed: int) -> None:
    if not hasattr(os, "fork"):
        pytest.skip("no mprotect")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-X", "faulthandler", __file__, coder, str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{done.returncode}: {done.stdout[-500:]} {done.stderr[-2000:]}"
    assert "payloads rejected" in done.stdout


class Guarded:
    """Bytes that begin or end at a page which must not be touched."""

    def __init__(self, nbytes: int, at_end: bool) -> None:
        page = mmap.PAGESIZE
        room = -(-max(nbytes, 1) // page) * page
        self.memory = mmap.mmap(-1, room + 2 * page)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        libc = ctypes.CDLL(None, use_errno=True)
        for guard in (base, base + page + room):
            assert libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0) == 0, os.strerror(ctypes.get_errno())
        begin = base + page + (room - nbytes if at_end else 0)
        self.array: Bytes = np.frombuffer((ctypes.c_uint8 * nbytes).from_address(begin), np.uint8)


def split_payload(rng: np.random.Generator, nbytes: int, streams: int) -> tuple[Bytes, Table]:
    """A valid payload of coder 5 for `nbytes` bytes, and its table."""
    half = -(-nbytes // 2)
    high, frequencies = draw(rng, 16, half)
    low = rng.integers(0, 256, half).astype(np.uint8)
    if nbytes % 2:
        low[-1] &= 15
        high[-1] &= 15
    return np.concatenate([low, encoded(portable("ans16")[0], high, streams, frequencies)]), frequencies


def hostile(rng: np.random.Generator, payload: Bytes, streams: int, frequencies: Table) -> Iterator[Bytes]:
    """Variations of a payload: most are corrupt."""
    head = 4 * (streams - 1)
    for _ in range(2):  # states of any lengths, behind which there may be less than they need
        lengths = payload.copy()
        lengths[head : head + 16] = rng.integers(0, 256, lengths[head : head + 16].size)
        yield lengths
        yield lengths[: rng.integers(head, min(lengths.size, head + 200))]
    # Words that decode to symbols of frequency 1 are used up at once: the largest appetite there is.
    rarest = int(np.argmin(np.where(frequencies > 0, frequencies, 65535)))
    start = int(frequencies[:rarest].sum())
    greedy = ((start + 128) & 255) * 0x0101 if frequencies.size == 16 else start
    words = max(0, (payload.size - head - 110 * streams) // 2)
    # States and words at random, or greedy, behind sizes that fit: all in the last stream, in the first, anywhere, and few.
    for sizes in (
        [*[0] * (streams - 1), words],
        [words, *[0] * (streams - 1)],
        np.diff([0, *np.sort(rng.integers(0, words + 1, streams - 1)), words]).tolist(),
        [0] * streams,
        [*[0] * (streams - 1), 1],
    ):
        states = rng.integers(1 << 16, 1 << rng.integers(17, 33), LANES * streams)
        yield assemble(sizes, states, rng.integers(0, 1 << 16, sum(sizes)))
        states[:] = greedy | max(greedy, 1) << 16
        yield assemble(sizes, states, np.full(sum(sizes), greedy))


def assemble(sizes: list[int], states: NDArray[np.int64], words: NDArray[np.int64]) -> Bytes:
    """A payload from its parts."""
    parts = [np.array(sizes[:-1], "<u4").tobytes()]
    for of_stream in states.reshape(-1, LANES).tolist():
        lengths = [(x >> 16).bit_length() - 1 for x in of_stream]
        bits = place = 0
        for x, e in zip(of_stream, lengths, strict=True):
            bits |= ((x >> 16) - (1 << e)) << place
            place += e
        parts.append(bytes(a | b << 4 for a, b in zip(lengths[::2], lengths[1::2], strict=True)))
        parts.append(np.array([x & 65535 for x in of_stream], "<u2").tobytes())
        parts.append(bits.to_bytes(-(-place // 16) * 2, "little"))
    return np.frombuffer(b"".join([*parts, words.astype("<u2").tobytes()]), np.uint8)


def attack(coder: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rejected = accepted = 0
    for nbytes in [1, 31, 65, 96, 97, 160, 300, 500, 1000, 1500, 4096, 5000, 9999]:
        for streams in (1, 2, 3, 4, 5, 9):
            if not fills(nbytes, streams):
                continue
            packed, frequencies = draw(rng, symbols_of(coder), nbytes)
            for at_end in (False, True):
                source, scratch = Guarded(nbytes, at_end), Guarded(encoded_bound(nbytes, streams), at_end)
                source.array[:] = packed
                size = vector(coder)[0](source.array, streams, frequencies, scratch.array)
                payload = scratch.array[scratch.array.size - size :].copy()
                out = Guarded(nbytes, at_end)
                for number, bad in enumerate([payload, *hostile(rng, payload, streams, frequencies)]):
                    view = Guarded(bad.size, at_end)
                    view.array[:] = bad
                    status = vector(coder)[1](view.array, streams, frequencies, out.array)
                    expected = np.zeros(nbytes, np.uint8)
                    if portable(coder)[1](bad, streams, frequencies, expected) == 0:
                        accepted += 1
                        assert status == 0 and np.array_equal(out.array, expected), (nbytes, streams, number)
                    else:
                        rejected += 1
                        assert status != 0, (nbytes, streams, number)
    from qzc.codec.kernels.nibbles_avx2 import count_nibbles

    for nbytes in (1, 255, 256, 300, 4096, 70_000):
        for at_end in (False, True):
            source = Guarded(nbytes, at_end)
            count_nibbles(read_only(source.array), np.zeros(16, np.int64))
    assert accepted > 100 and rejected > 1000
    print(f"{rejected} payloads rejected, {accepted} decoded")


def attack_split8(seed: int) -> None:
    from qzc.codec.kernels import split8, split8_avx2

    rng = np.random.default_rng(seed)
    rejected = accepted = 0
    for nbytes in [1, 2, 63, 64, 65, 127, 128, 129, 130, 300, 999, 1000, 4096, 9999]:
        half = -(-nbytes // 2)
        for streams in (1, 2, 4, 5):
            if not fills(half, streams):
                continue
            good, frequencies = split_payload(rng, nbytes, streams)
            bad = [np.concatenate([good[:half], end]) for end in hostile(rng, good[half:], streams, frequencies)]
            bad += [good[: rng.integers(half)], good[:half], *(np.roll(good, shift) for shift in (-1, 1, half))]
            for at_end in (False, True):
                out, expected = Guarded(nbytes, at_end), np.zeros(nbytes, np.uint8)
                for number, payload in enumerate([good, *bad]):
                    view = Guarded(payload.size, at_end)
                    view.array[:] = payload
                    status = split8_avx2.decode_split8(view.array, streams, frequencies, out.array)
                    wanted = split8.decode_split8(payload, streams, frequencies, expected)
                    assert (status == 0) == (wanted == 0), (nbytes, streams, number)
                    assert status or np.array_equal(out.array, expected), (nbytes, streams, number)
                    rejected += status != 0
                    accepted += status == 0
    assert accepted > 60 and rejected > 1000
    print(f"{rejected} payloads rejected, {accepted} decoded")


if __name__ == "__main__":
    if sys.argv[1] == "split8":
        attack_split8(int(sys.argv[2]))
    else:
        attack(sys.argv[1], int(sys.argv[2]))
