"""Spread one rate over tensors of different importance: every bit should buy the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ..codec.errors import InvalidArgumentError
from .unbounded import Design


def equal_slope(designs: Sequence[Design], sensitivities: Sequence[float]) -> list[Design]:
    """Designs whose steps are in the best proportion.

    sensitivities: what a squared error of one in the outputs of each tensor (in the units of its `factor`) costs the
    model. At high rate a bit more divides the squared error by four: for the same gain everywhere, steps go with 1 /
    sqrt(sensitivity). Row steps that come from sensitivities of rows contain theirs already: pass 1.

    Raises InvalidArgumentError for sensitivities that are not positive and finite.
    """
    if len(sensitivities) != len(designs) or not all(0 < s < math.inf for s in sensitivities):
        raise InvalidArgumentError("every tensor needs a sensitivity, positive and finite")
    return [replace(d, scale=d.scale / math.sqrt(s)) for d, s in zip(designs, sensitivities, strict=True)]


def measured_sensitivity(harm: float, loss: float) -> float:
    """Sensitivity of a tensor from a trial in which it alone was quantized, at a rate near the one that is wanted.

    harm: what that did to the model (KL divergence, 1 - cosine ..). loss: the squared error of the trial, from
    `Rated.losses`. Better than sensitivities from gradients where errors of many tokens add up, as in a mean over a
    text. No harm counts as very little.
    """
    if not (math.isfinite(harm) and 0 < loss < math.inf):
        raise InvalidArgumentError(f"a trial with harm {harm} and loss {loss} says nothing about a sensitivity")
    return max(harm, 1e-12) / loss
