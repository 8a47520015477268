"""Hostile `.qzc` files: any damage is found, nothing but a QzcError comes out, and memory stays small."""

import json
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qzc.codec.errors import CorruptionError, QzcError, TruncationError
from qzc.formats.reader import Reader
from qzc.model import Model
from tests import reference_encoder as encoder
from tests.containers import check, raises, sample
from tests.reference_decoder import decode_file
from tests.resign import FIELDS, ROW, column, put_together, resign, take_apart
from tests.test_reference import assert_same, small_file

Part = tuple[str, tuple[int, ...], bytes]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file name that all tests of this module write to: a new one for each of thousands of files takes too long."""
    return tmp_path_factory.mktemp("corruption") / "model.qzc"


def test_the_samples_are_whole(path: Path) -> None:
    coders = {coder for name in "ahz" for coder in column(sample(), name, "coder")}
    assert coders >= {0, 1, 2, 4}
    for data in (sample(), small_file()):
        assert_same(check(path, data), decode_file(data))
        assert resign(data) == data


# ---------------------------------------------------------------------------------------------------------------------
# Damage that a checksum finds


def test_a_flipped_bit_anywhere_is_noticed(path: Path) -> None:
    data = bytearray(sample())
    for at, bit in enumerate(np.random.default_rng(0).integers(0, 8, len(data)).tolist()):
        data[at] ^= 1 << bit
        with raises(path):
            check(path, data)
        data[at] ^= 1 << bit
    check(path, data)


def test_every_truncation_is_noticed(path: Path) -> None:
    data = sample()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with raises(path, TruncationError):
            Reader(path)
    for more in (1, 64):
        with raises(path, CorruptionError, "after the last"):
            check(path, data + bytes(more))


def test_damage_names_tensor_chunk_and_bytes(path: Path) -> None:
    data = bytearray(sample())
    header, body = take_apart(bytes(data))
    at = column(bytes(data), "h", "offset")[1]
    begin = header["h.qzc.payload"]["data_offsets"][0]
    data[len(data) - len(body) + begin + at] ^= 1
    with raises(path, CorruptionError, rf"tensor 'h', chunk 1 \(payload bytes {at} to \d+\): the checksum"):
        check(path, bytes(data))
    begin, end = header["bias"]["data_offsets"]
    start = len(data) - len(body)
    data[start + begin] ^= 1
    with raises(path, CorruptionError, rf"mismatch in 'bias' \(file bytes {start + begin} to {start + end - 1}\)"):
        check(path, bytes(data))


def test_damage_to_one_tensor_leaves_the_others_readable(path: Path) -> None:
    data = bytearray(sample())
    header, body = take_apart(bytes(data))
    data[len(data) - len(body) + header["a.qzc.scale"]["data_offsets"][0]] ^= 1
    path.write_bytes(data)
    with Model(path) as model:
        assert model["h"].shape == (3, 400) and model["second"].shape == (5,)
        for name in ("a", "tied"):
            with raises(path, CorruptionError, r"'a\.qzc\.scale'"):
                model.packed(name)


# ---------------------------------------------------------------------------------------------------------------------
# Memory


@contextmanager
def little_memory(limit: int) -> Iterator[None]:
    """Fails if more than `limit` bytes are in use at once; NumPy's arrays count from when they are allocated."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def claim(shape: list[int], args: dict[str, Any], members: dict[str, Part]) -> bytes:
    """A signed file with one coded tensor of any shape and parts."""
    metadata = {"format": "qzc", "qzc.version": "0.1", "qzc.writer": "a test"}
    metadata["qzc.coded"] = json.dumps({"a": {"dtype": "F32", "shape": shape, "grid": 0}})
    fields = {"num_bits": 8, "symmetric": True, "strategy": "tensor", "group_size": None}
    metadata["qzc.grids"] = json.dumps([fields | {"scale_method": "mse", "scale_dtype": "float16"} | args])
    parts: dict[str, Part] = {
        "payload": ("U8", (0,), b""),
        "chunks": ("U8", (0, 32), b""),
        "scale": ("F16", (1,), bytes(2)),
    }
    parts |= members
    return encoder.seal(metadata, [encoder.Member(f"a.qzc.{what}", *part) for what, part in parts.items()])


