"""Golden files decode to the same numbers for ever, by the package and by the decoder written from the SPEC."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors

import qzc
from qzc.codec.class_coder import CLASS_CODER
from qzc.codec.coder import CODERS
from qzc.codec.rate_tensor import VECTORS, LevelTensor, codes_of
from qzc.codec.tensor import QuantizedTensor
from qzc.formats.reader import Reader
from qzc.model import Model
from tests.builders import Lossless, Plan, Source
from tests.containers import based
from tests.golden import WRITER, Golden, base_file, described, described_by_reference, digest, encode, golden
from tests.reference_decoder import decode_file, restore_source

FOLDER = Path(__file__).parent.parent / "fixtures" / "golden"
EXPECTED: dict[str, dict[str, Any]] = json.loads((FOLDER / "expected.json").read_text("utf-8"))
deserialize: Any = safetensors.deserialize
each_file = pytest.mark.parametrize("name", EXPECTED)


def read(name: str) -> bytes:
    return (FOLDER / f"{name}.qzc").read_bytes()


def base_path(name: str) -> Path | None:
    path = FOLDER / f"{name}.base.safetensors"
    return path if path.exists() else None


def read_base(name: str) -> dict[str, bytes]:
    path = base_path(name)
    return {key: bytes(entry["data"]) for key, entry in deserialize(path.read_bytes())} if path else {}


@each_file
def test_the_file_is_the_one_that_was_written(name: str) -> None:
    assert digest(np.frombuffer(read(name), np.uint8)) == EXPECTED[name]["file"]


@each_file
def test_the_package_decodes_it(name: str) -> None:
    expected = EXPECTED[name]
    with Model(FOLDER / f"{name}.qzc", base=base_path(name)) as model:
        assert list(model) == sorted(expected["tensors"])
        assert model.ties == expected["ties"]
        assert model.metadata == (expected["metadata"] or {})
        for tensor_name, wanted in expected["tensors"].items():
            tensor, info = model[tensor_name], model.info(tensor_name)
            if isinstance(tensor, QuantizedTensor | LevelTensor):
                assert described(tensor) == wanted, tensor_name
            else:
                data = digest(tensor.reshape(-1).view(np.uint8))
                assert {"dtype": info.dtype, "shape": [*info.shape], "data": data} == wanted, tensor_name


@each_file
def test_the_reference_decodes_it(name: str) -> None:
    tensors = decode_file(read(name), read_base(name))
    assert {key: described_by_reference(tensor) for key, tensor in tensors.items()} == EXPECTED[name]["tensors"]


@pytest.mark.parametrize("name", [name for name, expected in EXPECTED.items() if expected["source"]])
def test_the_source_comes_out_again(name: str, tmp_path: Path) -> None:
    qzc.unpack(FOLDER / f"{name}.qzc", tmp_path / "source.safetensors")
    for data in ((tmp_path / "source.safetensors").read_bytes(), restore_source(read(name))):
        assert digest(np.frombuffer(data, np.uint8)) == EXPECTED[name]["source"]


@each_file
def test_it_passes_verification(name: str) -> None:
    assert qzc.verify(FOLDER / f"{name}.qzc").tensors == len(EXPECTED[name]["tensors"])


@each_file
def test_the_safetensors_library_opens_it(name: str) -> None:
    library = {key: entry["data"] for key, entry in deserialize(read(name))}
    with Reader(FOLDER / f"{name}.qzc") as reader:
        for key, wanted in EXPECTED[name]["tensors"].items():
            if reader.is_uncoded(key):
                assert digest(np.frombuffer(library[key], np.uint8)) == wanted["data"]


@each_file
def test_coding_it_again_gives_the_same_bytes(name: str) -> None:
    """From what the file holds, so that a better quantizer does not change the test."""
    expected, base = EXPECTED[name], read_base(name)
    tensors: dict[str, Any] = {}
    with Reader(FOLDER / f"{name}.qzc", based(base)) as reader:
        for key in reader.keys():
            info, coded = reader.info(key), reader.profile.coded.get(key)
            if info.tied_to:
                continue
            if coded and coded.rate:
                tensors[key] = codes_of(reader.leveled(key))
            elif coded is None or coded.args:
                tensors[key] = reader.array(key) if coded is None else reader.quantized(key)
            else:
                against = base[key] if coded.base is not None else None
                data, palette = reader.raw(key).tobytes(), bool(coded.palette)
                tensors[key] = Lossless(info.dtype, info.shape, data, coded.records, palette, against, coded.group)
        source = None
        if reader.profile.source_file:
            source = Source(reader.profile.source_file.kind, restore_source(read(name)), reader.source_file()[1])
    plan = Plan(WRITER, expected["coder"], {}, expected["chunk_codes"], expected["ties"], expected["metadata"], source)
    assert encode(Golden(name, tensors, plan)) == read(name)


def test_the_script_makes_these_files(model_file: Path) -> None:
    cases = {case.name: case for case in golden(model_file)}
    assert cases.keys() == EXPECTED.keys()
    assert sorted(path.name for path in FOLDER.glob("*.qzc")) == sorted(f"{name}.qzc" for name in cases)
    bases = {f"{name}.base.safetensors": base_file(case.base) for name, case in cases.items() if case.base}
    assert {path.name: path.read_bytes() for path in FOLDER.glob("*.safetensors")} == bases
    for name, case in cases.items():
        for key, tensor in case.tensors.items():
            assert described(tensor) == EXPECTED[name]["tensors"][key], (name, key)


def test_the_files_are_small_and_cover_the_format() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 260_000
    coders: set[int] = set()
    streams: set[tuple[int, bool]] = set()
    deltas: set[int] = set()
    features: set[str] = set()
    grids: set[tuple[Any, ...]] = set()
    for name in EXPECTED:
        with Reader(FOLDER / f"{name}.qzc", based(read_base(name))) as reader:
            assert reader.profile.writer == WRITER
            features |= {"ties"} if reader.profile.ties else set()
            features |= {"source"} if reader.profile.source_file else set()
            for key, coded in reader.profile.coded.items():
                chunks, planes, _ = reader.chunks(key)
                rows = reader.coded_file.index.rows[chunks.start : chunks.stop]
                features |= {"several chunks"} if len(rows) and rows["codes"][0] < planes[0].count else set()
                coders |= set(rows["coder"].tolist())
                deltas |= set(rows["delta"].tolist())
                streams |= {(int(row["coder"]), bool(row["streams"] > 1)) for row in rows}
                if coded.rate:
                    features |= {what for what, n in zip(VECTORS, coded.rate.vectors, strict=True) if n is not None}
                    features |= {f"{coded.rate.states} states"} | ({"wide"} if coded.rate.wide else set())
                    continue
                features |= {"rotate"} if coded.records.rotate else set()
                if coded.args is None:
                    features |= {coded.dtype} | ({"palette"} if coded.palette else set())
                    features |= {"scales"} if coded.group else set()
                    features |= {"interleave"} if coded.records.interleave else set()
                    features |= {f"{bits}-bit" for bits, _ in coded.records.fields}
                    continue
                found, args = reader.quantized(key), coded.args
                grids |= {(args.num_bits,), (args.strategy,), (args.symmetric,), (args.scale_dtype,)}
                features |= {what for what in ("row_class", "column_class") if getattr(found, what) is not None}
    assert coders == {*CODERS, CLASS_CODER}
    assert features >= {*VECTORS, "wide", "0 states", "4 states", "8 states", "32 states", "256 states"}
    assert deltas == {0, 1, 2}
    assert streams >= {(2, False), (2, True), (3, True), (5, False), (6, False), (6, True)}
    assert features >= {
        "ties",
        "row_class",
        "column_class",
        "several chunks",
        "source",
        "rotate",
        "interleave",
        "palette",
        "scales",
    }
    assert features >= {"BF16", "F16", "F32", "F64", "I32", "F4", "Q4_0"} | {f"{bits}-bit" for bits in range(1, 9)}
    wanted = [*range(1, 9), "tensor", "channel", "group", True, False, "float16", "bfloat16", "float32"]
    assert grids == {(value,) for value in wanted}
