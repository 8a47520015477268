"""Recognition of quantized checkpoints: every layout as its tools write it, from config and names and from names alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file

from qzc.analysis.entropy import shannon_entropy
from qzc.codec.packing import unpack_codes
from qzc.codec.records import Records, join, split
from qzc.formats.layouts.found import dense, settings_of
from qzc.formats.layouts.layout import Found, detect
from tests import layout_writers as writers
from tests.layout_writers import Checkpoint, Quantized, quantize, random_weight

Case = tuple[str, str, Callable[[Quantized], Checkpoint]]

# Layout, description, writer; each with the bits and the group size that it is tried with.
CASES: dict[str, tuple[str, str, Callable[[Quantized], Checkpoint], int, int]] = {
    **{
        f"gptq-{bits}": ("gptq", f"GPTQ int{bits} group 32 (zeros left as they are)", writers.gptq, bits, 32)
        for bits in (2, 3, 4, 5, 6, 7, 8)
    },
    "gptq-v2-act-order": (
        "gptq",
        "GPTQ int4 group 32, act-order (zeros left as they are)",
        lambda matrix: writers.gptq(matrix, act_order=True, version=2),
        4,
        32,
    ),
    "awq": ("awq", "AWQ int4 group 32 (zeros left as they are)", writers.awq, 4, 32),
    **{
        f"compressed-{bits}": (
            "compressed-tensors",
            f"compressed-tensors int{bits} group 32 (pack-quantized)",
            writers.compressed,
            bits,
            32,
        )
        for bits in range(1, 9)
    },
    "int-quantized": ("compressed-tensors", "compressed-tensors int8 (int-quantized)", writers.naive, 8, 32),
    "bitsandbytes": ("bitsandbytes", "bitsandbytes NF4, scales quantized too", writers.bitsandbytes, 4, 64),
    **{f"mlx-{bits}": ("mlx", f"MLX int{bits} group 64", writers.mlx, bits, 64) for bits in (2, 3, 4, 5, 6, 8)},
}


def first_codes(checkpoint: Checkpoint, name: str, records: Records) -> NDArray[np.uint8]:
    """The codes of the first plane of a tensor."""
    data = checkpoint.raw(name)
    return unpack_codes(split(data, records)[0], records.codes(data.size)[0], records.widths[0])


def counts(codes: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.bincount(codes.ravel(), minlength=256)


def assert_restores(checkpoint: Checkpoint, found: Found) -> None:
    """Every hint gives back every byte."""
    for name, splits in found.hints.items():
        data = checkpoint.raw(name)
        for records in splits:
            back = np.empty_like(data)
            join(split(data, records), records, back)
            np.testing.assert_array_equal(back, data)


@pytest.mark.parametrize("case", CASES)
def test_layout_and_its_codes_are_found(case: str) -> None:
    layout, description, write, bits, group = CASES[case]
    checkpoint = write(quantize(random_weight(64, 192), bits, group))
    found = detect(checkpoint.config, checkpoint.info)
    assert found is not None
    assert (found.layout, found.description, found.tensors) == (layout, description, 1)
    assert set(found.hints) >= set(checkpoint.codes)
    for name, codes in checkpoint.codes.items():
        plane = first_codes(checkpoint, name, found.hints[name][0])
        np.testing.assert_array_equal(counts(plane), counts(codes), err_msg=name)
    assert_restores(checkpoint, found)


@pytest.mark.parametrize("case", CASES)
def test_names_alone_are_enough(case: str) -> None:
    layout, _, write, bits, group = CASES[case]
    checkpoint = write(quantize(random_weight(64, 192), bits, group))
    found = detect(None, checkpoint.info)
    assert found is not None and found.layout == layout
    for name, codes in checkpoint.codes.items():
        true = [counts(codes).tolist() == counts(first_codes(checkpoint, name, r)).tolist() for r in found.hints[name]]
        # compressed-tensors tells bits by its config only: 1-bit codes look like 2-bit ones in groups of half the size
        assert any(true) or case == "compressed-1", name
    assert_restores(checkpoint, found)


@pytest.mark.parametrize("bits", [3, 5, 6, 7])
def test_words_that_are_not_filled_up(bits: int) -> None:
    matrix = quantize(random_weight(40, 128), bits, 32)
    checkpoint = writers.compressed(matrix, old=True)
    found = detect(checkpoint.config, checkpoint.info)
    assert found is not None
    name = "model.layers.0.q_proj.weight_packed"
    fitting = [records for records in found.hints[name] if records.fields[0] == (bits, 32 // bits)]
    assert len(fitting) == 1
    codes, gap = first_codes(checkpoint, name, fitting[0]), -matrix.codes.shape[1] % (32 // bits) * len(matrix.codes)
    np.testing.assert_array_equal(counts(codes) - np.eye(256, dtype=int)[0] * gap, counts(matrix.codes))
    assert_restores(checkpoint, found)


def test_rows_that_end_inside_a_word_are_records_of_their_own() -> None:
    matrix = quantize(random_weight(8, 40), 3, 40)  # 120 bits in 4 words
    checkpoint = writers.compressed(matrix)
    found = detect(checkpoint.config, checkpoint.info)
    assert found is not None
    name = "model.layers.0.q_proj.weight_packed"
    assert found.hints[name][0] == Records(((3, 42), (2, 1)))
    codes = first_codes(checkpoint, name, found.hints[name][0]).reshape(8, 42)
    np.testing.assert_array_equal(codes[:, :40], matrix.codes)


@pytest.mark.parametrize(
    ("bits", "write"), [(4, writers.gptq), (3, writers.gptq), (4, writers.awq), (3, writers.compressed)]
)
def test_real_codes_keep_their_entropy(bits: int, write: Callable[[Quantized], Checkpoint], model_file: Path) -> None:
    matrix = quantize(load_file(model_file)["model.embed_tokens.weight"], bits, 128)
    checkpoint = write(matrix)
    found = detect(checkpoint.config, checkpoint.info)
    assert found is not None
    name = next(name for name, codes in checkpoint.codes.items() if codes is matrix.codes)
    entropy = shannon_entropy(counts(matrix.codes))
    assert entropy < bits - 0.2  # there is something to gain
    assert shannon_entropy(counts(first_codes(checkpoint, name, found.hints[name][0]))) == pytest.approx(entropy)


def test_codes_of_whole_bytes_need_no_rearranging() -> None:
    """4-bit words are their own plane, so that decoding writes the words themselves."""
    checkpoint = writers.gptq(quantize(random_weight(64, 128), 4, 32))
    found = detect(checkpoint.config, checkpoint.info)
    assert found is not None
    data = checkpoint.raw("model.layers.0.q_proj.qweight")
    (plane,) = split(data, found.hints["model.layers.0.q_proj.qweight"][0])
    assert np.shares_memory(plane, data)


def test_several_widths_in_one_checkpoint() -> None:
    parts = [
        writers.gptq(quantize(random_weight(64, 128, bits), bits, 128), prefix=f"layers.{bits}.") for bits in (3, 4, 8)
    ]
    info = {name: entry for part in parts for name, entry in part.info.items()} | {"norm.weight": ("F16", (64,))}
    found = detect(parts[0].config, info)  # says 3 bits
    assert found is not None
    assert (found.description, found.tensors) == ("GPTQ int3/int4/int8 per channel (zeros left as they are)", 3)
    assert found.hints["layers.3.qweight"] == (Records(((3, 32),), interleave=(4, 64)),)
    assert found.hints["layers.4.qweight"] == (Records(((4, 2),)),)
    assert found.hints["layers.8.qweight"] == (Records(((8, 1),)),)
    assert "norm.weight" not in found.hints


def test_float_layouts() -> None:
    info = {
        "a.weight_packed": ("U8", (64, 128)), "a.weight_scale": ("F8_E4M3", (64, 16)), "a.weight_global_scale": ("F32", (1,)),
        "b.weight_packed": ("U8", (64, 96)), "b.weight_scale": ("U8", (64, 4)),
        "c.weight": ("F8_E4M3", (64, 128)), "c.weight_scale": ("BF16", (64, 1)),
        "d.weight": ("BF16", (64, 128)),
    }  # fmt: skip
    config = {"quantization_config": {"quant_method": "compressed-tensors", "format": "mixed-precision"}}
    found = detect(config, info)
    assert found is not None
    assert found.description == "compressed-tensors float8 and fp4 and fp6 (mixed-precision)"
    assert found.hints["a.weight_packed"] == (Records(((4, 2),)),)
    assert found.hints["b.weight_packed"] == (Records(((6, 16),)),)
    assert found.hints["c.weight"] == (Records(((8, 1),)),)
    assert "d.weight" not in found.hints
    assert detect({"quantization_config": {"quant_method": "fp8"}}, {"c.weight": info["c.weight"]}) is None


def test_4_bit_codes_that_are_stored_as_another_dtype() -> None:
    info = {"q.weight": ("BF16", (4096, 1)), "q.weight.quant_state.bitsandbytes__fp4": ("U8", (90,))}
    found = detect(None, info)
    assert found is not None
    assert (found.description, found.hints) == ("bitsandbytes FP4", {"q.weight": (Records(((4, 2),)),)})


def test_bitsandbytes_int8() -> None:
    found = detect(None, {"q.weight": ("I8", (64, 64)), "q.SCB": ("F32", (64,)), "q.weight_format": ("U8", ())})
    assert found is not None
    assert (found.description, found.hints) == ("bitsandbytes int8", {"q.weight": (Records(((8, 1),)),)})


def test_mlx_settings_of_a_single_layer() -> None:
    info = {
        "a.weight": ("U32", (8, 32)), "a.scales": ("F16", (8, 2)), "a.biases": ("F16", (8, 2)),
        "b.weight": ("U32", (8, 32)), "b.scales": ("F16", (8, 4)), "b.biases": ("F16", (8, 4)),
    }  # fmt: skip
    found = detect({"quantization": {"bits": 4, "group_size": 128, "b": {"bits": 8, "group_size": 32}}}, info)
    assert found is not None
    assert found.hints == {"a.weight": (Records(((4, 2),)),), "b.weight": (Records(((8, 1),)),)}


@pytest.mark.parametrize("name", ["quantize_config.json", "quant_config.json"])
def test_config_files_of_their_own(name: str) -> None:
    """qweight of a shape that tells nothing: the bits are in the file beside it."""
    config = {"bits": 4, "group_size": 128} if name == "quantize_config.json" else {"w_bit": 4, "q_group_size": 128}
    found = detect(config, {"q.qweight": ("I32", (512, 64)), "q.scales": ("F16", (7, 512))})
    assert found is not None and found.layout == "awq"
    assert found.hints["q.qweight"] == (Records(((4, 2),)),)


BAD: list[Any] = [
    None,
    [],
    {},
    "4",
    17,
    -1,
    0,
    True,
    4.0,
    {"num_bits": 17},
    [[]],
    10**40,
    float("nan"),
    {"weights": None},
]


@pytest.mark.parametrize("case", ["gptq-3", "awq", "compressed-3", "bitsandbytes", "mlx-3", "int-quantized"])
@pytest.mark.parametrize("bad", BAD, ids=str)
def test_malformed_configs_are_ignored(case: str, bad: Any) -> None:
    layout, _, write, bits, group = CASES[case]
    checkpoint = write(quantize(random_weight(64, 192), bits, group))
    keys = "bits", "w_bit", "group_size", "num_bits", "config_groups", "format", "desc_act", "model.layers.0.q_proj"
    settings: dict[str, Any] = dict.fromkeys(keys, bad)
    configs: list[Any] = [
        {"quantization_config": bad}, {"quantization": bad}, {"compression_config": bad}, {"text_config": bad}, bad,
        {"quantization_config": settings}, {"quantization": settings}, settings,
        {"quantization_config": {"config_groups": {"group_0": bad}}},
        {"quantization_config": {"config_groups": {"group_0": {"weights": bad}}}},
        {"quantization_config": {"config_groups": {"group_0": {"weights": settings}}}},
    ]  # fmt: skip
    for config in configs:
        found = detect(config, checkpoint.info)
        assert found is not None and found.layout == layout
        assert_restores(checkpoint, found)


@given(
    st.dictionaries(
        st.sampled_from(
            "qweight qzeros scales g_idx weight weight_packed weight_scale weight_zero_point weight_g_idx biases SCB "
            "weight.absmax weight.quant_state.bitsandbytes__nf4".split()
        ).map("m.{}".format),
        st.tuples(
            st.sampled_from(["I32", "U32", "U8", "I8", "F16", "I16", "F8_E4M3", "F4", "X9"]),
            st.lists(st.sampled_from([0, 1, 2, 3, 7, 8, 12, 32, 96, 128, 2**40]), max_size=4).map(tuple),
        ),
    ),
    st.sampled_from([None, {"bits": 3}, {"quantization": {"bits": 3, "group_size": 64}}]),
)
def test_hints_always_fit(tensors: dict[str, tuple[str, tuple[int, ...]]], config: dict[str, Any] | None) -> None:
    found = detect(config, tensors)
    if found is not None:
        assert found.tensors > 0 and found.hints and "\n" not in found.description
        for name, splits in found.hints.items():
            nbytes = np.prod([float(length) for length in tensors[name][1]]) * {"16": 2, "32": 4}.get(
                tensors[name][0][1:], 1
            )
            assert splits and all(nbytes % records.span == 0 and nbytes > 0 for records in splits)


@given(st.integers(1, 8), st.integers(1, 12), st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_dense_codes_of_any_row_length(bits: int, rows: int, columns: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 2**bits, (rows, columns)).astype(np.uint8)
    packed = writers.words(codes, bits)
    data, row_nbytes = packed.reshape(-1).view(np.uint8), 4 * packed.shape[1]
    records = dense(bits, row_nbytes)
    assert records is not None and records.span in (row_nbytes, *range(1, 8), 12, 20, 28)
    plane = unpack_codes(split(data, records)[0], records.codes(data.size)[0], records.widths[0])
    np.testing.assert_array_equal(plane.reshape(rows, -1)[:, :columns], codes)
    down = dense(bits, row_nbytes, (4, rows))  # the same words, as columns
    assert down is not None
    turned = np.ascontiguousarray(packed.T).reshape(-1).view(np.uint8)
    assert turned.size % down.span == 0
    got = unpack_codes(split(turned, down)[0], down.codes(data.size)[0], down.widths[0])
    np.testing.assert_array_equal(np.sort(got), np.sort(plane))


def test_records_beyond_the_limit_are_no_hint() -> None:
    assert dense(3, 65_540) is None
    assert dense(3, 65_541) == Records(((3, 8),))
    assert dense(3, 65_544) == Records(((3, 32),))


def test_plain_checkpoints_are_none(model_file: Path) -> None:
    info = {name: ("F32", array.shape) for name, array in load_file(model_file).items()}
    assert detect({"model_type": "llama", "torch_dtype": "float32"}, info) is None
    assert detect({"quantization_config": {"quant_method": "gptq", "bits": 4}}, info) is None
    assert detect(None, {}) is None


def test_settings_of() -> None:
    assert settings_of({"text_config": {"quantization_config": {"bits": 4}}}) == {"bits": 4}
    assert settings_of({"model_type": "llama"}) == {}
    assert settings_of({"bits": 4, "desc_act": True}) == {"bits": 4, "desc_act": True}
