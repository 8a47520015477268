"""Which tensors of a checkpoint are quantized, and with how many bits; the others are kept as they are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod

from ..codec.errors import InvalidArgumentError
from ..codec.tensor import QuantizationArgs, ScaleDtype, ScaleMethod, Strategy
from .grid import grid_for

SMALLEST = 4096  # elements: below it a tensor of its own scale and tables has nothing to gain

_FLOATS = ("F64", "F32", "F16", "BF16")
# The parameter itself, and the module that owns it. Not any part of the name: `norm1.linear.weight` is a large matrix.
_BIAS = re.compile(r"(.*_)?bias", re.IGNORECASE)
_NORM = re.compile(r".*norm.*|(ln|bn|gn)(\d+|_.*)?", re.IGNORECASE)


@dataclass(frozen=True)
class BitsRule:
    """Tensors that match `pattern` get `bits`, or stay as they are if it is None (written `keep`)."""

    pattern: str
    bits: int | None

    def __str__(self) -> str:
        return f"{self.pattern}={'keep' if self.bits is None else self.bits}"


@dataclass(frozen=True)
class Decision:
    """What becomes of a tensor: its grid, or None if it is kept; and why, in a few words."""

    args: QuantizationArgs | None
    reason: str


@dataclass(frozen=True)
class Selection:
    """Rules that say for every tensor whether it is quantized and on which grid.

    In this order: what is not floating point is kept; what matches `exclude` is kept; the first of `rules` that matches
    gives the bits (or `keep`; without a match the tensor is kept); then tensors that seldom pay or suffer are kept
    (fewer than two dimensions, fewer than 4096 elements, biases and norms) unless they match `include`.

    A pattern is a shell glob, case-sensitive, where `*` also matches dots. It is compared with the whole name of the
    tensor and with the name of its module, which is the name without the last dotted part: `lm_head` matches
    `lm_head.weight`. A tensor is a bias if the last part of its name is `bias` or ends in `_bias`, and a norm if the
    last part of its module's name (of its own name, if it has no module) contains `norm` or is `ln`, `bn` or `gn`,
    alone or followed by digits or by `_` and anything; upper and lower case alike.

    strategy .. scale_dtype: as in `grid_for`, for all tensors.
    """

    rules: tuple[BitsRule, ...] = (BitsRule("*", 4),)
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    strategy: Strategy | None = None
    group_size: int | None = None
    symmetric: bool | None = None
    scale: ScaleMethod | None = None
    scale_dtype: ScaleDtype | None = None

    def __post_init__(self) -> None:
        for pattern in (*(rule.pattern for rule in self.rules), *self.include, *self.exclude):
            if not pattern.strip():
                raise InvalidArgumentError("a pattern is empty; use * to match every tensor")
        for rule in self.rules:
            if rule.bits is not None:
                self._grid(rule.bits)

    def decide(self, name: str, dtype: str, shape: Sequence[int]) -> Decision:
        """What becomes of the tensor `name` of `dtype` (in safetensors' names) and `shape`."""
        if dtype not in _FLOATS:
            return Decision(None, f"{dtype} is not a float that can be quantized")
        for pattern in self.exclude:
            if matches(pattern, name):
                return Decision(None, f"excluded by {pattern}")
        rule = self._rule(name)
        if rule is None:
            return Decision(None, "no bits rule matches")
        if rule.bits is None:
            return Decision(None, f"rule {rule}")
        why_keep = _default_keep(name, shape)
        if why_keep is None:
            return Decision(self._grid(rule.bits), f"rule {rule}")
        for pattern in self.include:
            if matches(pattern, name):
                return Decision(self._grid(rule.bits), f"rule {rule}, included by {pattern}")
        return Decision(None, why_keep)

    def unused(self, names: Iterable[str]) -> list[str]:
        """What has no effect on tensors of these names: globs that match none, and bits rules that are never the first
        to match. Each as it would be written on the command line (`--exclude lm_haed`)."""
        names = list(names)
        first = {self._rule(name) for name in names}
        texts = [f"--bits {rule}" for rule in dict.fromkeys(self.rules) if rule not in first]
        for option, patterns in (("--include", self.include), ("--exclude", self.exclude)):
            texts += [
                f"{option} {pattern}" for pattern in patterns if not any(matches(pattern, name) for name in names)
            ]
        return texts

    def _rule(self, name: str) -> BitsRule | None:
        return next((rule for rule in self.rules if matches(rule.pattern, name)), None)

    def _grid(self, bits: int) -> QuantizationArgs:
        return grid_for(bits, self.strategy, self.group_size, self.symmetric, self.scale, self.scale_dtype)


def parse_bits(text: str | int) -> tuple[BitsRule, ...]:
    """Bits rules from `4` or `lm_head=8,*.mlp.*=3,*.embed*=keep,*=4`; a bare value stands for `*=value`.

    Raises InvalidArgumentError for anything else.

    >>> parse_bits("lm_head=8,4")
    (BitsRule(pattern='lm_head', bits=8), BitsRule(pattern='*', bits=4))
    """
    rules = []
    for part in str(text).split(","):
        pattern, equals, value = part.strip().rpartition("=")
        pattern, value = (pattern.strip() if equals else "*"), value.strip()
        if not pattern or "=" in pattern or not (value == "keep" or value in tuple("12345678")):
            raise InvalidArgumentError(
                f"bad bits rule {part.strip()!r}: write a number from 1 to 8, or PATTERN=BITS where BITS is 1 to 8 or "
                "keep; several are separated by commas and the first that matches counts"
            )
        rules.append(BitsRule(pattern, None if value == "keep" else int(value)))
    return tuple(rules)


def matches(pattern: str, name: str) -> bool:
    """Whether the glob matches the name of the tensor or that of its module."""
    module = name.rpartition(".")[0]
    return fnmatchcase(name, pattern) or (bool(module) and fnmatchcase(module, pattern))


def _default_keep(name: str, shape: Sequence[int]) -> str | None:
    """Why this tensor is not quantized unless it is included; None if it is."""
    if len(shape) < 2:
        return f"{len(shape)}-D"
    if prod(shape) < SMALLEST:
        return f"fewer than {SMALLEST} elements"
    module, _, last = name.rpartition(".")
    if _BIAS.fullmatch(last):
        return "bias"
    if _NORM.fullmatch(module.rpartition(".")[2] or last):
        return "norm"
    return None
