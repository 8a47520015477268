"""`pack --lossless`, and checkpoints that are quantized already: every file comes back byte by byte."""

import hashlib
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import qzc
from qzc.formats.header import build_header
from qzc.formats.reader import Reader
from qzc.formats.safetensors import SafetensorsFile, place
from qzc.packer import PackOptions
from tests import layout_writers as layouts
from tests.command_line import inside, ok
from tests.shards import INDEX, SKIPPED, files_in, shard

LOSSLESS = PackOptions(lossless=True)
FLOATS = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]
INTEGERS = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64, np.bool_]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def restored(source: Path, folder: Path, options: PackOptions = LOSSLESS) -> qzc.PackReport:
    """Pack, unpack, and compare the files; returns the report of the pack."""
    folder.mkdir(exist_ok=True)
    report = qzc.pack(source, folder / "packed", options)
    qzc.unpack(report.output, folder / "again", base=options.base)
    if source.is_dir():
        assert files_in(folder / "again") == {n for n in files_in(source) if n != SKIPPED and not n.startswith(".")}
        assert all(sha256(folder / "again" / name) == sha256(source / name) for name in files_in(folder / "again"))
    else:
        assert sha256(folder / "again") == sha256(source)
    verified = qzc.verify(report.output, against=source, base=options.base)
    assert verified.identical == len(report.files) and all(c.exact for c in verified.comparisons)
    return report


def raw_file(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], bytes]], metadata: dict[str, str]) -> None:
    """A safetensors file of any dtypes, with a header that is not as the library writes it."""
    members = place((name, dtype, shape, len(data)) for name, (dtype, shape, data) in tensors.items())
    header = build_header(metadata, members, reserve=0)
    path.write_bytes(header + b"".join(data for _, _, data in tensors.values()))


def special_values(dtype: Any, rng: np.random.Generator, count: int) -> NDArray[Any]:
    """Bit patterns of all kinds: NaN payloads, infinities, zeros of both signs, subnormals, and plain weights."""
    size = np.dtype(dtype).itemsize
    values = rng.normal(0, 0.02, count).astype(np.float32).astype(dtype)
    patterns = rng.integers(0, 256, count * size, np.uint8).view(dtype)
    return np.where(rng.random(count) < 0.1, patterns, values)


