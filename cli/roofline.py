"""`qzc roofline`"""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import PATH, examples, quiet_option
from .render import Cell, Column, print_json
from .sizes import size_text
from .tables import Table, chosen_format, format_options, print_tables

if TYPE_CHECKING:
    from ..analysis.roofline import Bound, ModelShape, Roofline
    from ..roofline import ModelFacts

CACHES = ("fp16", "fp8", "int8", "int4", "int3", "int2")


def weights(text: str) -> float:
    """A number of weights: `70e9`, `70B`, `350M`."""
    return _quantity(text, 1000)


def tokens(text: str) -> float:
    """A number of tokens: `4096`, `128k`, where k is 1024."""
    return _quantity(text, 1024)


def _quantity(text: str, kilo: int) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d*)?(?:e\d{1,2})?)([kmgbt]?)", text.strip(), re.IGNORECASE)
    if match is None:
        raise click.BadParameter(f"{text!r} is not a number like 128k or 70e9")
    power = {"": 0, "k": 1, "m": 2, "g": 3, "b": 3, "t": 4}[match[2].lower()]
    return float(match[1]) * float(kilo) ** power


@click.command(
    "roofline",
    short_help="Tokens per second that memory allows, device by device.",
    epilog=examples(
        "qzc roofline llama/ --context 32k",
        "qzc roofline model.qzc --decode 8 --json",
        "qzc roofline --params 70e9 --bits 4 --coded 3.5",
        "qzc roofline llama/ --context 128k --cache int2 --batch 8 --md",
    ),
)
@click.argument("model", type=PATH, required=False, metavar="MODEL|--params")
@click.option("--params", type=weights, metavar="N", help="Number of weights instead of a MODEL: 70e9, 70B.")
@click.option(
    "--bits", type=click.IntRange(1, 8), default=4, show_default=True, help="Of the fixed grid, in groups of 128."
)
@click.option(
    "--coded",
    type=click.FloatRange(0, 64, min_open=True),
    metavar="BITS",
    help="Coded bits per weight; a .qzc has its own.",
)
@click.option("--context", type=tokens, default="0", metavar="N", help="Tokens in the cache: 4096, 128k.")
@click.option(
    "--batch", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="Sequences at a time."
)
@click.option(
    "--cache", type=click.Choice(CACHES), default="fp16", show_default=True, help="How keys and values are stored."
)
@click.option("--layers", type=click.IntRange(min=1, max=100_000), metavar="N", help="Layers, if no config.json tells.")
@click.option("--kv-heads", type=click.IntRange(min=1), metavar="N", help="Heads of keys and values, likewise.")
@click.option("--head-size", type=click.IntRange(min=1), metavar="N", help="Numbers per head, likewise.")
@click.option(
    "--active", type=weights, metavar="N", help="Weights that a token reads, if not all (mixtures of experts)."
)
@click.option(
    "--decode", type=click.FloatRange(0, min_open=True), metavar="GB/S", help="Packed codes that a decoder delivers."
)
@click.option("--devices", type=PATH, metavar="FILE", help="More devices, .json or .toml; see docs/roofline.md.")
@format_options
@quiet_option
def command(
    model: Path | None,
    params: float | None,
    quiet: bool,
    devices: Path | None,
    **options: Any,
) -> None:
    """Bound tokens per second by memory: every token reads all weights of MODEL once, and the cache.

    One row per device, one column per way to store the weights: FP16, int8, the fixed grid of --bits, and coded, if MODEL is
    a .qzc or --coded says how many bits that takes. Layers, heads and windows for the cache come from config.json.
    """
    from ..analysis.devices import DEVICES, merge_devices
    from ..analysis.roofline import CACHE_DTYPES, roofline
    from ..roofline import model_facts, read_devices, weight_formats

    if (model is None) == (params is None):
        raise click.UsageError("give a MODEL or --params, and not both")
    form = chosen_format(options)
    facts = None if model is None else model_facts(model)
    parameters = options["active"] or params or float(facts.parameters if facts else 0)
    coded, decoded = options["coded"], None
    if coded is None and facts:
        coded, decoded = facts.coded_bits, facts.coded_codes_bits
    bound = roofline(
        parameters,
        weight_formats(options["bits"], coded, decoded),
        merge_devices(DEVICES, read_devices(devices) if devices else ()),
        _shape(facts, options),
        context=int(options["context"]),
        batch=options["batch"],
        cache=CACHE_DTYPES[options["cache"]],
        decode=options["decode"],
    )
    if form == "json":
        print_json({"schema": "qzc.roofline/1", **asdict(bound), "notes": notes(bound, facts)})
        return
    table = Table("roofline", "Tokens per second", _columns(bound), list(dict.fromkeys(b.device for b in bound.bounds)))
    print_tables([table], form, [] if quiet else notes(bound, facts))


