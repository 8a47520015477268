"""How kernels are compiled: numba, GIL released, cached on disk where that is possible."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba.core.caching import FunctionCache
from numba.core.ccallback import CFunc

F = TypeVar("F", bound=Callable[..., Any])

# Versions of numba whose inner functions are known to be as `compiler` and the cache need them. With all others kernels work as
# well, and compile and start as slowly as numba does by itself.
_KNOWN = (0, 61) <= numba.version_info.short <= (0, 68)


class _ForgivingCache(FunctionCache):  # type: ignore[misc]
    """numba's cache on disk, except that a cache that cannot be read or written costs time, not the result.

    numba discards an entry when the file of its function changes. Kernels here are compiled into each other across
    files, so an entry is discarded when any of the folder's files changes: an upgrade must not run old machine code.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._cache_file._source_stamp = (self._cache_file._source_stamp, _folder_stamp())

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        # numba would first load all that it takes to compile: 0.3 s of CPU, and scipy where that is installed.
        try:
            if not _KNOWN:
                return super().load_overload(sig, target_context)
            from numba.core.runtime import rtsys

            rtsys.initialize(target_context)  # functions that machine code may call
            return self._load_overload(sig, target_context)
        except Exception:  # a torn or foreign cache file fails in any way that unpickling can
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except Exception:  # full disk, folder that vanished, torn index
            self.disable()


@cache
def _folder_stamp() -> str:
    digest = sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def kernel(function: F) -> F:
    """Compile `function` when it is first called with new argument types; the GIL is released while it runs.

    numba refuses `cache=True` where it finds no folder to write to (read-only install without a home), so the
    cache is attached afterwards and left off if there is no place for it.
    """
    # "numpy": a division by zero is not worth a branch in every loop; no kernel divides by what it was not given.
    compiled = numba.njit(nogil=True, error_model="numpy", **_compiler("KernelCompiler"))(function)
    try:
        compiled._cache = _ForgivingCache(function)
    except Exception:  # numba says RuntimeError today
        pass
    return cast(F, compiled)


def callback(function: Callable[..., Any], arguments: tuple[Any, ...], returns: Any) -> int:
    """Compile `function` for kernels that call it through its address, which this returns: once, whoever calls it.

    It must not raise. The machine code stays for as long as the process.
    """
    signature, options = (arguments, returns), {"error_model": "numpy"}
    compiled: Any = CFunc(function, signature, {}, options, **_compiler("KernelCompiler"))
    try:
        compiled._cache = _ForgivingCache(function)
    except Exception:  # as above
        pass
    compiled.compile()
    _callbacks.append(compiled)
    return int(compiled.address)


_callbacks: list[Any] = []


def inlined(function: F) -> F:
    """Compile `function` into its callers: for the steps of a kernel. Python cannot call it."""
    source = getattr(function, "py_func", function)  # a kernel can be both: called from Python, and part of another one
    options = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, **_compiler("PartCompiler")}
    return cast(F, numba.njit(nogil=True, error_model="numpy", forceinline=True, **options)(source))


def spliced(function: F) -> F:
    """Insert `function` into the source, so to say, of its callers: for layers between them and their steps.

    Nothing is compiled apart, which would be done again for the caller; but each caller is analysed as a whole.
    """
    return cast(F, numba.njit(nogil=True, error_model="numpy", inline="always")(function))


def _compiler(name: str) -> dict[str, Any]:
    """The option that makes numba compile with this class of `compiler`."""
    if not _KNOWN:
        return {}
    from . import compiler

    return {"pipeline_class": getattr(compiler, name)}
