"""Random files with tensors at a rate: the reference decoder and the package against the reference encoder."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from qzc.formats.reader import Reader
from tests import reference_header as header
from tests.reference_decoder import decode_file
from tests.reference_rate_encoder import FACTORS, KINDS, random_rate_file
from tests.resign import ROW


@pytest.mark.parametrize("seed", range(60))
def test_both_decoders_give_what_was_encoded(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    file = random_rate_file(rng, any_order=seed % 3 == 0)
    found = decode_file(file.data)
    (tmp_path / "m.qzc").write_bytes(file.data)
    assert found.keys() == file.expected.keys()
    with Reader(tmp_path / "m.qzc") as reader:
        assert reader.keys() == sorted(file.expected)
        reader.check_tables()
        for name, tensor in file.expected.items():
            reader.check(name)
            if tensor.levels is None or tensor.dequantized is None:
                assert found[name].raw == reader.raw(name).tobytes() == tensor.raw
                continue
            mine = reader.leveled(name)
            levels, weights = found[name].levels, found[name].dequantized
            assert levels is not None and weights is not None
            np.testing.assert_array_equal(levels, tensor.levels)
            np.testing.assert_array_equal(mine.levels.reshape(mine.shape), tensor.levels)
            assert weights.shape == mine.shape == tensor.shape
            assert weights.tobytes() == mine.dequantize().tobytes() == tensor.dequantized.tobytes()
            if tensor.shape:
                rows = slice(*sorted(rng.integers(0, tensor.shape[0] + 1, 2).tolist()))
                assert reader.leveled(name, rows).dequantize().tobytes() == tensor.dequantized[rows].tobytes()


def test_they_use_all_of_it() -> None:
    seen: Counter[str] = Counter()
    for seed in range(60):
        _, members, metadata = header.read_header(random_rate_file(np.random.default_rng(seed)).data)
        profile = header.read_metadata(metadata)
        numbers: list[tuple[str, int]] = []
        for entry in profile.entries.values():
            assert isinstance(entry, header.Rated)
            seen.update([f"{entry.states} states", entry.dtype, f"{len(entry.shape)}-d", *["wide"] * entry.wide])
            seen.update(["empty"] * (0 in entry.shape))
            numbers += [(kind, number) for kind, number in entry.vectors.items() if number is not None]
        seen.update(kind for kind, _ in numbers)
        seen.update(["shared"] * (len(set(numbers)) < len(numbers)) + ["tie"] * len(profile.ties))
        for _, _, _, coder, streams, *_ in ROW.iter_unpack(
            members["qzc.chunks"].data if "qzc.chunks" in members else b""
        ):
            seen.update([f"coder {coder}", f"{streams} streams"])
    wanted = {f"{states} states" for states in (0, *FACTORS)} | {f"{rank}-d" for rank in range(4)} | set(KINDS)
    wanted |= {"F64", "F32", "F16", "BF16", "wide", "empty", "shared", "tie", "coder 0", "coder 1", "coder 7"}
    wanted |= {f"{streams} streams" for streams in (1, 2, 4, 8, 16, 32)}
    assert {feature for feature in wanted if not seen[feature]} == set()
