"""Files at a rate: what may be spent, and writing again until it is met."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..codec.errors import InvalidArgumentError
from ..formats.dtypes import is_float
from ..planner import FilePlan
from ..rating import RateOptions, Rating
from .report import PackedFile, rate_bits

ENTRY_NBYTES = 250  # of a tensor at a rate in the header, about
RATE_TOLERANCE = 0.003
"""How near to the rate a file has to be not to be written again; the search itself aims a little better."""
RATE_LIMIT = 0.005
RATE_TRIES = 3


def write_at_rate(
    plans: Sequence[FilePlan],
    rate: RateOptions,
    rating: Rating,
    write: Callable[[float], tuple[PackedFile, ...]],
) -> tuple[PackedFile, ...]:
    """Call `write` with bits per weight until its files have the rate.

    Raises InvalidArgumentError for a rate that cannot be reached.
    """
    budget, weights = _budget(plans, rate), rating.weights
    # What a search knows of is less than what the header has for each tensor.
    target = first_target(plans, rate) - 8 * ENTRY_NBYTES * len(rating.designs) / weights
    tries = 0
    while True:
        files = write(_possible(target))
        spent = _spent(rate, files, weights)
        tries += 1
        if abs(spent - budget) <= RATE_TOLERANCE * budget or tries == RATE_TRIES:
            break
        target = rating.reached + (budget - spent) / weights
    if abs(spent - budget) > RATE_LIMIT * budget:
        raise InvalidArgumentError(
            f"cannot reach this rate: the nearest found is {spent / budget:.4f} of it; quantize more or fewer tensors"
        )
    return files


def first_target(plans: Sequence[FilePlan], rate: RateOptions) -> float:
    """Bits for each weight that is quantized, if all else takes what the plans estimate."""
    tensors = [tensor for plan in plans for tensor in plan.tensors if not tensor.tied_to]
    weights = sum(tensor.parameters for tensor in tensors if tensor.is_rated)
    if rate.count == "quantized" and rate.bits_per_weight is not None:
        return rate.bits_per_weight
    others = sum(t.lossless.nbytes if t.is_lossless and t.lossless else t.nbytes for t in tensors if not t.is_rated)
    return (_budget(plans, rate) - 8 * others) / max(1, weights)


def _budget(plans: Sequence[FilePlan], rate: RateOptions) -> float:
    """Bits that what is counted may take: the whole output, or the tensors that are quantized."""
    if rate.nbytes is not None:
        return 8.0 * rate.nbytes
    assert rate.bits_per_weight is not None
    tensors = [tensor for plan in plans for tensor in plan.tensors if not tensor.tied_to]
    counted = [t for t in tensors if t.is_rated or (rate.count == "all" and is_float(t.dtype))]
    return rate.bits_per_weight * sum(tensor.parameters for tensor in counted)


def _spent(rate: RateOptions, files: Sequence[PackedFile], weights: int) -> float:
    """Bits that the output has for what the rate counts."""
    if rate.count == "quantized" and rate.nbytes is None:
        return sum(rate_bits(files).values()) * weights
    return 8.0 * sum(file.layout.nbytes for file in files)


def _possible(bits_per_weight: float) -> float:
    if not 0 < bits_per_weight <= 16:
        raise InvalidArgumentError(
            f"cannot reach this size: it leaves {bits_per_weight:.3g} bits for each weight that is quantized"
        )
    return bits_per_weight
