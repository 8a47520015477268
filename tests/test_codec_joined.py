"""Lossless tensors piece by piece: the same bytes as plane by plane, and the same errors, wherever chunks and pieces end."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qzc.codec import joined
from qzc.codec.errors import CorruptionError
from qzc.codec.kernels import select
from qzc.codec.planes import encode_bytes
from qzc.codec.records import Records
from qzc.formats.profile import CodedTensor, Profile
from qzc.formats.reader import Reader
from qzc.formats.writer import Writer
from qzc.threads import thread_map

BYTE = (8, 1)
KINDS: dict[str, tuple[Records, tuple[str, ...]]] = {
    "bf16": (Records((BYTE, BYTE), rotate=True), ("raw", "ans")),
    "f16": (Records((BYTE, BYTE)), ("ans", "ans")),
    "f32": (Records(((8, 3), BYTE), rotate=True), ("raw", "ans")),
    "apart": (Records((BYTE,) * 4, rotate=True), ("ans", "ans", "raw", "ans")),
    "nibbles": (Records(((1, 1), (7, 1), (6, 1), (2, 1), BYTE, BYTE), rotate=True), ("raw", "ans", "ans", "raw", "raw", "ans")),
    "stored": (Records((BYTE, BYTE), rotate=True), ("raw", "raw")),
    "unlike": (Records(((8, 2), (8, 1), BYTE)), ("ans", "ans", "ans")),
    "f64": (Records(((8, 5), (4, 2), BYTE, BYTE), rotate=True), ("raw", "ans", "ans", "ans")),
    "whole": (Records((BYTE,)), ("ans",)),
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joined, "SMALL_NBYTES", 0)
    monkeypatch.setattr(joined, "PIECE_CODES", 700)
    monkeypatch.setattr(joined, "JOB_NBYTES", 4000)
    monkeypatch.setattr(joined, "GROUP_NBYTES", 3000)


@pytest.fixture(scope="module", params=["auto", "portable"])
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    caches = (select.batch_kernels, select.join_escaped)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QZC_KERNELS", request.param)
        for cache in caches:
            cache.cache_clear()
        yield request.param
    for cache in caches:
        cache.cache_clear()


def weights(records: Records, count: int, seed: int) -> NDArray[np.uint8]:
    """Records whose highest bytes are like exponents, and others noise; some stretches are all the same."""
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (count, records.nbytes), np.uint8)
    data[:, -1] = np.clip(np.abs(rng.normal(0, 2, count)), 0, 60) + 56
    data[count // 3 : count // 2] = data[:1]
    return data.reshape(-1)


def write(path: Path, tensors: dict[str, tuple[str, NDArray[np.uint8]]], chunk_codes: int) -> None:
    entries, chunks = {}, {}
    for name, (kind, data) in tensors.items():
        records, coders = KINDS[kind]
        chunks[name] = encode_bytes(data, records, coders, chunk_codes)
        entries[name] = CodedTensor("U8", (data.size,), None, records, data.size)
    with path.open("wb") as stream:
        writer = Writer(stream, Profile(entries, {}, None, "a test"), {})
        for name in writer.names:
            writer.write_lossless(name, chunks[name])
        writer.finish()


def read(path: Path, threads: int = 1) -> dict[str, NDArray[Any]]:
    with Reader(path) as reader, thread_map(threads) as run:
        names = reader.keys()
        return dict(zip(names, joined_only(reader, names, run), strict=True))


def joined_only(reader: Reader, names: list[str], run: Any) -> list[Any]:
    from qzc.codec.decoding import decode

    return decode([reader.array_decoding(name) for name in names], run)


@pytest.mark.usefixtures("kernels")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tensors=st.lists(st.tuples(st.sampled_from(sorted(KINDS)), st.integers(0, 6000)), min_size=1, max_size=4),
    chunk_codes=st.sampled_from([512, 1024, 1 << 18]),
    threads=st.sampled_from([1, 2]),
    group_nbytes=st.sampled_from([1, 3000, 1 << 20]),
    seed=st.integers(0, 99),
)
def test_every_tensor_comes_back(
    tensors: list[tuple[str, int]], chunk_codes: int, threads: int, group_nbytes: int, seed: int, tmp_path: Path
) -> None:
    path = tmp_path / "model.qzc"
    joined.GROUP_NBYTES = group_nbytes  # until `small_pieces` ends
    raw = {f"t{i}": (kind, weights(KINDS[kind][0], count, seed + i)) for i, (kind, count) in enumerate(tensors)}
    write(path, raw, chunk_codes)
    found = read(path, threads)
    assert all(np.array_equal(found[name], data) for name, (_, data) in raw.items())


def test_tensors_are_decoded_in_pieces_unless_their_chunks_do_not_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []
    run = joined.run_joined

    def watched(*arguments: Any) -> list[joined.JoinedTensor]:
        left = run(*arguments)
        found.append(len(left))
        return left

    monkeypatch.setattr("qzc.codec.decoding.run_joined", watched)
    for kind in KINDS:
        data = weights(KINDS[kind][0], 9000, 1)
        write(tmp_path / kind, {"t": (kind, data)}, 1024)
        assert np.array_equal(read(tmp_path / kind)["t"], data)
        assert found.pop() == (kind == "unlike"), kind


def test_few_bytes_do_not_wait_for_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joined, "SMALL_NBYTES", 40000)
    monkeypatch.setattr(joined, "_Pieces", None)
    data = weights(KINDS["bf16"][0], 9000, 1)
    write(tmp_path / "model.qzc", {"a": ("bf16", data), "b": ("bf16", data)}, 1024)
    assert np.array_equal(read(tmp_path / "model.qzc")["b"], data)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", ["bf16", "f32", "apart", "nibbles"])
def test_the_first_damaged_chunk_is_named(kind: str, threads: int, tmp_path: Path) -> None:
    path = tmp_path / "model.qzc"
    write(path, {name: (kind, weights(KINDS[kind][0], 9000, 3)) for name in ("a", "b")}, 1024)
    with Reader(path) as reader:
        index = reader.coded_file.index
        where = [int(offset) for offset in index.offsets]
    whole = bytearray(path.read_bytes())
    rng = np.random.default_rng(5)
    for first in [0, 1, *rng.integers(0, len(where), 8).tolist(), len(where) - 1]:
        later = rng.integers(first, len(where), 2).tolist()
        data = whole.copy()
        for chunk in {first, *later}:
            data[where[chunk]] ^= 1
        path.write_bytes(data)
        with pytest.raises(CorruptionError) as error:
            read(path, threads)
        assert f"file bytes {where[first]:,} to" in str(error.value) and "checksum" in str(error.value)


@pytest.mark.usefixtures("kernels")
def test_what_does_not_decode_is_named(tmp_path: Path) -> None:
    """A chunk with the right checksum for wrong bytes: nobody compares it here, as if it were right."""
    path = tmp_path / "model.qzc"
    write(path, {"a": ("bf16", weights(KINDS["bf16"][0], 9000, 3))}, 1024)
    with Reader(path) as reader:
        file = reader.coded_file
        chunk = int(np.flatnonzero(file.index.rows["coder"])[2])
        start, nbytes = int(file.index.offsets[chunk]), int(file.index.rows["nbytes"][chunk])
    data = bytearray(path.read_bytes())
    data[start : start + nbytes] = bytes([255]) * nbytes
    path.write_bytes(data)
    with Reader(path) as reader:
        reader.coded_file.verify = False
        with pytest.raises(
            CorruptionError, match=f"file bytes {start:,} to .* escape16: the payload ends inside its header"
        ):
            joined_only(reader, ["a"], map)
