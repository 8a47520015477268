"""`import qzc` as a user sees it: open, load, save, pack, plan; what it gives and what it raises."""

import pickle
import subprocess
import sys
import threading
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file
from safetensors.numpy import save_file as save_safetensors

import qzc
from qzc.codec.tensor import QuantizedTensor
from qzc.formats.reader import Reader
from tests.command_line import environment
from tests.shards import shard

DOWN = "model.layers.0.mlp.down_proj.weight"
NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def packed(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = qzc.PackOptions(chunk_codes=4096)
    return qzc.pack(model_file, tmp_path_factory.mktemp("packed") / "model.qzc", options).output


def test_every_name_is_there_and_documented() -> None:
    for name in qzc.__all__:
        value = getattr(qzc, name)
        if name != "__version__":
            assert value.__doc__, name
    assert set(qzc.__all__) <= set(dir(qzc))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = qzc.nothing


def test_star_import_gives_the_public_names() -> None:
    names: dict[str, object] = {}
    exec("from qzc import *", names)
    assert set(qzc.__all__) - {"__version__"} <= names.keys()


def test_importing_loads_nothing_heavy() -> None:
    code = "import sys, qzc; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, check=True)
    assert not {"numpy", "numba", "click", "rich"} & set(done.stdout.decode().split())


def test_open_is_lazy_and_a_mapping(packed: Path, model_file: Path) -> None:
    original = load_file(model_file)
    with qzc.open(packed) as model:
        assert list(model) == list(model.keys()) == sorted(original)
        assert len(model) == 20 and DOWN in model and "nothing" not in model
        assert {name: model.info(name).shape for name in model} == {n: a.shape for n, a in original.items()}
        assert isinstance(model[DOWN], QuantizedTensor)
        assert np.array_equal(model.array(NORM), original[NORM])
        assert isinstance(model[NORM], np.ndarray)
        assert model.metadata == {"format": "pt"}
        with pytest.raises(KeyError):
            model["nothing"]
        with pytest.raises(qzc.InvalidArgumentError, match="no tensor named 'nothing'"):
            model.info("nothing")
    with pytest.raises(qzc.InvalidArgumentError, match="closed"):
        model.info(DOWN)


def test_rows_and_dtypes(packed: Path) -> None:
    with qzc.open(packed) as model:
        whole = model.dequantize(DOWN)
        assert whole.dtype == np.float32
        rows = model.dequantize(DOWN, rows=slice(10, 20))
        assert np.array_equal(rows, whole[10:20])
        assert np.array_equal(model.packed(DOWN, rows=slice(-3, None)).codes, model.packed(DOWN).codes[-3:])
        for dtype in (np.float16, "float64", ml_dtypes.bfloat16):
            assert np.array_equal(model.dequantize(DOWN, dtype), whole.astype(dtype))
        out = np.empty((10, 192), np.float32)
        assert model.dequantize(DOWN, rows=slice(10, 20), out=out) is out and np.array_equal(out, rows)


def test_load_file(packed: Path, model_file: Path) -> None:
    original = load_file(model_file)
    tensors = qzc.load_file(packed)
    assert list(tensors) == sorted(original)
    floats = qzc.load_file(packed, packed=False)
    halves = qzc.load_file(packed, dtype=np.float16)
    for name, tensor in tensors.items():
        if isinstance(tensor, QuantizedTensor):
            assert np.array_equal(tensor.dequantize(), floats[name])
            assert np.array_equal(floats[name].astype(np.float16), halves[name])
        else:
            assert np.array_equal(tensor, original[name]) and tensor.flags.writeable
    assert floats[DOWN].dtype == np.float32 and halves[DOWN].dtype == np.float16


def test_what_is_loaded_can_be_saved_again(packed: Path, tmp_path: Path) -> None:
    size = qzc.save_file(qzc.load_file(packed), tmp_path / "again.qzc", {"format": "pt"}, chunk_codes=4096)
    assert size == (tmp_path / "again.qzc").stat().st_size
    assert (tmp_path / "again.qzc").read_bytes() == packed.read_bytes()
    with pytest.raises(qzc.FileAccessError, match="already exists"):
        qzc.save_file({}, tmp_path / "again.qzc")


def test_a_folder_is_one_model(model_folder: Path, model_file: Path, tmp_path: Path) -> None:
    folder = qzc.pack(shard(model_folder, tmp_path / "llama")).output
    one = qzc.load_file(qzc.pack(model_file, tmp_path / "one.qzc").output, packed=False)
    several = qzc.load_file(folder, packed=False)
    assert several.keys() == one.keys()
    assert all(np.array_equal(several[name], one[name]) for name in one)
    with qzc.open(folder) as model:
        assert len(model.files) == 2


def test_the_plan_writes_nothing(model_file: Path) -> None:
    before = sorted(model_file.parent.iterdir())
    (plan,) = qzc.plan(model_file)
    assert sorted(model_file.parent.iterdir()) == before
    assert len(plan.quantized) == 15 and plan.estimated_overhead
    assert all(tensor.estimated_nbytes for tensor in plan.tensors)


def test_a_model_may_be_read_from_several_threads(packed: Path) -> None:
    with qzc.open(packed) as model:
        whole = model.dequantize(DOWN)
        failures: list[str] = []

        def read(start: int) -> None:
            for i in range(start, 256, 16):
                if not np.array_equal(model.dequantize(DOWN, rows=slice(i, i + 7)), whole[i : i + 7]):
                    failures.append(f"row {i}")

        threads = [threading.Thread(target=read, args=(start,)) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures


def test_pack_reports_what_it_did(model_file: Path, tmp_path: Path) -> None:
    selection = qzc.Selection(qzc.parse_bits("*.mlp.*=3,4"), exclude=("nothing",))
    report = qzc.pack(model_file, tmp_path / "m.qzc", qzc.PackOptions(selection, coder="huffman"))
    assert report.output == tmp_path / "m.qzc" and report.nbytes == (tmp_path / "m.qzc").stat().st_size
    assert report.source_nbytes == model_file.stat().st_size and report.verified
    assert report.unused_rules == ("--exclude nothing",)
    assert {t.args.num_bits for t in report.quantized if t.args} == {3, 4} and 2.9 < report.bits_per_weight < 4


def test_errors_tell_who_is_to_blame(packed: Path, model_file: Path, tmp_path: Path) -> None:
    with pytest.raises(qzc.FileAccessError, match="no such file"):
        qzc.open(tmp_path / "missing.qzc")
    with pytest.raises(qzc.UnsupportedError, match=r"not a \.qzc file"):
        qzc.load_file(model_file)
    (tmp_path / "cut.qzc").write_bytes(packed.read_bytes()[:-1])
    with pytest.raises(qzc.TruncationError):
        qzc.load_file(tmp_path / "cut.qzc")
    data = bytearray(packed.read_bytes())
    with Reader(packed) as reader:
        data[int(reader.coded_file.index.offsets[reader.chunks(DOWN)[0].start]) + 20] ^= 1
    (tmp_path / "flipped.qzc").write_bytes(data)
    with pytest.raises(qzc.CorruptionError, match=r"tensor 'model\..*chunk \d+"):
        qzc.load_file(tmp_path / "flipped.qzc")
    save_safetensors({"w": np.full((64, 128), np.nan, np.float32)}, tmp_path / "nan.safetensors")
    with pytest.raises(qzc.InvalidArgumentError, match="tensor 'w' has 8192 of 8192 weights"):
        qzc.pack(tmp_path / "nan.safetensors")
    for error in (qzc.CorruptionError, qzc.UnsupportedError, qzc.FileAccessError, qzc.VerificationError):
        assert issubclass(error, qzc.QzcError)


def test_arguments_survive_a_trip_to_another_process() -> None:
    options = qzc.PackOptions(qzc.Selection(qzc.parse_bits("lm_head=8,4"), scale="mse"))
    assert pickle.loads(pickle.dumps(options)) == options


def test_without_threads_no_thread_is_started(packed: Path) -> None:
    before = threading.active_count()
    with qzc.open(packed, threads=1) as model:
        _ = model[DOWN]
        assert threading.active_count() == before
    with pytest.raises(qzc.InvalidArgumentError, match="-1 threads"):
        qzc.open(packed, threads=-1)
