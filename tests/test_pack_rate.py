"""`qzc pack` at a rate: files that are as large as asked, and everything that reads files on them."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file as load_safetensors
from safetensors.numpy import save_file as save_safetensors

import qzc
from qzc.calibration import COUNTS, FORMAT, VERSION, fingerprint
from qzc.codec.errors import CorruptionError, InvalidArgumentError, VerificationError
from qzc.codec.rate_tensor import LevelTensor, codes_of
from qzc.formats.reader import Reader
from qzc.packer import PackOptions, PackReport, pack
from qzc.rating import RateMethod, RateOptions
from tests.command_line import inside
from tests.malformed_qzc import MalformedQzc, bad_rates, sound_rate
from tests.reference_decoder import decode_file
from tests.resign import column, edit_json, edit_rows, resign

DOWN = "model.layers.0.mlp.down_proj.weight"
METHODS: tuple[RateMethod, ...] = ("rtn-ec", "diag", "gptq-ec", "watersic")


def statistics(model: Path, path: Path, *, of: Path | None = None) -> Path:
    """A file as `qzc calibrate` writes it, of inputs that go together in pairs. of: the model that it claims to be of."""
    tensors: dict[str, NDArray[Any]] = {}
    listed: dict[str, list[object]] = {}
    for number, (name, weights) in enumerate(sorted(load_safetensors(model).items())):
        if weights.ndim != 2 or "embed" in name:
            continue
        columns = weights.shape[1]
        rng = np.random.default_rng(columns)
        x = rng.standard_normal((4 * columns, columns)).astype(np.float32) * rng.uniform(0.3, 3, columns)
        x[:, 1:] += 0.8 * x[:, :-1]
        gram = (x.T @ x / len(x)).astype(np.float32)
        key = f"input{number}"
        tensors[f"{key}.gram"] = gram[np.tril_indices(columns)]
        tensors[f"{key}.power"] = np.diagonal(gram).copy()
        tensors[f"{key}.mean"] = x.mean(axis=0)
        listed[name] = [key, len(x)]
    metadata = {"format": FORMAT, "version": VERSION, "model_hash": fingerprint(of or model), "text_hash": "0" * 16}
    metadata |= dict.fromkeys(COUNTS, "1") | {"tensors": json.dumps(listed)}
    save_safetensors(tensors, path, metadata)
    return path


@pytest.fixture(scope="module")
def stats(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return statistics(model_file, tmp_path_factory.mktemp("stats") / "stats.safetensors")


@pytest.fixture(scope="module", params=[0, 8], ids=["plain", "trellis"])
def packed(
    request: pytest.FixtureRequest, model_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("packed") / "model.qzc"
    pack(model_file, path, PackOptions(rate=RateOptions(3.0, states=request.param), chunk_codes=1 << 13, threads=1))
    yield path


def packed_at(model: Path, path: Path, rate: RateOptions, **options: Any) -> PackReport:
    return pack(model, path, PackOptions(rate=rate, threads=1, **options))


@pytest.mark.parametrize("bits", [1.5, 3.0, 6.0])
def test_the_file_has_the_rate(bits: float, model_file: Path, tmp_path: Path) -> None:
    report = packed_at(model_file, tmp_path / "m.qzc", RateOptions(bits))
    assert report.bits_per_weight == pytest.approx(bits, rel=0.005)
    with Reader(report.output) as reader:
        names = [tensor.name for tensor in report.rated]
        assert names == [name for name in reader.keys() if reader.info(name).rate]
        bare = report.nbytes - sum(info.nbytes for info in map(reader.info, reader.keys()) if not info.rate)
        headless = bare - reader.overhead["header"] - reader.overhead["checksums"]
    counted = {
        what: bits * sum(tensor.parameters for tensor in report.rated) / 8 for what, bits in report.rate_bits.items()
    }
    assert sum(counted.values()) - counted["header"] == pytest.approx(headless, abs=1)
    assert 0 < counted["header"] < bare - headless


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("states", [0, 4])
def test_every_method_hits_the_rate_and_reads_back(
    method: RateMethod, states: int, model_file: Path, stats: Path, tmp_path: Path
) -> None:
    report = packed_at(model_file, tmp_path / "m.qzc", RateOptions(2.5, method=method, states=states), stats=stats)
    assert report.bits_per_weight == pytest.approx(2.5, rel=0.005)
    assert report.rate_method == method and report.verified
    assert report.without_statistics == (() if method == "rtn-ec" else ("model.embed_tokens.weight",))
    compared = qzc.verify(report.output, model_file).comparisons
    assert min(c.snr_db for c in compared if c.snr_db is not None) > 3


def test_without_sensitivities_every_tensor_has_one_rate(model_file: Path, tmp_path: Path) -> None:
    report = packed_at(model_file, tmp_path / "m.qzc", RateOptions(3.0))
    layout = report.files[0].layout
    rates = [8 * layout.coded[tensor.name]["payload"] / tensor.parameters for tensor in report.rated]
    with qzc.open(report.output) as model:
        steps = {float(model.levels(tensor.name).grid.step) for tensor in report.rated}
    assert max(rates) - min(rates) < 0.2
    assert len(steps) > 1


def test_a_size_is_that_of_the_file(model_file: Path, tmp_path: Path) -> None:
    report = packed_at(model_file, tmp_path / "m.qzc", RateOptions(nbytes=300_000))
    assert report.output.stat().st_size == pytest.approx(300_000, rel=0.005)
    report = packed_at(model_file, tmp_path / "all.qzc", RateOptions(5.0, count="all"))
    parameters = sum(tensor.parameters for file in report.files for tensor in file.plan.tensors)
    assert 8 * report.output.stat().st_size / parameters == pytest.approx(5.0, rel=0.005)


@pytest.mark.parametrize("nbytes", [1, 9_000])
def test_sizes_that_cannot_be(nbytes: int, model_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot reach"):
        packed_at(model_file, tmp_path / "m.qzc", RateOptions(nbytes=nbytes))
    assert not any(tmp_path.iterdir())


def test_the_bytes_do_not_depend_on_threads(model_file: Path, tmp_path: Path) -> None:
    files = []
    for threads in (1, 3):
        options = PackOptions(rate=RateOptions(2.0, states=4), chunk_codes=1 << 12, threads=threads)
        files.append(pack(model_file, tmp_path / f"{threads}.qzc", options).output.read_bytes())
    assert files[0] == files[1]


def test_a_folder_of_shards(model_file: Path, tmp_path: Path) -> None:
    tensors = load_safetensors(model_file)
    names = sorted(tensors)
    folder = tmp_path / "model"
    folder.mkdir()
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"model-0000{number}-of-00002.safetensors"
        save_safetensors({name: tensors[name] for name in part}, folder / shard)
        weight_map.update(dict.fromkeys(part, shard))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    report = packed_at(folder, tmp_path / "out", RateOptions(3.0))
    assert len(report.files) == 2 and report.bits_per_weight == pytest.approx(3.0, rel=0.005)
    assert qzc.verify(report.output, folder).tensors == len(names)


# ---------------------------------------------------------------------------------------------- reading
def test_what_users_get(packed: Path, model_file: Path) -> None:
    original = load_safetensors(model_file)
    with qzc.open(packed, threads=2) as model:
        tensor = model[DOWN]
        assert isinstance(tensor, LevelTensor)
        assert tensor.levels.dtype == np.int8 and tensor.levels.shape == tensor.shape == (256, 192)
        weights = (tensor.levels.astype(np.float32) * tensor.column_scale) * tensor.row_scale[:, None]
        np.testing.assert_array_equal(model.dequantize(DOWN), weights)
        assert np.square(weights - original[DOWN]).sum() < 0.03 * np.square(original[DOWN]).sum()
        np.testing.assert_array_equal(model.dequantize(DOWN, np.float16), weights.astype(np.float16))
        out = np.empty((256, 192), np.float64)
        assert model.dequantize(DOWN, np.float64, out=out) is out
        np.testing.assert_array_equal(out, weights)
        with pytest.raises(InvalidArgumentError, match="no packed codes"):
            model.packed(DOWN)
        with pytest.raises(InvalidArgumentError, match="no unbounded grid"):
            model.levels("model.norm.weight")
    whole, floats = qzc.load_file(packed), qzc.load_file(packed, dtype="float32", threads=2)
    assert whole.keys() == floats.keys() == original.keys()
    np.testing.assert_array_equal(whole[DOWN].levels, tensor.levels)
    np.testing.assert_array_equal(floats[DOWN], weights)


def test_it_decodes_as_the_reference_says(packed: Path) -> None:
    with qzc.open(packed) as model:
        cut = {name: model.levels(name, slice(0, 12)) for name in model if model.info(name).rate}
    some = {name: tensor for name, tensor in cut.items() if not tensor.grid.states}
    if not some:  # the first rows of a trellis are a tensor of their own
        some = {name: replace(t, grid=replace(t.grid, restart=12)) for name, t in cut.items()}
    path = packed.parent / "cut.qzc"
    qzc.save_file(some, path, overwrite=True)
    found = decode_file(path.read_bytes())
    for name, tensor in some.items():
        np.testing.assert_array_equal(found[name].levels, tensor.levels, name)
        np.testing.assert_array_equal(found[name].dequantized, tensor.dequantize(), name)


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 256), (41, 44), (100, 200), (255, 256), (7, 7), (-3, None)])
def test_rows(start: int, stop: int | None, packed: Path) -> None:
    with qzc.open(packed) as model:
        part = model.levels(DOWN, slice(start, stop))
        np.testing.assert_array_equal(part.levels, model.levels(DOWN).levels[start:stop])
        np.testing.assert_array_equal(part.dequantize(), model.dequantize(DOWN)[start:stop])


def test_rows_touch_only_their_chunks(model_file: Path, tmp_path: Path) -> None:
    packed_at(model_file, tmp_path / "m.qzc", RateOptions(3.0), chunk_codes=1 << 13)
    with Reader(tmp_path / "m.qzc") as reader:
        chunks, _, _ = reader.chunks(DOWN)
        at = int(reader.coded_file.index.offsets[chunks.stop - 1])
    data = bytearray((tmp_path / "m.qzc").read_bytes())
    data[at + 40] ^= 1
    (tmp_path / "m.qzc").write_bytes(data)
    with qzc.open(tmp_path / "m.qzc") as model:
        assert len(chunks) > 2
        model.levels(DOWN, slice(0, 40))
        with pytest.raises(CorruptionError, match=f"{DOWN}.*chunk {len(chunks) - 1}.*checksum"):
            model.levels(DOWN, slice(250, 256))


def test_saving_it_again(packed: Path, tmp_path: Path) -> None:
    tensors = qzc.load_file(packed)
    qzc.save_file(tensors, tmp_path / "again.qzc")
    again = qzc.load_file(tmp_path / "again.qzc")
    for name, tensor in tensors.items():
        if isinstance(tensor, LevelTensor):
            np.testing.assert_array_equal(again[name].levels, tensor.levels)
            np.testing.assert_array_equal(again[name].dequantize(), tensor.dequantize())
            np.testing.assert_array_equal(codes_of(tensor).decoded().levels, tensor.levels)
    assert (tmp_path / "again.qzc").stat().st_size == pytest.approx(packed.stat().st_size, rel=0.03)


def test_unpacking(packed: Path, tmp_path: Path) -> None:
    qzc.unpack(packed, tmp_path / "floats.safetensors")
    qzc.unpack(packed, tmp_path / "levels.safetensors", format="packed")
    floats, levels = (
        load_safetensors(tmp_path / "floats.safetensors"),
        load_safetensors(tmp_path / "levels.safetensors"),
    )
    with qzc.open(packed) as model:
        np.testing.assert_array_equal(floats[DOWN], model.dequantize(DOWN))
    product = levels[f"{DOWN}.levels"].astype(np.float32) * levels[f"{DOWN}.column_scale"]
    np.testing.assert_array_equal(product * levels[f"{DOWN}.row_scale"][:, None], floats[DOWN])
    assert levels[f"{DOWN}.shape"].tolist() == [256, 192]


def test_other_weights_do_not_verify(packed: Path, model_file: Path, tmp_path: Path) -> None:
    tensors = load_safetensors(model_file)
    tensors[DOWN] = np.ascontiguousarray(tensors[DOWN][::-1])
    save_safetensors(tensors, tmp_path / "other.safetensors", {"format": "pt"})
    with pytest.raises(VerificationError, match="down_proj"):
        qzc.verify(packed, tmp_path / "other.safetensors")


# ---------------------------------------------------------------------------------------------- damage
@pytest.mark.parametrize("seed", range(60))
def test_a_damaged_byte_is_an_error(seed: int, packed: Path, tmp_path: Path) -> None:
    data = bytearray(packed.read_bytes())
    rng = np.random.default_rng(seed)
    data[rng.integers(0, len(data))] ^= int(rng.integers(1, 256))
    (tmp_path / "m.qzc").write_bytes(data)
    with pytest.raises(qzc.QzcError):
        qzc.verify(tmp_path / "m.qzc")


@pytest.mark.parametrize("seed", range(80))
def test_signed_damage_is_an_error_or_decodes(seed: int, packed: Path, tmp_path: Path) -> None:
    """With checksums to match the readers see what an attacker may write."""
    data = bytearray(packed.read_bytes())
    with Reader(packed) as reader:
        start = reader.overhead["header"]
    rng = np.random.default_rng(seed)
    for at in rng.integers(start if seed % 2 else len(data) - 6000, len(data), 3):
        data[at] ^= int(rng.integers(1, 256))
    (tmp_path / "m.qzc").write_bytes(resign(bytes(data)))
    try:
        qzc.load_file(tmp_path / "m.qzc", dtype="float32")
    except qzc.QzcError:
        return


@pytest.mark.parametrize("case", [*bad_rates()], ids=lambda case: case.name)
def test_the_reference_refuses_what_the_package_refuses(case: MalformedQzc) -> None:
    assert set(decode_file(sound_rate())) == {"r"}
    with pytest.raises(ValueError, match="section"):
        decode_file(case.data)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"coder": 2}, "has a coder that its tensor cannot have"),
        ({"table": 1}, "has a table, or a wrong number of streams"),
        ({"streams": 0}, "has a table, or a wrong number of streams"),
        ({"streams": 3}, "the number of streams does not fit"),
        ({"streams": 64}, "the number of streams does not fit"),
    ],
)
def test_rows_of_the_index_that_cannot_be(fields: dict[str, int], message: str, tmp_path: Path) -> None:
    broken = edit_rows(
        sound_rate(), "r", **{key: [value, column(sound_rate(), "r", key)[1]] for key, value in fields.items()}
    )
    (tmp_path / "m.qzc").write_bytes(broken)
    with pytest.raises(CorruptionError, match=message):
        qzc.verify(tmp_path / "m.qzc")
    with pytest.raises(ValueError, match="section"):
        decode_file(broken)


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        ({"step": "3f80"}, "8 hexadecimal digits"),
        ({"step": "80000001"}, "not positive"),
        ({"offset": 256}, "offset must be a whole number below 256"),
        ({"restart": 0}, "restart is 0"),
        ({"wide": False}, "wide is not true"),
        ({"column_log": 1}, "uses vector 1 in a way"),
        ({"row_log": 0}, "uses vector 0 in a way"),
    ],
)
def test_entries_that_cannot_be(rate: dict[str, Any], message: str, tmp_path: Path) -> None:
    broken = edit_json(sound_rate(), "qzc.coded", lambda coded: coded["r"]["rate"].update(rate))
    (tmp_path / "m.qzc").write_bytes(broken)
    with pytest.raises(CorruptionError, match=message):
        qzc.verify(tmp_path / "m.qzc")
    with pytest.raises(ValueError, match="section"):
        decode_file(broken)


def test_few_bytes_cannot_ask_for_much_memory(tmp_path: Path) -> None:
    huge = edit_json(sound_rate(), "qzc.coded", lambda coded: coded["r"].update(shape=[1, 1 << 45]))
    (tmp_path / "m.qzc").write_bytes(huge)
    with pytest.raises(CorruptionError):
        qzc.verify(tmp_path / "m.qzc")


# ---------------------------------------------------------------------------------------------- command line
def test_statistics_of_another_model_are_refused(model_file: Path, stats: Path, tmp_path: Path) -> None:
    tensors = load_safetensors(model_file)
    tensors[DOWN] = tensors[DOWN] * 2
    save_safetensors(tensors, tmp_path / "other.safetensors")
    with pytest.raises(InvalidArgumentError, match="another model"):
        packed_at(tmp_path / "other.safetensors", tmp_path / "m.qzc", RateOptions(3.0), stats=stats)


@pytest.mark.parametrize("method", ["diag", "gptq-ec", "watersic"])
def test_methods_that_need_statistics_say_so(method: RateMethod, model_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=f"{method} needs the statistics"):
        packed_at(model_file, tmp_path / "m.qzc", RateOptions(3.0, method=method))
    with pytest.raises(InvalidArgumentError, match="gptq needs"):
        PackOptions(method="gptq")


def test_gptq_on_a_grid_is_nearer_in_its_own_measure(model_file: Path, stats: Path, tmp_path: Path) -> None:
    selection = qzc.Selection(qzc.parse_bits(4))
    for method in ("rtn", "gptq"):
        options = PackOptions(selection, method=method, stats=stats if method == "gptq" else None)
        pack(model_file, tmp_path / f"{method}.qzc", options)
        assert qzc.verify(tmp_path / f"{method}.qzc", model_file).tensors == 20
    from qzc.calibration import Calibration

    with Calibration.open(stats) as known:
        gram = known.gram(DOWN)
    original = load_safetensors(model_file)[DOWN]
    losses = {}
    for method in ("rtn", "gptq"):
        error = (original - qzc.load_file(tmp_path / f"{method}.qzc", dtype="float32")[DOWN]).astype(np.float64)
        losses[method] = float(((error @ gram) * error).sum())
    assert losses["gptq"] < 0.8 * losses["rtn"]


def test_the_command(model_file: Path, stats: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.qzc"
    done = inside("pack", model_file, "-o", output, "--target-bpw", "2.5", "--stats", stats, "--trellis", "4")
    assert done.code == 0, done.stderr
    assert (
        "watersic at 2." in done.stderr and "codes 2." in done.stderr and "no statistics for model.embed" in done.stderr
    )
    listed = json.loads(inside("ls", output, "--json").stdout)["tensors"]
    assert next(t for t in listed if t["name"] == DOWN)["rate"]["states"] == 4
    assert "rate, trellis 4" in inside("info", output).stdout
    assert inside("verify", output, "--against", model_file).code == 0
    assert inside("cat", output, DOWN, "--codes", "--rows", "3:5", "-o", tmp_path / "codes.npy").code == 0
    with qzc.open(output) as model:
        np.testing.assert_array_equal(np.load(tmp_path / "codes.npy"), model.levels(DOWN).levels[3:5])
    stats_of = json.loads(inside("stats", output, "--json").stdout)
    assert stats_of["totals"]["precisions"][0]["parts"]["rated"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--target-bpw", "3", "--bits", "4"), "--bits has no meaning"),
        (("--target-bpw", "3", "--target-size", "1MB"), "either"),
        (("--target-bpw", "3", "--lossless"), "--lossless"),
        (("--target-bpw", "3", "--method", "gptq"), "is for grids"),
        (("--target-bpw", "3", "--best", "--trellis", "8"), "--best chooses"),
        (("--target-size", "big"), "is not a size"),
        (("--trellis", "8"), "needs a rate"),
        (("--method", "watersic"), "at a rate"),
        (("--target-bpw", "0"), "target-bpw"),
    ],
)
def test_options_that_do_not_go_together(arguments: tuple[str, ...], message: str, model_file: Path) -> None:
    done = inside("pack", model_file, *arguments)
    assert done.code == 2 and message in done.stderr


def test_stats_say_what_a_file_at_a_rate_holds(model_file: Path, tmp_path: Path) -> None:
    packed_at(model_file, tmp_path / "m.qzc", RateOptions(3.0))
    result = inside("stats", tmp_path / "m.qzc")
    assert "15 tensors are quantized at a rate: payloads take 2." in result.stderr
    assert "No tensor is quantized" not in result.stderr
    document = json.loads(inside("stats", tmp_path / "m.qzc", "--json").stdout)
    (totals,) = document["totals"]["precisions"]
    assert sum(totals["parts"].values()) == (tmp_path / "m.qzc").stat().st_size