HUGE = 2**60
CLAIMS: list[tuple[list[int], dict[str, Any], dict[str, Part]]] = [
    ([2**47], {}, {}),
    ([1, 2**47], {"strategy": "channel"}, {"scale": ("F16", (1, 1), bytes(2))}),
    ([2**23, 2**24], {"symmetric": False}, {}),
    ([2**47], {"strategy": "channel"}, {}),
    ([2, 2**46], {"strategy": "group", "group_size": 1}, {}),
    ([1, 2**47], {"strategy": "group", "group_size": 2**30}, {}),
    ([0, 2**47], {}, {"column_class": ("U8", (2**47,), b"")}),
    ([HUGE], {}, {}),
    ([HUGE, 0], {"strategy": "group", "group_size": 1}, {"scale": ("F16", (HUGE, 0), b"")}),
]


@pytest.mark.parametrize("claimed", CLAIMS, ids=lambda claimed: f"{claimed[0]} {claimed[1]}")
def test_huge_shapes_without_data_take_no_memory(path: Path, claimed: Any) -> None:
    data = claim(*claimed)
    with little_memory(1 << 20), raises(path):
        check(path, data)


def test_chunks_of_no_bytes_claim_no_memory(path: Path) -> None:
    rows = b"".join(ROW.pack(0, 0, 2**24, 0, coder, 0, 0, 0, encoder.xxh3(b"")) for coder in [0, 1] * 500)
    data = claim([1000, 2**24], {}, {"chunks": ("U8", (1000, 32), rows)})
    with little_memory(1 << 20), raises(path, CorruptionError, "chunk 0 has 0 bytes"):
        check(path, data)


def test_huge_empty_tensors_take_no_memory(path: Path) -> None:
    for shape, classes in (([2**47, 0], "column"), ([0, 2**47], "row"), ([2**20, 0, 2**20], "column")):
        path.write_bytes(claim(shape, {}, {f"{classes}_class": ("U8", (0,), b"")}))
        with Reader(path) as reader, little_memory(1 << 20):
            assert reader.quantized("a").packed.size == 0
            assert reader.quantized("a", slice(0, 5)).packed.size == 0


def bomb(count: int) -> bytes:
    """`count` constant chunks of 2^24 codes each: at 48 bytes a chunk, 350,000 codes from every byte of the file."""
    payload = b"\x07".ljust(16, b"\0") * count
    # The payload comes first, so it begins on a multiple of 64 and all chunks are 16 bytes apart.
    chunks = b"".join(ROW.pack(16 * i, 1, 2**24, 0, 1, 0, 0, 0, encoder.xxh3(b"\x07")) for i in range(count))
    return claim(
        [count, 2**24], {}, {"payload": ("U8", (len(payload),), payload), "chunks": ("U8", (count, 32), chunks)}
    )


def test_a_bomb_goes_off_only_as_far_as_it_is_decoded(path: Path) -> None:
    path.write_bytes(bomb(4000))
    with little_memory(4 << 20), Reader(path) as reader:
        assert reader.info("a").shape == (4000, 2**24)
        assert len(reader.planes("a").index.rows) == 4000
    with little_memory(40 << 20), Reader(path) as reader:
        assert reader.check_chunks("a", lambda function, items: map(function, list(items)[:3])) == 4000
        part = reader.quantized("a", slice(3999, 4000))
        assert part.packed.size == 2**24 and set(part.packed[::4099].tolist()) == {7}


# ---------------------------------------------------------------------------------------------------------------------
# Fuzz: signed again after each mutation

ODD: list[Any] = [
    0, 1, -1, 2, 3, 8, 9, 15, 16, 63, 64, 255, 2**16, 2**24, 2**31, 2**32 - 1, 2**47, 2**53, 2**63 - 1, 2**64, 1.5,
    True, None, "", "a", "h", "F16", "F32", "U8", "qzc.x", [], [1], [0, 0], {}, {"a": 1}, "\u0000", "é" * 50,
]  # fmt: skip


