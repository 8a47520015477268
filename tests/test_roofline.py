"""Tokens per second from bytes and bandwidth: known figures, caches, shapes from configs, and the command."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from qzc.analysis.devices import DEVICES, Device, devices_from, merge_devices
from qzc.analysis.roofline import (
    CACHE_DTYPES,
    ModelShape,
    WeightFormat,
    cache_size,
    equal_context,
    model_shape,
    roofline,
)
from qzc.cli.roofline import command
from qzc.codec.errors import FileAccessError, InvalidArgumentError
from qzc.roofline import model_facts, read_devices, weight_formats

LLAMA_70B = ModelShape(2 * 8 * 128, (None,) * 80)
FP16, INT4 = WeightFormat("FP16", 16.0), WeightFormat("int4", 4.125)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [(FP16, [0.964, 1.463, 3.9, 5.85, 23.93, 34.29]), (INT4, [3.74, 5.674, 15.13, 22.69, 92.81, 132.99])],
)
def test_70_billion_weights(weights: WeightFormat, expected: list[float]) -> None:
    bound = roofline(70e9, [weights], DEVICES)
    assert [b.tokens_per_second for b in bound.bounds] == pytest.approx(expected, rel=1e-3)


def test_the_cache_is_read_with_every_token() -> None:
    # 80 layers x 2 x 8 heads x 128 numbers x 2 bytes = 327,680 bytes a token; 128 k tokens take 42.9 GB
    assert cache_size(LLAMA_70B, 131072, CACHE_DTYPES["fp16"]) == 327_680 * 131_072
    bound = roofline(70e9, [FP16], [Device("x", 1000.0)], LLAMA_70B, context=131072, batch=4)
    assert bound.bounds[0].tokens_per_second == pytest.approx(4 * 1000e9 / (140e9 + 4 * 327_680 * 131_072))
    assert bound.equal_context["FP16"] == pytest.approx(140e9 / 327_680, rel=1e-9)


@pytest.mark.parametrize(("name", "bits"), [("fp8", 8.0), ("int8", 8.25), ("int4", 5.0), ("int3", 4.0), ("int2", 3.0)])
def test_small_caches_pay_for_their_scales(name: str, bits: float) -> None:
    cache = CACHE_DTYPES[name]
    assert cache.bits_per_number == bits
    shape = ModelShape(1000, (None,))
    many = cache_size(shape, 1_000_000, cache)
    assert many == pytest.approx(1000 * (cache.recent * 16 + (1_000_000 - cache.recent) * bits) / 8)
    assert cache_size(shape, 10, cache) == 1000 * 10 * (16 if cache.recent else bits) / 8


def test_windows_bound_the_cache() -> None:
    shape = ModelShape(100, (50, None))
    assert cache_size(shape, 80, CACHE_DTYPES["fp16"]) == 200 * (50 + 80)
    assert equal_context(ModelShape(100, (50,)), 1e9, CACHE_DTYPES["fp16"]) is None
    assert equal_context(shape, 200 * 1050, CACHE_DTYPES["fp16"]) == pytest.approx(1000)


def test_the_decoder_is_a_second_ceiling() -> None:
    coded = WeightFormat("coded", 3.5, 4.0)
    bound = roofline(8e9, [coded], [Device("x", 100.0), Device("fast", 100.0, decode=1e6)], decode=10.0)
    slow, fast = bound.bounds
    assert slow.tokens_per_second == pytest.approx(100 / 3.5)
    assert slow.decode_tokens_per_second == pytest.approx(10 / 4)
    assert slow.reachable == pytest.approx(2.5)
    assert slow.needed_decode == pytest.approx(100 / 3.5 * 4)
    assert fast.reachable == fast.tokens_per_second


def test_what_fits() -> None:
    bound = roofline(70e9, [FP16, INT4], DEVICES)
    fits = {(b.device, b.format): b.fits for b in bound.bounds}
    assert fits["H100 SXM", "FP16"] is False and fits["H100 SXM", "int4"] is True
    assert fits["Jetson AGX Orin", "FP16"] is None


@pytest.mark.parametrize(
    ("config", "numbers", "windows"),
    [
        ({"num_hidden_layers": 2, "num_attention_heads": 8, "hidden_size": 64}, 128, (None, None)),
        ({"n_layer": 1, "n_head": 4, "n_embd": 64, "multi_query": True}, 32, (None,)),
        ({"num_hidden_layers": 1, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 5}, 20, (None,)),
        ({"num_hidden_layers": 1, "num_attention_heads": 8, "kv_lora_rank": 512, "qk_rope_head_dim": 64}, 576, (None,)),
        (
            {"num_hidden_layers": 2, "num_attention_heads": 1, "hidden_size": 8, "sliding_window": 16,
             "layer_types": ["sliding_attention", "full_attention"]}, 16, (16, None),
        ),
        ({"num_hidden_layers": 1, "num_attention_heads": 1, "hidden_size": 8, "sliding_window": 16}, 16, (16,)),
        (
            {"num_hidden_layers": 1, "num_attention_heads": 1, "hidden_size": 8, "sliding_window": 16,
             "use_sliding_window": False}, 16, (None,),
        ),
        ({"text_config": {"num_hidden_layers": 1, "num_attention_heads": 1, "hidden_size": 8}}, 16, (None,)),
    ],
)  # fmt: skip
def test_shapes_of_configs(config: dict[str, Any], numbers: int, windows: tuple[int | None, ...]) -> None:
    assert model_shape(config) == ModelShape(numbers, windows)


@pytest.mark.parametrize(
    "config", [{}, {"num_hidden_layers": "x"}, {"num_hidden_layers": 10**9, "num_attention_heads": 1}, {"n_layer": 2}]
)
def test_configs_that_do_not_tell(config: dict[str, Any]) -> None:
    assert model_shape(config) is None


def test_facts_of_a_model(model_folder: Path) -> None:
    facts = model_facts(model_folder)
    assert facts.shape == ModelShape(2 * 2 * 32, (None, None)) and facts.generates is True
    assert facts.parameters > 100_000 and facts.coded_bits is None


def test_devices_of_a_user(tmp_path: Path) -> None:
    toml = tmp_path / "mine.toml"
    toml.write_text(
        '[[devices]]\nname = "H200"\nbandwidth = 5000\n\n[[devices]]\nname = "Mine"\nbandwidth = 50.5\ndecode = 3\n'
    )
    devices = merge_devices(DEVICES, read_devices(toml))
    assert len(devices) == len(DEVICES) + 1
    assert {d.name: d.bandwidth for d in devices}["H200"] == 5000.0
    assert devices[-1] == Device("Mine", 50.5, None, 3.0)
    listed = tmp_path / "mine.json"
    listed.write_text('[{"name": "Mine", "bandwidth": 1}]')
    assert read_devices(listed) == (Device("Mine", 1.0),)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "no list of devices"),
        ([], "no list of devices"),
        ([{"bandwidth": 3}], "device 1 has no name"),
        ([{"name": "x"}], "has no bandwidth"),
        ([{"name": "x", "bandwidth": "fast"}], "is a number"),
        ([{"name": "x", "bandwidth": True}], "is a number"),
        ([{"name": "x", "bandwidth": -1}], "above 0"),
        ([{"name": "x", "bandwidth": float("nan")}], "above 0"),
        ([{"name": "x", "bandwidth": 1, "bandwith": 2}], "unknown field 'bandwith'"),
    ],
)
def test_bad_devices(document: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        devices_from(document)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "\xff"])
def test_bad_device_files(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidArgumentError, match=r"bad\.json"):
        read_devices(path)
    with pytest.raises(FileAccessError):
        read_devices(tmp_path / "missing.json")


def test_numbers_without_sense() -> None:
    for parameters, batch, context in ((0.0, 1, 0), (1.0, 0, 0), (1.0, 1, -1), (1.0, 1, 10)):
        with pytest.raises(InvalidArgumentError):
            roofline(parameters, [FP16], DEVICES, batch=batch, context=context)
    with pytest.raises(InvalidArgumentError, match="bits per weight"):
        WeightFormat("x", 0.0)


def test_formats_of_weights() -> None:
    assert [(f.name, f.bits) for f in weight_formats(4, 3.5)] == [
        ("FP16", 16.0), ("int8", 8.0), ("int4", 4.125), ("coded", 3.5)
    ]  # fmt: skip
    assert [f.name for f in weight_formats(8, None)] == ["FP16", "int8"]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_command_in_a_pipe_and_as_documents(model_folder: Path) -> None:
    lines = run("--params", "70B", "--coded", "3.5", "-q").splitlines()
    assert lines[0].split("\t")[:5] == ["device", "fp16", "int8", "int4", "coded"]
    assert lines[-1].split("\t")[:4] == ["H200", "34.285714", "68.571429", "132.987013"]
    rows = list(csv.reader(io.StringIO(run("--params", "70e9", "--csv"))))
    assert rows[6][3] == "132.987013"
    assert "| H200 | 34.3 | 68.6 | 133.0 |" in run("--params", "70e9", "--md")
    document = json.loads(run(str(model_folder), "--context", "1k", "--cache", "int2", "--json"))
    assert document["schema"] == "qzc.roofline/1" and document["context"] == 1024
    assert document["cache_nbytes_per_token"] == 2 * 128 * 3 / 8
    assert len(document["bounds"]) == 3 * len(DEVICES)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["x", "--params", "1"],
        ["--params", "many"],
        ["--params", "1B", "--json", "--csv"],
        ["--params", "1B", "--layers", "3"],
    ],
)
def test_command_refuses(arguments: list[str]) -> None:
    assert CliRunner().invoke(command, arguments).exit_code == 2
