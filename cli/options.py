"""Options that several commands share, each a decorator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def _all(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(function: Command) -> Command:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def examples(*lines: str) -> str:
    """An epilog that click does not rewrap: one command a line."""
    return "\n".join(("\b", "Examples:", *(f"  {line}" for line in lines)))


PATH = click.Path(path_type=Path, readable=False)  # the library finds out, and says more
model_argument = click.argument("model", type=PATH)
bits_option = click.option(
    "--bits",
    metavar="N|RULES",
    default="4",
    show_default=True,
    help="Bits of the integer grid, 1 to 8; or rules by tensor name, the first that matches counts: "
    "'lm_head=8,*.mlp.*=3,*=4'. 'keep' stores a tensor as it is.",
)
grid_shape_options = _all(
    click.option(
        "--strategy",
        type=click.Choice(["tensor", "channel", "group"]),
        help="One scale per tensor, per row, or per group of a row.  [default: group up to 4 bits, channel above]",
    ),
    click.option("--group-size", type=click.IntRange(min=1), metavar="N", help="Weights per group.  [default: 128]"),
    click.option(
        "--symmetric/--asymmetric", default=None, help="Grid around zero, or with a zero point.  [default: symmetric]"
    ),
    click.option(
        "--scale",
        type=click.Choice(["absmax", "mse"]),
        help="Cover the largest weight, or clip for the least squared error.  [default: mse for groups, else absmax]",
    ),
    click.option(
        "--scale-dtype",
        type=click.Choice(["float16", "bfloat16", "float32"]),
        default="float16",
        show_default=True,
        help="How scales are stored.",
    ),
)
grid_options = _all(bits_option, grid_shape_options)
selection_options = _all(
    click.option(
        "--include", metavar="GLOB", multiple=True, help="Quantize these tensors although small, 1-D or a norm."
    ),
    click.option("--exclude", metavar="GLOB", multiple=True, help="Store these tensors as they are."),
)
METHODS = ("rtn", "gptq", "rtn-ec", "diag", "gptq-ec", "watersic")
rate_options = _all(
    click.option(
        "--target-bpw",
        type=click.FloatRange(0, 16, min_open=True),
        metavar="R",
        help="Quantize at this rate in place of a grid: R bits per quantized weight in the file, all side information "
        "counted.",
    ),
    click.option("--target-size", metavar="SIZE", help="The same, for an output of this size, such as 700MB or 4GB."),
    click.option(
        "--count",
        type=click.Choice(["quantized", "all"]),
        default="quantized",
        show_default=True,
        help="What --target-bpw counts: the quantized tensors, or the whole output per weight of any tensor.",
    ),
    click.option(
        "--method",
        type=click.Choice(METHODS),
        help="How to quantize: on a grid rtn or gptq, at a rate one of the others.  [default: rtn; at a rate watersic with "
        "--stats, rtn-ec without]",
    ),
    click.option("--stats", type=PATH, metavar="FILE", help="Statistics of this model's inputs, from `qzc calibrate`."),
    click.option(
        "--trellis",
        type=click.Choice(["4", "8", "16", "32", "64", "128", "256"]),
        metavar="STATES",
        help="At a rate: dependent quantization with so many states (4, 8, 32 .. 256); slower to pack, better at every rate.",
    ),
    click.option(
        "--best", is_flag=True, help="At a rate: the strongest method there is statistics for, with a trellis."
    ),
    click.option(
        "--uniform-rate",
        is_flag=True,
        help="At a rate: the same for each tensor, not more where `qzc calibrate` found that errors cost more.",
    ),
)
coder_option = click.option(
    "--coder",
    type=click.Choice(["ans", "huffman", "raw"]),
    default="ans",
    show_default=True,
    help="Entropy coder: ans is smallest, huffman decodes fast everywhere, raw does not code.",
)
base_option = click.option("--base", type=PATH, metavar="MODEL", help="The checkpoint that a delta was packed against.")
threads_option = click.option(
    "-T", "--threads", type=click.IntRange(min=0), default=0, metavar="N", help="Threads; 0 (default) means all CPUs."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Write JSON to stdout.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="No progress and no summary; warnings and errors only.")
verbose_option = click.option("-v", "--verbose", is_flag=True, help="Say what happened to each tensor.")
force_option = click.option("-f", "--force", is_flag=True, help="Overwrite the output if it exists.")
