"""Float tensors to integer codes with scales and zero points: on which grid, and which tensors of a checkpoint."""

from .grid import grid_for
from .rtn import NonFiniteError, quantize
from .select import BitsRule, Decision, Selection, parse_bits

__all__ = ["BitsRule", "Decision", "NonFiniteError", "Selection", "grid_for", "parse_bits", "quantize"]
