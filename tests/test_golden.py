"""Golden files decode to the same numbers for ever, by the package and by the decoder written from the SPEC."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors

import qzc
from qzc.codec.coder import CODERS
from qzc.codec.tensor import QuantizedTensor
from qzc.formats.reader import Reader
from qzc.model import Model
from tests.golden import WRITER, Golden, described, described_by_reference, digest, encode, golden
from tests.reference_decoder import decode_file

FOLDER = Path(__file__).parent.parent / "fixtures" / "golden"
EXPECTED: dict[str, dict[str, Any]] = json.loads((FOLDER / "expected.json").read_text("utf-8"))
deserialize: Any = safetensors.deserialize
each_file = pytest.mark.parametrize("name", EXPECTED)


def read(name: str) -> bytes:
    return (FOLDER / f"{name}.qzc").read_bytes()


@each_file
def test_the_file_is_the_one_that_was_written(name: str) -> None:
    assert digest(np.frombuffer(read(name), np.uint8)) == EXPECTED[name]["file"]


@each_file
def test_the_package_decodes_it(name: str) -> None:
    expected = EXPECTED[name]
    with qzc.open(FOLDER / f"{name}.qzc") as model:
        assert list(model) == sorted(expected["tensors"])
        assert model.ties == expected["ties"]
        assert model.metadata == (expected["metadata"] or {})
        for tensor_name, wanted in expected["tensors"].items():
            assert described(model[tensor_name]) == wanted, tensor_name


@each_file
def test_the_reference_decodes_it(name: str) -> None:
    found = {key: described_by_reference(tensor) for key, tensor in decode_file(read(name)).items()}
    assert found == EXPECTED[name]["tensors"]


@each_file
def test_it_passes_verification(name: str) -> None:
    assert qzc.verify(FOLDER / f"{name}.qzc").tensors == len(EXPECTED[name]["tensors"])


@each_file
def test_the_safetensors_library_opens_it(name: str) -> None:
    library = {key: entry["data"] for key, entry in deserialize(read(name))}
    for key, wanted in EXPECTED[name]["tensors"].items():
        if "data" in wanted and key not in EXPECTED[name]["ties"]:
            assert digest(np.frombuffer(library[key], np.uint8)) == wanted["data"]


@each_file
def test_coding_it_again_gives_the_same_bytes(name: str) -> None:
    """From what the file holds, so that a better quantizer does not change the test."""
    expected = EXPECTED[name]
    with Model(FOLDER / f"{name}.qzc") as model:
        tensors = {key: model[key] for key in model if key not in model.ties}
        case = Golden(name, tensors, expected["coder"], expected["chunk_codes"], model.ties, model.metadata)
        assert encode(case) == read(name)


def test_the_script_makes_these_files(model_file: Path) -> None:
    cases = {case.name: case for case in golden(model_file)}
    assert cases.keys() == EXPECTED.keys()
    assert sorted(path.name for path in FOLDER.glob("*.qzc")) == sorted(f"{name}.qzc" for name in cases)
    for name, case in cases.items():
        for key, tensor in case.tensors.items():
            assert described(tensor) == EXPECTED[name]["tensors"][key], (name, key)


def test_the_files_are_small_and_cover_the_format() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 200_000
    coders: set[int] = set()
    streams: set[tuple[int, bool]] = set()
    planes: set[tuple[int, int]] = set()
    features: set[str] = set()
    grids: set[tuple[Any, ...]] = set()
    for name in EXPECTED:
        with Reader(FOLDER / f"{name}.qzc") as reader:
            assert reader.profile.writer == WRITER
            features |= {"ties"} if reader.profile.ties else set()
            for tensor in reader.profile.coded:
                found = reader.quantized(tensor)
                assert isinstance(found, QuantizedTensor)
                args = found.args
                grids |= {(args.num_bits,), (args.strategy,), (args.symmetric,), (args.scale_dtype,)}
                features |= {what for what in ("row_class", "column_class") if getattr(found, what) is not None}
                rows = reader.planes(tensor).index.rows
                features |= {"several chunks"} if len(rows[rows["plane"] == 0]) > 1 else set()
                coders |= set(rows["coder"].tolist())
                streams |= {(int(row["coder"]), bool(row["streams"] > 1)) for row in rows}
                planes |= {(int(row["coder"]), int(row["plane"])) for row in rows}
    assert coders == set(CODERS)
    assert streams >= {(coder, several) for coder in (2, 3, 5) for several in (False, True)}
    assert planes >= {(0, 1), (1, 1)}
    assert features == {"ties", "row_class", "column_class", "several chunks"}
    wanted = [*range(1, 9), "tensor", "channel", "group", True, False, "float16", "bfloat16", "float32"]
    assert grids == {(value,) for value in wanted}