def mutate_json(rng: np.random.Generator, value: Any) -> Any:
    """Something at a random place in a JSON value removed, doubled, swapped or replaced by something odd."""
    odd = ODD[rng.integers(len(ODD))]
    if isinstance(value, dict) and value and rng.random() < 0.9:
        keys = list(value)
        key = keys[rng.integers(len(keys))]
        kind = rng.random()
        if kind < 0.05:
            return {k: v for k, v in value.items() if k != key}
        if kind < 0.1:
            return {**value, keys[rng.integers(len(keys))]: value[key]}
        if kind < 0.15:
            return {(f"{key}x" if k == key else k): v for k, v in value.items()}
        return {k: mutate_json(rng, v) if k == key else v for k, v in value.items()}
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = int(rng.integers(len(value)))
        if rng.random() < 0.1:
            return value[:at] + value[at + 1 :]
        if rng.random() < 0.1:
            return [*value[:at], value[at], *value[at:]]
        return [mutate_json(rng, v) if i == at else v for i, v in enumerate(value)]
    if isinstance(value, int) and rng.random() < 0.6:
        return value + [-64, -16, -8, -1, 1, 8, 16, 64][rng.integers(8)]
    return odd


def mutate(rng: np.random.Generator, data: bytes) -> bytes:
    """One to three changes to the header, the JSON texts in it, a chunk index or any bytes."""
    header, body = take_apart(data)
    for _ in range(rng.integers(1, 4)):
        kind = rng.random()
        if kind < 0.15:
            header = mutate_json(rng, header)
            if not isinstance(header, dict):
                break
        elif kind < 0.4 and isinstance(header.get("__metadata__"), dict):
            texts = [key for key in ("qzc.coded", "qzc.grids", "qzc.ties") if key in header["__metadata__"]]
            for key in rng.permutation(texts)[:1].tolist():
                with suppress(TypeError, ValueError):  # an earlier change left no JSON
                    value = mutate_json(rng, json.loads(header["__metadata__"][key]))
                    header["__metadata__"] = header["__metadata__"] | {key: json.dumps(value)}
        else:
            names = [name for name in header if name.endswith(".qzc.chunks") or kind > 0.7]
            name = names[rng.integers(len(names))] if names else ""
            entry: Any = header.get(name)
            with suppress(TypeError, KeyError, ValueError):  # an earlier change left no such member
                begin, end = entry["data_offsets"]
                if kind <= 0.7 and 0 <= begin <= end - 32 <= len(body):
                    mutate_row(rng, body, begin, (end - begin) // 32)
                elif 0 <= begin < end <= len(body):
                    for at in rng.integers(begin, end, rng.integers(1, 5)).tolist():
                        body[at] = int(rng.choice([0, 1, 255, body[at] ^ 1 << rng.integers(8)]))
    return put_together(header, body, chunks=bool(rng.random() < 0.95))


def mutate_row(rng: np.random.Generator, body: bytearray, begin: int, count: int) -> None:
    at = begin + 32 * int(rng.integers(count))
    if at + 32 > len(body):
        return
    values = list(ROW.unpack_from(body, at))
    field = int(rng.integers(len(FIELDS)))
    top = (2**64, 2**32, 2**32, 2**32, 256, 256, 256, 256, 2**64)[field]
    steps = [1, -1, 8, -8, 16, -16, 256, top - 1, top // 2, 2**24]
    values[field] = (values[field] + steps[rng.integers(len(steps))]) % top if rng.random() < 0.8 else rng.integers(4)
    ROW.pack_into(body, at, *map(int, values))


@pytest.mark.parametrize("make", [sample, small_file])
def test_mutated_files_raise_nothing_but_our_errors(path: Path, make: Callable[[], bytes]) -> None:
    """And the reference decoder finds the same files good, with the same content."""
    rng = np.random.default_rng(0)
    outcomes: Counter[str] = Counter()
    with address_space(2 << 30):
        for _ in range(700):
            data = mutate(rng, make())
            try:
                found = check(path, data)
            except QzcError as error:
                assert str(path) in str(error)
                outcomes[type(error).__name__] += 1
                if "unknown scale method" not in str(error):  # free text to the reference decoder
                    with pytest.raises(ValueError):
                        decode_file(data)
                continue
            outcomes["whole"] += 1
            try:
                expected = decode_file(data)
            except ValueError as error:
                assert "unknown dtype" in str(error)  # bytes to us
                continue
            assert_same(found, expected)
    assert outcomes["whole"] > 20 and outcomes["CorruptionError"] > 300 and outcomes["UnsupportedError"] > 5


@contextmanager
def address_space(room: int) -> Iterator[None]:
    """Lets this process grow by `room` bytes and no more, where there is /proc: a larger allocation is a MemoryError."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        yield
        return
    import resource

    size = int(statm.read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