def _shape(facts: ModelFacts | None, options: dict[str, Any]) -> ModelShape | None:
    from ..analysis.roofline import ModelShape

    given = [options[key] for key in ("layers", "kv_heads", "head_size")]
    if all(given):
        return ModelShape(2 * given[1] * given[2], (None,) * given[0])
    if any(given):
        raise click.UsageError("--layers, --kv-heads and --head-size belong together")
    return facts.shape if facts else None


def _columns(bound: Roofline) -> list[Column[str]]:
    cells = {(b.device, b.format): b for b in bound.bounds}
    columns: list[Column[str]] = [Column("device", "device", lambda device: device)]

    def column(name: str) -> Column[str]:
        bits = next(f.bits for f in bound.formats if f.name == name)
        return Column(name.lower(), f"{name} ({bits:.4g} b)", lambda device: _tokens(cells[device, name]), digits=1)

    columns += [column(f.name) for f in bound.formats]
    coded = next((f for f in bound.formats if f.decoded_bits is not None), None)
    if coded is not None:
        name = coded.name
        columns.append(
            Column(
                "needed_decode", "needs decode GB/s", lambda device: cells[device, name].needed_decode, digits=0, rank=2
            )
        )
        if any(b.decode_tokens_per_second is not None for b in bound.bounds):
            columns.append(
                Column(
                    "decode", "decoder allows", lambda device: cells[device, name].decode_tokens_per_second, digits=1
                )
            )
            columns.append(Column("reachable", "both", lambda device: cells[device, name].reachable, digits=1))
    if any(b.fits is False for b in bound.bounds):
        columns.append(Column("too_large", "does not fit", lambda device: _too_large(bound, device), rank=1))
    return columns


def _tokens(bound: Bound) -> Cell:
    return bound.tokens_per_second


def _too_large(bound: Roofline, device: str) -> str | None:
    return ", ".join(b.format for b in bound.bounds if b.device == device and b.fits is False) or None


def notes(bound: Roofline, facts: ModelFacts | None) -> list[str]:
    """What the table says and what it leaves out."""
    sizes = ", ".join(f"{f.name} {size_text(round(bound.parameters * f.bits / 8))}" for f in bound.formats)
    found = [f"Tokens per second, all {bound.batch} of a batch together: an upper bound. Weights: {sizes}."]
    if bound.batch == 1:
        found[0] = f"Tokens per second that reading the weights and the cache allows: an upper bound. Weights: {sizes}."
    if bound.cache_nbytes_per_token is None:
        found.append("The cache is not counted: no config.json says what it is like.")
    else:
        text = f"Cache ({bound.cache}): {size_text(round(bound.cache_nbytes_per_token))} a token"
        if bound.context and bound.cache_nbytes is not None:
            text += f", {size_text(round(bound.cache_nbytes))} for {bound.context:,} tokens"
        equal = [f"{name} {tokens:,.0f}" for name, tokens in bound.equal_context.items() if tokens is not None]
        never = [name for name, tokens in bound.equal_context.items() if tokens is None]
        text += f". It is as large as the weights at {', '.join(equal)} tokens" if equal else ""
        text += f"; never for {', '.join(never)} (sliding windows)" if never else ""
        found.append(text + ".")
    if any(f.decoded_bits is not None for f in bound.formats):
        found.append(
            "A coded model reaches its column only if a decoder delivers packed codes as fast as said, while the weights are "
            "read. A slower one caps it; decoded once at loading it saves download, disk and loading, and runs as the fixed grid."
        )
    if facts is not None and facts.generates is False:
        found.append(
            "Note: config.json names no model that writes token by token; read tokens as passes over all weights."
        )
    return found
