"""Kernels compare the checksums of payloads: a damaged one is told, and not decoded."""

from collections.abc import Iterator

import numpy as np
import pytest
import xxhash

from qzc.codec.buffers import read_only
from qzc.codec.coder import CODERS, Coder
from qzc.codec.histogram import byte_counts
from qzc.codec.kernels.select import batch_kernels
from qzc.codec.kernels.status import OK, WRONG_CHECKSUM
from qzc.codec.kernels.xxh3 import xxh3_address
from qzc.codec.task import TASK


@pytest.fixture(params=["auto", "portable"], autouse=True)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("QZC_KERNELS", request.param)
    batch_kernels.cache_clear()
    yield
    batch_kernels.cache_clear()


@pytest.mark.parametrize("coder", CODERS.values(), ids=lambda coder: coder.name)
def test_only_sound_payloads_are_decoded(coder: Coder) -> None:
    rng = np.random.default_rng(1)
    data = read_only(
        np.full(3000, 7, np.uint8) if coder.name == "constant" else rng.binomial(255, 0.5, 3000).astype(np.uint8)
    )
    table, streams = coder.fit(byte_counts(data)), coder.default_streams(data.size)
    payload = coder.encode(data, table, streams)
    bank = coder.parse_bank(table.to_bytes()) if table and coder.table_nbytes else np.zeros((1, 1), np.uint16)
    outs, tasks, status = np.zeros((4, data.size), np.uint8), np.zeros(4, TASK), np.full(4, -1)
    checksum = xxhash.xxh3_64_intdigest(payload)
    for i, (wrong, address) in enumerate([(0, xxh3_address()), (1, xxh3_address()), (1 << 63, xxh3_address()), (1, 0)]):
        place = payload.ctypes.data, payload.size, streams, bank.ctypes.data, outs[i].ctypes.data, data.size
        tasks[i] = *place, 0, 0, checksum ^ wrong, address, 0, 0
    batch_kernels()[coder.id](tasks, status)
    assert status.tolist() == [OK, WRONG_CHECKSUM, WRONG_CHECKSUM, OK]
    assert np.array_equal(outs[0], data) and np.array_equal(outs[3], data)
    assert not outs[1:3].any()
