"""Which tensors are quantized, on which grid, and what the rules and globs mean."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qzc.codec.errors import InvalidArgumentError
from qzc.codec.tensor import QuantizationArgs
from qzc.quantize import BitsRule, Selection, grid_for, parse_bits
from qzc.quantize.select import matches

BIG = (64, 64)


def bits_of(selection: Selection, name: str, dtype: str = "F32", shape: tuple[int, ...] = BIG) -> int | None:
    args = selection.decide(name, dtype, shape).args
    return args.num_bits if args else None


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("4", [("*", 4)]),
        (3, [("*", 3)]),
        ("keep", [("*", None)]),
        ("lm_head=8,*.mlp.*=3,*=4", [("lm_head", 8), ("*.mlp.*", 3), ("*", 4)]),
        (" lm_head = 8 , 4 ", [("lm_head", 8), ("*", 4)]),
        ("*embed*=keep,2", [("*embed*", None), ("*", 2)]),
    ],
)
def test_parse_bits(text: str | int, rules: list[tuple[str, int | None]]) -> None:
    assert parse_bits(text) == tuple(BitsRule(pattern, bits) for pattern, bits in rules)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "9",
        "16",
        "-1",
        "3.5",
        "four",
        "x=",
        "=4",
        "4,",
        ",4",
        "a=4;b=3",
        "a=4 b=3",
        "a==4",
        "x=KEEP",
        "٤",
        "04",
    ],
)
def test_bad_bits(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="from 1 to 8, or PATTERN=BITS"):
        parse_bits(text)


@given(st.lists(st.tuples(st.text("ab.*?[]_", min_size=1, max_size=6), st.sampled_from([1, 2, 8, None])), min_size=1))
def test_rules_print_as_they_are_written(pairs: list[tuple[str, int | None]]) -> None:
    rules = tuple(BitsRule(*pair) for pair in pairs)
    assert parse_bits(",".join(map(str, rules))) == rules


@pytest.mark.parametrize(
    ("pattern", "name", "result"),
    [
        ("lm_head", "lm_head.weight", True),
        ("lm_head.weight", "lm_head.weight", True),
        ("lm_head", "model.lm_head.weight", False),
        ("*lm_head", "model.lm_head.weight", True),
        ("*.mlp.*", "model.layers.0.mlp.up_proj.weight", True),
        ("model.layers.[02].*", "model.layers.1.mlp.weight", False),
        ("model.layers.?.mlp", "model.layers.1.mlp.weight", True),
        ("LM_head", "lm_head.weight", False),
        ("", "weight", False),
        ("weight", "weight", True),
    ],
)
def test_matches(pattern: str, name: str, result: bool) -> None:
    assert matches(pattern, name) is result


def test_first_rule_wins() -> None:
    selection = Selection(parse_bits("lm_head=8,*.mlp.*=3,*.1.*=keep,*=4"))
    assert bits_of(selection, "lm_head.weight") == 8
    assert bits_of(selection, "layers.1.mlp.up.weight") == 3
    assert bits_of(selection, "layers.1.attn.q.weight") is None
    assert bits_of(selection, "layers.0.attn.q.weight") == 4


def test_no_rule_matches() -> None:
    decision = Selection(parse_bits("lm_head=8")).decide("embed.weight", "F32", BIG)
    assert (decision.args, decision.reason) == (None, "no bits rule matches")


@pytest.mark.parametrize(
    ("name", "dtype", "shape", "reason"),
    [
        ("a.weight", "I64", BIG, "I64 is not a float that can be quantized"),
        ("a.weight", "BOOL", BIG, "BOOL is not a float that can be quantized"),
        ("a.weight", "F8_E8M0", BIG, "F8_E8M0 is not a float that can be quantized"),
        ("a.weight", "F8_E4M3", BIG, "F8_E4M3 is not a float that can be quantized"),
        ("a.weight", "F32", (4096,), "1-D"),
        ("a.weight", "F32", (), "0-D"),
        ("a.weight", "F32", (64, 63), "fewer than 4096 elements"),
        ("a.weight", "F32", (64, 0), "fewer than 4096 elements"),
        ("a.bias", "F32", BIG, "bias"),
        ("attn.relative_attention_bias", "F32", BIG, "bias"),
        ("in_proj_bias", "F32", BIG, "bias"),
        ("model.norm.weight", "F32", BIG, "norm"),
        ("encoder.LayerNorm.weight", "F32", BIG, "norm"),
        ("layers.0.input_layernorm.weight", "F32", BIG, "norm"),
        ("h.0.ln_1.weight", "F32", BIG, "norm"),
        ("ln_f.weight", "F32", BIG, "norm"),
        ("layer1.0.bn2.running_mean", "F32", BIG, "norm"),
        ("norm_weight", "F32", BIG, "norm"),
    ],
)
def test_kept_by_default(name: str, dtype: str, shape: tuple[int, ...], reason: str) -> None:
    decision = Selection().decide(name, dtype, shape)
    assert (decision.args, decision.reason) == (None, reason)
    # What is no float stays, all others can be included.
    included = Selection(include=("*",)).decide(name, dtype, shape)
    assert (included.args is None) == ("not a float" in reason)


@pytest.mark.parametrize(
    "name",
    ["a.weight", "weight", "blocks.0.norm1.linear.weight", "lnet.weight", "biased.weight", "bnet.weight", "gnn.w"],
)
@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_quantized_by_default(name: str, dtype: str) -> None:
    decision = Selection().decide(name, dtype, BIG)
    assert (decision.args, decision.reason) == (grid_for(4), "rule *=4")


def test_exclude_beats_include_and_include_beats_defaults() -> None:
    selection = Selection(include=("*.norm", "a.*"), exclude=("a",))
    assert selection.decide("x.norm.weight", "F32", (64,)).reason == "rule *=4, included by *.norm"
    assert bits_of(selection, "x.norm.weight", shape=(64,)) == 4
    assert selection.decide("a.weight", "F32", BIG).reason == "excluded by a"
    assert bits_of(selection, "a.weight") is None
    assert bits_of(selection, "a.b.weight") == 4


def test_include_does_not_lift_a_keep_rule() -> None:
    decision = Selection(parse_bits("x=keep,4"), include=("x",)).decide("x.weight", "F32", BIG)
    assert (decision.args, decision.reason) == (None, "rule x=keep")


def test_grid_options_reach_every_tensor() -> None:
    selection = Selection(parse_bits("a=8,4"), group_size=32, symmetric=False, scale="absmax", scale_dtype="bfloat16")
    assert selection.decide("a.w", "F32", BIG).args == QuantizationArgs(8, False, "group", 32, "absmax", "bfloat16")
    assert selection.decide("b.w", "F32", BIG).args == QuantizationArgs(4, False, "group", 32, "absmax", "bfloat16")


def test_unused() -> None:
    names = ["lm_head.weight", "layers.0.mlp.weight", "embed.weight"]
    selection = Selection(parse_bits("lm_haed=8,*=4,lm_head=8"), include=("embed", "emb"), exclude=("*.mlp", "mlp"))
    assert selection.unused(names) == ["--bits lm_haed=8", "--bits lm_head=8", "--include emb", "--exclude mlp"]
    assert Selection(parse_bits("lm_head=8,4"), include=("embed",), exclude=("*.mlp",)).unused(iter(names)) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"include": ("",)}, "a pattern is empty"),
        ({"exclude": (" ",)}, "a pattern is empty"),
        ({"strategy": "channel", "group_size": 64}, "group_size has no meaning"),
        ({"strategy": "rows"}, "choose tensor, channel or group"),
        ({"group_size": 0}, "at least 1"),
        ({"scale": "max"}, "choose absmax or mse"),
        ({"scale_dtype": "float64"}, "choose float16, bfloat16 or float32"),
        ({"rules": (BitsRule("*", 9),)}, "1 to 8 bits"),
    ],
)
def test_bad_selection(options: dict[str, Any], message: str) -> None:
    """Refused when it is made, not at the first tensor."""
    with pytest.raises(InvalidArgumentError, match=message):
        Selection(**options)


@pytest.mark.parametrize(
    ("bits", "options", "strategy", "group_size", "scale"),
    [
        (4, {}, "group", 128, "mse"),
        (1, {}, "group", 128, "mse"),
        (5, {}, "channel", None, "absmax"),
        (8, {}, "channel", None, "absmax"),
        (8, {"group_size": 64}, "group", 64, "mse"),
        (8, {"strategy": "group"}, "group", 128, "mse"),
        (4, {"strategy": "channel"}, "channel", None, "absmax"),
        (4, {"strategy": "tensor"}, "tensor", None, "absmax"),
        (4, {"strategy": "channel", "scale": "mse"}, "channel", None, "mse"),
        (4, {"scale": "absmax"}, "group", 128, "absmax"),
    ],
)
def test_grid_for(bits: int, options: dict[str, Any], strategy: Any, group_size: int | None, scale: Any) -> None:
    assert grid_for(bits, **options) == QuantizationArgs(bits, True, strategy, group_size, scale, "float16")
    assert grid_for(bits, symmetric=False, **options).symmetric is False