# ---------------------------------------------------------------------------------------------------------------------
# Tensors


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS], ids=lambda dtype: np.dtype(dtype).name)
def test_every_dtype_bit_by_bit(dtype: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    shapes = {
        "scalar": (),
        "empty": (0, 7),
        "one": (1,),
        "odd": (37, 61),
        "deep": (2, 3, 5, 7, 11),
        "large": (300, 1000),
    }
    tensors: dict[str, NDArray[Any]] = {}
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        if dtype in FLOATS:
            tensors[name] = special_values(dtype, rng, count).reshape(shape)
        elif dtype is np.bool_:
            tensors[name] = (rng.random(count) < 0.1).reshape(shape)
        else:
            tensors[name] = rng.poisson(3, count).astype(dtype).reshape(shape)
    tensors["constant"] = np.full((200, 100), tensors["large"].reshape(-1)[0])
    path = tmp_path / "m.safetensors"
    if np.dtype(dtype).name.startswith(("bfloat", "float8")):
        name = {"bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}[np.dtype(dtype).name]
        raw_file(path, {n: (name, a.shape, a.tobytes()) for n, a in sorted(tensors.items())}, {})
    else:
        save_file(tensors, path)
    report = restored(path, tmp_path / "out")
    loaded = qzc.load_file(report.output)
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and loaded[name].shape == tensor.shape
        assert loaded[name].tobytes() == tensor.tobytes()
    with qzc.open(report.output) as model:
        assert model.info("large").coding == "lossless"
        for rows in (slice(0, 300), slice(17, 18), slice(100, 223), slice(5, 5), slice(299, None)):
            assert model.array("large", rows).tobytes() == tensors["large"][rows].tobytes()
        # A constant tensor takes next to nothing.
        assert sum(model.info("constant").stored.values()) < 200 + np.dtype(dtype).itemsize


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F4", "I64", "I16", "U8", "BOOL", "X7"]
            ),
            st.lists(st.integers(0, 40), max_size=3).map(tuple),
            st.integers(0, 2**32 - 1),
        ),
        max_size=5,
    ),
    st.dictionaries(st.text(max_size=5), st.text(max_size=9), max_size=2),
)
def test_any_file(tmp_path_factory: pytest.TempPathFactory, drawn: Any, metadata: dict[str, str]) -> None:
    folder = tmp_path_factory.mktemp("any")
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    bits = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I16": 16, "F4": 4, "X7": 7}
    for i, (dtype, shape, seed) in enumerate(drawn):
        rng = np.random.default_rng(seed)
        length = int(np.prod(shape)) * bits.get(dtype, 8)
        if dtype == "F4" and length % 8:
            shape, length = (2, *shape), 2 * length
        data = np.minimum(rng.geometric(0.3, -(-length // 8)), 255).astype(np.uint8).tobytes()
        tensors[f"t{i}"] = dtype, shape, data
    raw_file(folder / "m.safetensors", tensors, metadata)
    report = restored(folder / "m.safetensors", folder / "out")
    with qzc.open(report.output) as model:
        for name, (dtype, shape, data) in tensors.items():
            assert (model.info(name).dtype, model.info(name).shape) == (dtype, shape)
            assert model.array(name).tobytes() == data


def test_a_tensor_of_few_values_in_a_wide_dtype(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ternary = rng.choice(np.array([-0.5, 0, 0.5], np.float16), (512, 512), p=[0.2, 0.6, 0.2])
    save_file(
        {
            "ternary": ternary,
            "tail": np.concatenate([ternary[:100].astype(np.float32), np.zeros((400, 512), np.float32)]),
        },
        tmp_path / "m.safetensors",
    )
    report = restored(tmp_path / "m.safetensors", tmp_path / "out")
    with Reader(report.output) as reader:
        assert reader.profile.coded["ternary"].palette == 3
        # 1.371 bits of entropy; codes of 2 bits are coded in pairs.
        assert reader.info("ternary").stored["payload"] * 8 < 512 * 512 * 1.371 * 1.01
        assert np.array_equal(reader.array("ternary", slice(100, 200)), ternary[100:200])


def test_kept_tensors_of_a_quantized_model_are_coded_too(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(0, 0.02, (2, 300, 500)).astype(np.float32)
    save_file({"a": weights[0], "b": weights[1]}, tmp_path / "m.safetensors")
    selection = qzc.Selection(qzc.parse_bits("b=keep,4"))
    report = qzc.pack(tmp_path / "m.safetensors", options=PackOptions(selection))
    with qzc.open(report.output) as model:
        assert model.info("a").coding == "quantized" and model.info("b").coding == "lossless"
        assert model.info("b").nbytes < 0.87 * weights[1].nbytes
        assert np.array_equal(model.array("b"), weights[1])
        assert model.dequantize("b", np.float16).dtype == np.float16
    raw = qzc.pack(tmp_path / "m.safetensors", tmp_path / "raw.qzc", PackOptions(selection, coder="raw"))
    with qzc.open(raw.output) as model:
        assert model.info("b").coding == "plain"


def test_saved_arrays_are_coded_where_that_pays(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(0, 0.02, (300, 500)).astype(np.float16)
    nbytes = qzc.save_file({"w": weights, "small": np.arange(3.0)}, tmp_path / "m.qzc")
    assert nbytes < 0.95 * weights.nbytes
    loaded = qzc.load_file(tmp_path / "m.qzc")
    assert np.array_equal(loaded["w"], weights) and np.array_equal(loaded["small"], np.arange(3.0))
    loaded["w"][0] = 1  # the caller's own memory


# ---------------------------------------------------------------------------------------------------------------------
# Files and folders


def test_the_command(model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(model_file.read_bytes())
    line = ok("pack", tmp_path / "m.safetensors", "--lossless").stderr
    assert "0 tensors quantized" in line and "lossless" in line
    ok("unpack", tmp_path / "m.qzc", "-o", tmp_path / "again.safetensors")
    assert sha256(tmp_path / "again.safetensors") == sha256(model_file)
    against = ok("verify", tmp_path / "m.qzc", "--against", model_file)
    assert "1 files come out byte by byte as they were" in against.stderr
    for options in (["--bits", "4"], ["--include", "*"], ["--scale", "mse"]):
        refused = inside("pack", model_file, "--lossless", *options)
        assert refused.code == 2 and "--lossless quantizes nothing" in refused.error
    assert ok("info", tmp_path / "m.qzc", "--json").json["files"][0]["lossless"] > 0
    assert ok("ls", tmp_path / "m.qzc").table[0]["grid"] == "lossless"


def test_a_folder_of_shards_comes_back_byte_by_byte(model_folder: Path, tmp_path: Path) -> None:
    source = shard(model_folder, tmp_path / "llama")
    text = json.dumps(json.loads((source / INDEX).read_text()), indent=7)  # not as we would write it
    (source / INDEX).write_text(text)
    report = restored(source, tmp_path / "out")
    assert report.nbytes < report.source_nbytes / 1.19


def test_equal_tensors_come_back_twice(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(0, 0.02, (300, 500)).astype(np.float32)
    save_file({"a": weights, "b": weights.copy(), "c": weights[:1].copy()}, tmp_path / "m.safetensors")
    report = restored(tmp_path / "m.safetensors", tmp_path / "out")
    assert report.nbytes < 0.87 * weights.nbytes + 4096
    with qzc.open(report.output) as model:
        assert model.ties == {"b": "a"}


def test_threads_and_kernels_do_not_change_the_bytes(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = qzc.pack(model_file, tmp_path / "1.qzc", PackOptions(lossless=True, threads=1)).output
    two = qzc.pack(model_file, tmp_path / "2.qzc", PackOptions(lossless=True, threads=2)).output
    assert one.read_bytes() == two.read_bytes()


def test_a_dtype_is_no_reason_to_restore_less(model_file: Path, tmp_path: Path) -> None:
    qzc.pack(model_file, tmp_path / "m.qzc", LOSSLESS)
    ok("unpack", tmp_path / "m.qzc", "--dtype", "float16", "-o", tmp_path / "same.safetensors")
    # Nothing was quantized, so there is nothing to give another dtype.
    found, want = load_file(tmp_path / "same.safetensors"), load_file(model_file)
    assert all(np.array_equal(found[name], want[name]) for name in want)


def test_a_damaged_rest_is_found(model_file: Path, tmp_path: Path) -> None:
    output = qzc.pack(model_file, tmp_path / "m.qzc", LOSSLESS).output
    with Reader(output) as reader:
        member = reader._members["qzc.source.rest"]
        at = reader._data_start + member.begin
    data = bytearray(output.read_bytes())
    data[at + 9] ^= 4
    output.write_bytes(data)
    with pytest.raises(qzc.CorruptionError, match=r"checksum mismatch in 'qzc\.source\.rest'"):
        qzc.unpack(output, tmp_path / "again.safetensors")
    assert not (tmp_path / "again.safetensors").exists()
    assert inside("verify", output).code == 3


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints that are quantized already


def checkpoints() -> dict[str, Any]:
    weight = layouts.random_weight(256, 512)
    return {
        "gptq4": layouts.gptq(layouts.quantize(weight, 4, 128)),
        "gptq3": layouts.gptq(layouts.quantize(weight, 3, 128)),
        "awq": layouts.awq(layouts.quantize(weight, 4, 128)),
        "compressed-tensors": layouts.compressed(layouts.quantize(weight, 5, 128)),
        "naive": layouts.naive(layouts.quantize(weight, 8, 512)),
        "bitsandbytes": layouts.bitsandbytes(layouts.quantize(weight, 4, 64)),
        "mlx": layouts.mlx(layouts.quantize(weight, 6, 64)),
    }


@pytest.mark.parametrize("layout", checkpoints())
def test_a_quantized_checkpoint_is_coded_without_being_asked(layout: str, tmp_path: Path) -> None:
    checkpoint = checkpoints()[layout]
    source = tmp_path / "model"
    source.mkdir()
    save_file(checkpoint.tensors, source / "model.safetensors", metadata={"format": "pt"})
    (source / "config.json").write_text(json.dumps(checkpoint.config))
    line = ok("pack", source, "-o", tmp_path / "cli").stderr
    assert line.startswith("found ") and "0 tensors quantized" in line
    report = restored(source, tmp_path / "out", PackOptions())
    assert report.found and report.nbytes < report.source_nbytes
    loaded = qzc.load_file(report.output)
    for name, tensor in checkpoint.tensors.items():  # in the layout's own dtype and shape
        assert loaded[name].dtype == tensor.dtype and np.array_equal(loaded[name], tensor)
    measured = ok("stats", source, "--json", "--no-gzip").json
    (found,) = zip(*(tensor["precisions"] for tensor in measured["tensors"]), strict=True)
    assert all(one["codes"] is None for one in found) and any(one["lossless"] for one in found)


def test_a_quantized_checkpoint_in_gguf(fixtures: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    source = tmp_path / "m.gguf"
    source.write_bytes((fixtures / "layouts" / "k_quants.gguf").read_bytes())
    report = restored(source, tmp_path / "out", PackOptions())
    with Reader(report.output) as reader:  # the tensors are small, and a header takes its room
        coded = {name: sum(reader.info(name).stored.values()) for name in reader.keys()}
        assert all(coded[name] <= reader.tensor_nbytes(name) + 64 for name in coded)
        assert all(reader.info(name).coding == "lossless" for name in coded)
    assert ok("pack", source).code == 0
    assert ok("ls", source).table and ok("info", source).code == 0
    source.rename(tmp_path / "before.gguf")
    ok("unpack", tmp_path / "m.qzc")
    assert sha256(source) == sha256(tmp_path / "before.gguf")
    with SafetensorsFile(tmp_path / "m.qzc"):
        pass  # still a safetensors file


def test_gguf_as_its_own_package_writes_it(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    weights = np.random.default_rng(0).normal(0, 0.02, (512, 1024)).astype(np.float32)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_string("general.name", "a test")
    for kind in ("Q4_0", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16", "F32"):
        dtype = gguf.GGMLQuantizationType[kind]
        data = weights.astype({"F16": np.float16}.get(kind, np.float32))
        if kind not in ("F16", "F32"):
            data = gguf.quants.quantize(weights, dtype)
        writer.add_tensor(kind, data, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    report = restored(tmp_path / "m.gguf", tmp_path / "out", PackOptions())
    assert report.found == "GGUF (1 Q4_0, 1 Q5_0, 1 Q5_1, 1 Q8_0)"
    with Reader(report.output) as reader:
        taken = {name: sum(reader.info(name).stored.values()) / reader.tensor_nbytes(name) for name in reader.keys()}
        assert all(reader.profile.coded[name].records.gather for name in ("Q5_0", "Q5_1"))
    assert taken["Q4_0"] < 0.95 and taken["Q8_0"] < 0.97
    assert max(taken["Q5_0"], taken["Q5_1"]) < 0.94  # 0.98 and 0.95, were the fifth bits apart from the others
    assert taken["BF16"] < 0.70 and taken["F32"] < 0.85


# ---------------------------------------------------------------------------------------------------------------------
# Deltas


@pytest.fixture
def pair(model_file: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint, and the same after a little training: most weights move by less than the last bits."""
    tensors = load_file(model_file)
    rng = np.random.default_rng(0)
    tuned = {
        name: (tensor * (1 + rng.normal(0, 2e-5, tensor.shape))).astype(np.float32) if tensor.ndim > 1 else tensor
        for name, tensor in tensors.items()
    }
    tuned["new.weight"] = rng.normal(0, 0.02, (64, 64)).astype(np.float32)
    save_file(tuned, tmp_path / "tuned.safetensors")
    return model_file, tmp_path / "tuned.safetensors"


def test_a_delta_is_smaller_than_the_model_alone(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = pair
    alone = restored(tuned, tmp_path / "alone")
    delta = restored(tuned, tmp_path / "delta", PackOptions(lossless=True, base=base))
    assert delta.nbytes < 0.7 * alone.nbytes
    want = load_file(tuned)
    loaded = qzc.load_file(delta.output, base=base)
    assert all(np.array_equal(loaded[name], want[name]) for name in want)
    with qzc.open(delta.output, base=base) as model:
        name = next(name for name in model if model.info(name).delta)
        assert np.array_equal(model.array(name, slice(3, 50)), want[name][3:50])
    packed_base = qzc.pack(base, tmp_path / "base.qzc", LOSSLESS).output
    assert qzc.load_file(delta.output, base=packed_base).keys() == want.keys()


def test_a_delta_needs_its_own_base(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = pair
    ok("pack", tuned, "--lossless", "--base", base, "-o", tmp_path / "d.qzc")
    without = inside("unpack", tmp_path / "d.qzc", "-o", tmp_path / "x.safetensors")
    assert without.code == 2 and "is a delta; give the base" in without.error
    wrong = inside("unpack", tmp_path / "d.qzc", "--base", tuned, "-o", tmp_path / "x.safetensors")
    assert wrong.code == 2 and "not the base it was packed against" in wrong.error
    with pytest.raises(qzc.InvalidArgumentError, match="not the base"):
        qzc.load_file(tmp_path / "d.qzc", base=tuned)
    ok("unpack", tmp_path / "d.qzc", "--base", base, "-o", tmp_path / "x.safetensors")
    assert sha256(tmp_path / "x.safetensors") == sha256(tuned)
    assert ok("verify", tmp_path / "d.qzc").code == 0  # the chunks are whole, whatever they refer to
    assert ok("verify", tmp_path / "d.qzc", "--against", tuned, "--base", base).code == 0


def test_an_equal_base_leaves_nothing(model_file: Path, tmp_path: Path) -> None:
    report = restored(model_file, tmp_path / "out", PackOptions(lossless=True, base=model_file))
    assert report.nbytes < 0.03 * report.source_nbytes
