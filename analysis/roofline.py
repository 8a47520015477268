"""Tokens per second where memory is the limit: each token reads all weights once, and the cache of what was said before.

An upper bound. Arithmetic, launch gaps and anything that is not read from memory make it slower; batches share one reading
of the weights. docs/roofline.md has the formulas.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..codec.errors import InvalidArgumentError
from .devices import Device


@dataclass(frozen=True)
class CacheDtype:
    """How a key or value is stored. bits: of one number. group: numbers that share a scale and a zero point of 16 bits each.

    recent: the last so many tokens stay in 16 bits (KIVI keeps 128).
    """

    name: str
    bits: float
    group: int | None = None
    recent: int = 0

    @property
    def bits_per_number(self) -> float:
        """With scale and zero point."""
        return self.bits + (32.0 / self.group if self.group else 0.0)


CACHE_DTYPES: dict[str, CacheDtype] = {
    dtype.name: dtype
    for dtype in (
        CacheDtype("fp16", 16.0),
        CacheDtype("fp8", 8.0),
        CacheDtype("int8", 8.0, 128),
        CacheDtype("int4", 4.0, 32, 128),
        CacheDtype("int3", 3.0, 32, 128),
        CacheDtype("int2", 2.0, 32, 128),
    )
}


@dataclass(frozen=True)
class ModelShape:
    """What the cache of a model depends on. numbers: keys and values of one token in one layer, together.

    windows: for each layer the most tokens that it looks back, None for all of them.
    """

    numbers: int
    windows: tuple[int | None, ...]

    @property
    def layers(self) -> int:
        return len(self.windows)


@dataclass(frozen=True)
class WeightFormat:
    """bits: per weight, everything counted. decoded_bits: what a decoder has to deliver per weight; None if nothing is decoded."""

    name: str
    bits: float
    decoded_bits: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.bits <= 64:
            raise InvalidArgumentError(f"{self.name}: {self.bits} bits per weight; it is a number above 0 and up to 64")


@dataclass(frozen=True)
class Bound:
    """One device with one weight format.

    tokens_per_second: over the whole batch, by memory alone. decode_tokens_per_second: how often a second the decoder can
    deliver all weights, times batch; None where nothing is decoded or its speed is unknown. needed_decode: GB/s of
    packed codes that the decoder must deliver so as not to be what limits; None where nothing is decoded.
    fits: whether weights and caches fit the memory; None if its size is unknown.
    """

    device: str
    format: str
    weight_nbytes: float
    tokens_per_second: float
    decode_tokens_per_second: float | None
    needed_decode: float | None
    fits: bool | None

    @property
    def reachable(self) -> float:
        """The lower of the two ceilings."""
        return min(self.tokens_per_second, self.decode_tokens_per_second or self.tokens_per_second)


@dataclass(frozen=True)
class Roofline:
    """cache_nbytes: of one sequence at this context; equal_context: where it equals the weights, by format; None: never.

    cache_nbytes_per_token: of a token beyond the recent ones while no window is full. All None without a model shape.
    """

    parameters: float
    context: int
    batch: int
    cache: str
    cache_nbytes: float | None
    cache_nbytes_per_token: float | None
    equal_context: Mapping[str, float | None]
    formats: tuple[WeightFormat, ...]
    bounds: tuple[Bound, ...]


def roofline(
    parameters: float,
    formats: Sequence[WeightFormat],
    devices: Sequence[Device],
    shape: ModelShape | None = None,
    *,
    context: int = 0,
    batch: int = 1,
    cache: CacheDtype = CACHE_DTYPES["fp16"],
    decode: float | None = None,
) -> Roofline:
    """The ceilings of every device with every weight format.

    parameters: weights read per token. decode: GB/s of packed codes, for devices that do not state their own.
    Raises InvalidArgumentError for numbers that make no sense, and for a context without a model shape.
    """
    if parameters <= 0 or batch < 1 or context < 0 or (decode is not None and decode <= 0):
        raise InvalidArgumentError(
            "parameters and decode speed are above 0, the batch at least 1, the context at least 0"
        )
    if context and shape is None:
        raise InvalidArgumentError(
            "a context needs the shape of the model for its cache: give a folder with config.json, or layers, KV heads and head size"
        )
    cache_nbytes = cache_size(shape, context, cache) if shape else 0.0
    bounds = []
    for device in devices:
        for weights in formats:
            nbytes = parameters * weights.bits / 8
            rate = batch * device.bandwidth * 1e9 / (nbytes + batch * cache_nbytes)
            delivered = device.decode or decode
            ceiling = needed = None
            if weights.decoded_bits is not None:
                packed = parameters * weights.decoded_bits / 8
                needed = rate / batch * packed / 1e9
                ceiling = None if delivered is None else batch * delivered * 1e9 / packed
            fits = None if device.memory is None else nbytes + batch * cache_nbytes <= device.memory * 1e9
            bounds.append(Bound(device.name, weights.name, nbytes, rate, ceiling, needed, fits))
    equal = {w.name: equal_context(shape, parameters * w.bits / 8, cache) if shape else None for w in formats}
    per_token = shape.layers * shape.numbers * cache.bits_per_number / 8 if shape else None
    return Roofline(
        parameters,
        context,
        batch,
        cache.name,
        cache_nbytes if shape else None,
        per_token,
        equal,
        tuple(formats),
        tuple(bounds),
    )


def cache_size(shape: ModelShape, context: float, cache: CacheDtype) -> float:
    """Bytes of the keys and values of one sequence of `context` tokens."""
    return sum(_layer_nbytes(shape.numbers, context if w is None else min(context, w), cache) for w in shape.windows)


def equal_context(shape: ModelShape, weight_nbytes: float, cache: CacheDtype) -> float | None:
    """The context at which the cache of one sequence is as large as the weights; None if windows keep it below."""
    if all(window is not None for window in shape.windows) and cache_size(shape, 1e18, cache) < weight_nbytes:
        return None
    low, high = 0.0, 1.0
    while cache_size(shape, high, cache) < weight_nbytes:
        low, high = high, high * 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if cache_size(shape, middle, cache) < weight_nbytes else (low, middle)
    return high


def _layer_nbytes(numbers: int, tokens: float, cache: CacheDtype) -> float:
    recent = min(tokens, cache.recent)
    return numbers * (recent * 16.0 + (tokens - recent) * cache.bits_per_number) / 8


def model_shape(config: Mapping[str, Any]) -> ModelShape | None:
    """The shape that a `config.json` of transformers describes; None if it does not say (or keeps no cache).

    Understands multi-head, grouped and multi-query attention, DeepSeek's latent attention (`kv_lora_rank`), sliding windows
    for all or some layers (`layer_types`), and models whose text part has a configuration of its own (`text_config`).
    """
    for part in ("text_config", "llm_config", "language_config"):
        if isinstance(config.get(part), Mapping):
            return model_shape(config[part])
    layers = _integer(config, "num_hidden_layers", "n_layer", "num_layers", "n_layers")
    heads = _integer(config, "num_attention_heads", "n_head", "n_heads")
    hidden = _integer(config, "hidden_size", "n_embd", "d_model", "dim")
    if layers is None or layers > 100_000 or heads is None:
        return None
    rank = _integer(config, "kv_lora_rank")
    if rank is not None:
        numbers = rank + (_integer(config, "qk_rope_head_dim") or 0)
    else:
        kv_heads = _integer(config, "num_key_value_heads", "num_kv_heads", "n_head_kv", "n_kv_heads") or heads
        if config.get("multi_query") is True:
            kv_heads = 1
        size = _integer(config, "head_dim") or (hidden // heads if hidden else None)
        if size is None:
            return None
        numbers = 2 * kv_heads * size
    return ModelShape(numbers, _windows(config, layers))


def _windows(config: Mapping[str, Any], layers: int) -> tuple[int | None, ...]:
    window = _integer(config, "sliding_window")
    types = config.get("layer_types")
    if window is None or config.get("use_sliding_window") is False:
        return (None,) * layers
    if isinstance(types, list) and len(types) == layers:
        return tuple(window if kind == "sliding_attention" else None for kind in types)
    return (window,) * layers


def _integer(config: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
