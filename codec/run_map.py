"""How independent work is carried out: the built-in `map`, or the `map` of a thread pool. Results come in order."""

from collections.abc import Callable, Iterable
from typing import Any

RunMap = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
