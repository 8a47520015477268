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
from tests.containers import check, check_file, raises, sample
from tests.reference_decoder import BaseMissing, decode_file
from tests.resign import FIELDS, ROW, column, put_together, resign, take_apart
from tests.small_files import BASE, restorable_file, small_file
from tests.test_reference import assert_same

Part = tuple[str, tuple[int, ...], bytes]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file name that all tests of this module write to: a new one for each of thousands of files takes too long."""
    return tmp_path_factory.mktemp("corruption") / "model.qzc"


def test_the_samples_are_whole(path: Path) -> None:
    assert {coder for name in "afhprz" for coder in column(sample(), name, "coder")} >= {0, 1, 2, 4}
    for data in (sample(), small_file(), restorable_file()):
        assert_same(check(path, data), decode_file(data, BASE))
        assert resign(data) == data


# ---------------------------------------------------------------------------------------------------------------------
# Damage that a checksum finds


def test_a_flipped_bit_anywhere_is_noticed(path: Path) -> None:
    data = sample()
    check(path, data)
    # In place: to write a file anew takes longer than to check it.
    with path.open("r+b", buffering=0) as file:
        for at in range(0, len(data), 3):
            file.seek(at)
            file.write(bytes([data[at] ^ 1 << at % 8]))
            with raises(path):
                check_file(path)
            file.seek(at)
            file.write(data[at : at + 1])
    check_file(path)


def test_every_truncation_is_noticed(path: Path) -> None:
    data = sample()
    path.write_bytes(data)
    with path.open("r+b", buffering=0) as file:
        for size in reversed(range(len(data))):
            file.truncate(size)
            with raises(path, TruncationError):
                Reader(path)
    for more in (1, 64):
        with raises(path, CorruptionError, "after the last"):
            check(path, data + bytes(more))


def test_damage_names_tensor_chunk_and_bytes(path: Path) -> None:
    data = bytearray(sample())
    header, body = take_apart(bytes(data))
    start = len(data) - len(body)
    at = start + header["h.qzc.payload"]["data_offsets"][0] + column(bytes(data), "h", "offset")[1]
    data[at] ^= 1
    with raises(path, CorruptionError, rf"tensor 'h', chunk 1 \(file bytes {at:,} to [\d,]+\): the checksum"):
        check(path, bytes(data))
    begin, end = header["bias"]["data_offsets"]
    data[start + begin] ^= 1
    with raises(path, CorruptionError, rf"mismatch in 'bias' \(file bytes {start + begin} to {start + end - 1}\)"):
        check(path, bytes(data))


def test_damage_to_one_tensor_leaves_the_others_readable(path: Path) -> None:
    data = bytearray(sample())
    header, body = take_apart(bytes(data))
    start = len(data) - len(body)
    for name in ("a", "f"):
        data[start + header[f"{name}.qzc.payload"]["data_offsets"][0] + column(bytes(data), name, "offset")[-1]] ^= 1
    path.write_bytes(data)
    with Model(path) as model:
        assert model["h"].shape == (3, 400) and model["second"].shape == (5,) and model["p"].shape == (200,)
        for name in ("a", "tied"):
            with raises(path, CorruptionError, "tensor 'a', chunk 4 .*checksum"):
                model.packed(name)
        with raises(path, CorruptionError, "tensor 'f', chunk 2 .*checksum"):
            model["f"]


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


def claim(
    entry: dict[str, Any], records: dict[str, Any], payload: bytes = b"", rows: bytes = b"", **maps: bytes
) -> bytes:
    """A signed file with one coded tensor of any shape. entry: beside dtype, grid and numbers; maps: row_class .."""
    if "grid" in entry:
        fields = {"num_bits": 8, "symmetric": True, "strategy": "tensor", "group_size": None, "scale_method": "mse"}
        grids = [fields | {"scale_dtype": "float16"} | entry.pop("grid")]
        entry |= {"grid": 0, "scale": 0}
    else:
        grids, entry = [], {"records": 0} | entry
    metadata = {"format": "qzc", "qzc.version": "0.2", "qzc.writer": "a test", "qzc.grids": json.dumps(grids)}
    metadata["qzc.coded"] = json.dumps({"a": {"dtype": "F32"} | entry})
    metadata["qzc.records"] = json.dumps([{"fields": [[8, 2]], "rotate": False, "interleave": None} | records])
    parts = [encoder.Member("a.qzc.payload", "U8", (len(payload),), payload)]
    parts += [encoder.Member(f"a.qzc.{what}", "U8", (len(data),), data) for what, data in maps.items()]
    return encoder.seal(metadata, [*parts, encoder.Member("qzc.chunks", "U8", (len(rows) // 24, 24), rows)])


HUGE = 2**60
CLAIMS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"grid": {}, "shape": [2**47]}, {}),
    ({"grid": {"strategy": "channel"}, "shape": [1, 2**47]}, {}),
    ({"grid": {"symmetric": False}, "shape": [2**23, 2**24]}, {}),
    ({"grid": {"strategy": "channel"}, "shape": [2**47]}, {}),
    ({"grid": {"strategy": "group", "group_size": 1}, "shape": [2, 2**46]}, {}),
    ({"grid": {"strategy": "group", "group_size": 2**30}, "shape": [1, 2**47]}, {}),
    ({"grid": {}, "shape": [HUGE]}, {}),
    ({"grid": {"strategy": "group", "group_size": 1}, "shape": [HUGE, 0]}, {}),
    ({"shape": [2**45]}, {}),
    ({"shape": [2**45]}, {"fields": [[1, 16]]}),
    ({"shape": [2**45]}, {"fields": [[1, 2**19]]}),
    ({"shape": [2**45]}, {"fields": [[1, 1]] * 64}),
    ({"shape": [2**45]}, {"fields": [[8, 2**16]], "interleave": [1, 2**16]}),
    ({"shape": [2**45]}, {"fields": [[1, 8192]], "gather": [[[8192], [1, 0, 1]]]}),
    ({"shape": [2**45]}, {"fields": [[1, 2**19]], "gather": [[[2**19], [1, 0, 1]]]}),
    ({"shape": [2**45]}, {"fields": [[8, 1024]], "gather": [[[1024, 1], [8, 0, 8, 2**62]]]}),
    ({"shape": [2**45]}, {"fields": [[8, 1024]], "gather": [[[2**62, 2**62], [8, 0, 0, 0]]]}),
    ({"shape": [2**45], "palette": 256}, {"fields": [[8, 8]]}),
    ({"shape": [], "dtype": "Q", "nbytes": 2**48 - 2**16}, {"fields": [[8, 2**16]]}),
]


@pytest.mark.parametrize("claimed", CLAIMS, ids=str)
def test_huge_shapes_without_data_take_no_memory(path: Path, claimed: Any) -> None:
    data = claim(dict(claimed[0]), claimed[1])
    with little_memory(1 << 20), raises(path):
        check(path, data)


def test_chunks_of_no_bytes_claim_no_memory(path: Path) -> None:
    rows = b"".join(ROW.pack(0, 2**24, 0, coder, 0, 0, 0, encoder.xxh3(b"")) for coder in [0, 1] * 500)
    rows += ROW.pack(2, 2, 0, 0, 0, 0, 0, 0)
    data = claim({"grid": {}, "shape": [1000, 2**24]}, {}, bytes(16), rows)
    with little_memory(1 << 20), raises(path, CorruptionError, "chunk 0 has another number of bytes"):
        check(path, data)


def test_huge_empty_tensors_take_no_memory(path: Path) -> None:
    scale = ROW.pack(2, 2, 0, 0, 0, 0, 0, encoder.xxh3(bytes(2)))
    for shape, what in (([2**47, 0], "column"), ([0, 2**47], "row"), ([2**20, 0, 2**20], "column")):
        path.write_bytes(claim({"grid": {}, "shape": shape}, {}, bytes(16), scale, **{f"{what}_class": b""}))
        with Reader(path) as reader, little_memory(1 << 20):
            assert reader.quantized("a").packed.size == 0
            assert reader.quantized("a", slice(0, 5)).packed.size == 0
    for shape in ([2**47, 0], [0, 2**47]):
        path.write_bytes(claim({"shape": shape}, {"interleave": [1, 2**16]}))
        with Reader(path) as reader, little_memory(1 << 20):
            assert reader.array("a").shape == tuple(shape)


def bomb(count: int, entry: dict[str, Any], records: dict[str, Any], more: bytes) -> bytes:
    """`count` constant chunks of 2^24 codes each: at 40 bytes a chunk, 400,000 codes from every byte of the file.

    more: the raw codes of a plane behind them.
    """
    # The payload comes first, so it begins on a multiple of 64 and all chunks are 16 bytes apart.
    payload = b"\x07".ljust(16, b"\0") * count + more.ljust(-(-len(more) // 16) * 16, b"\0")
    rows = ROW.pack(1, 2**24, 0, 1, 0, 0, 0, encoder.xxh3(b"\x07")) * count
    rows += ROW.pack(len(more), len(more), 0, 0, 0, 0, 0, encoder.xxh3(more)) if more else b""
    return claim(entry, records, payload, rows)


def first_three(function: Any, items: Any) -> Any:
    return map(function, list(items)[:3])


def test_a_bomb_goes_off_only_as_far_as_it_is_decoded(path: Path) -> None:
    path.write_bytes(bomb(4000, {"grid": {}, "shape": [4000, 2**24]}, {}, bytes(2)))
    with little_memory(4 << 20), Reader(path) as reader:
        assert reader.info("a").shape == (4000, 2**24)
        assert len(reader.chunks("a")[0]) == 4001
    with little_memory(40 << 20), Reader(path) as reader:
        assert reader.check_chunks("a", first_three) == 4001
        part = reader.quantized("a", slice(3999, 4000))
        assert part.packed.size == 2**24 and set(part.packed[::4099].tolist()) == {7}


def test_a_lossless_bomb_goes_off_only_as_far_as_it_is_decoded(path: Path) -> None:
    path.write_bytes(bomb(4000, {"dtype": "U8", "shape": [4000, 2**24]}, {}, b""))
    with little_memory(40 << 20), Reader(path) as reader:
        assert reader.check_chunks("a", first_three) == 4000
        assert set(reader.array("a", slice(3999, 4000))[0, ::4099].tolist()) == {7}
    values = bytes(range(64))
    path.write_bytes(bomb(500, {"dtype": "F64", "shape": [500, 2**24], "palette": 8}, {"fields": [[8, 8]]}, values))
    with little_memory(40 << 20), Reader(path) as reader:
        assert reader.check_chunks("a", first_three) == 501
        assert reader.array("a", slice(3, 3)).shape == (0, 2**24)


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
            keys = ("qzc.coded", "qzc.grids", "qzc.records", "qzc.ties", "qzc.source_file")
            texts = [key for key in keys if key in header["__metadata__"]]
            for key in rng.permutation(texts)[:1].tolist():
                with suppress(TypeError, ValueError):  # an earlier change left no JSON
                    value = mutate_json(rng, json.loads(header["__metadata__"][key]))
                    header["__metadata__"] = header["__metadata__"] | {key: json.dumps(value)}
        else:
            names = [name for name in header if name == "qzc.chunks" or kind > 0.7]
            name = names[rng.integers(len(names))] if names else ""
            entry: Any = header.get(name)
            with suppress(TypeError, KeyError, ValueError):  # an earlier change left no such member
                begin, end = entry["data_offsets"]
                if kind <= 0.7 and 0 <= begin <= end - 24 <= len(body):
                    mutate_row(rng, body, begin, (end - begin) // 24)
                elif 0 <= begin < end <= len(body):
                    for at in rng.integers(begin, end, rng.integers(1, 5)).tolist():
                        body[at] = int(rng.choice([0, 1, 255, body[at] ^ 1 << rng.integers(8)]))
    return put_together(header, body, chunks=bool(rng.random() < 0.95))


def mutate_row(rng: np.random.Generator, body: bytearray, begin: int, count: int) -> None:
    at = begin + 24 * int(rng.integers(count))
    if at + 24 > len(body):
        return
    values = list(ROW.unpack_from(body, at))
    field = int(rng.integers(len(FIELDS)))
    top = (2**32, 2**32, 2**32, 256, 256, 256, 256, 2**64)[field]
    steps = [1, -1, 8, -8, 16, -16, 256, top - 1, top // 2, 2**24]
    values[field] = (values[field] + steps[rng.integers(len(steps))]) % top if rng.random() < 0.8 else rng.integers(4)
    ROW.pack_into(body, at, *map(int, values))


@pytest.mark.parametrize("make", [sample, small_file, restorable_file])
def test_mutated_files_raise_nothing_but_our_errors(path: Path, make: Callable[[], bytes]) -> None:
    """And the reference decoder finds the same files good, with the same content."""
    rng = np.random.default_rng(0)
    outcomes: Counter[str] = Counter()
    with address_space(2 << 30):
        for _ in range(600):
            data = mutate(rng, make())
            try:
                found = check(path, data)
            except QzcError as error:
                assert str(path) in str(error)
                outcomes[type(error).__name__] += 1
                if "unknown scale method" not in str(error):  # free text to the reference decoder
                    with pytest.raises((ValueError, BaseMissing)):
                        decode_file(data, BASE)
                continue
            outcomes["whole"] += 1
            assert_same(found, decode_file(data, BASE))
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
