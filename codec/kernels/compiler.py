"""How numba compiles kernels here: machine code is made of a kernel, once, not of each of the functions it is made of.

numba optimizes every compiled function and makes machine code of it, even if all that is left of it is in its callers: for a
kernel of thirty functions that is two thirds of LLVM's work. A function compiled by `PartCompiler` stays as numba has lowered
it until a kernel that calls it is optimized, and the function in it. This goes behind numba's public functions, so `jit` leaves it
to the versions that it was tried with.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

from numba import _dynfunc
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler, CompilerBase, DefaultPassBuilder, _LowerResult
from numba.core.compiler_machinery import register_pass
from numba.core.typed_passes import NativeLowering


class KernelCompiler(Compiler):  # type: ignore[misc]
    """numba's own steps, without the garbage collector, which finds nothing among what they allocate: a tenth of the time."""

    def compile_extra(self, func: Callable[..., Any]) -> Any:
        """Compile a Python function."""
        collecting = gc.isenabled()
        gc.disable()
        try:
            return super().compile_extra(func)
        finally:
            if collecting:
                gc.enable()


class PartCompiler(CompilerBase):  # type: ignore[misc]
    """For functions that only kernels call."""

    def define_pipelines(self) -> list[Any]:
        """numba's own steps, but for the last one."""
        steps = DefaultPassBuilder.define_nopython_pipeline(self.state)
        steps.passes = [(_LowerPart if step is NativeLowering else step, why) for step, why in steps.passes]
        steps._finalized = False
        steps.finalize()
        return [steps]


class _PartLibrary(JITCodeLibrary):  # type: ignore[misc]
    """The LLVM code of a part and of its own parts, neither optimized nor given to the machine."""

    def finalize(self) -> None:
        self._raise_if_finalized()
        for library in dict.fromkeys(self._linking_libraries):
            if hasattr(library, "_reload_init"):  # since numba 0.62
                self._reload_init.update(library._reload_init)
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        self._finalized = True


@register_pass(mutates_CFG=True, analysis_only=False)
class _LowerPart(NativeLowering):  # type: ignore[misc]
    _name = "lower_part"

    def run_pass(self, state: Any) -> bool:
        name = state.func_id.func_qualname
        state.library = _PartLibrary(state.targetctx.codegen(), name)
        state.flags.no_compile = True
        super().run_pass(state)
        state.library.finalize()
        lowered = state["cr"]
        # What callers know the function by; it has no machine code that could run.
        function = _dynfunc.make_function(lowered.fndesc.lookup_module(), name, "", 0, lowered.env, (state.library,))
        state.targetctx.insert_user_function(function, lowered.fndesc, [state.library])
        state["cr"] = _LowerResult(lowered.fndesc, lowered.call_helper, cfunc=function, env=lowered.env)
        return True
