"""AVX2 for numba: a 256-bit register is an opaque value, and one function here is one instruction, or nearly.

Names end in what the lanes are: `_b` 32 bytes, `_h` 16 x 16 bit, `_d` 8 x 32 bit. Addresses are plain uint64 numbers:
nothing checks them, so the caller proves that they are in bounds. The functions only work inside kernels, on x86.
Most shuffles act on the two 128-bit halves of a register apart, as AVX2 does; the kernels place their lanes so that
this is what they want.

A kernel that was compiled and cached does not notice a change in this file: delete `__pycache__` after one.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, Signature
from typing import Any, TypeAlias

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model
from numpy.typing import NDArray

Register: TypeAlias = Any  # numba values have no Python type
Emit: TypeAlias = Callable[..., Any]

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_D = ir.VectorType(_I32, 8)  # how numba sees a register
_H = ir.VectorType(_I16, 16)
_B = ir.VectorType(_I8, 32)
_F = ir.VectorType(ir.FloatType(), 8)
_Q = ir.VectorType(_I64, 4)
_X = ir.VectorType(_I32, 4)
_HALF = ir.VectorType(_I8, 16)


class _Vector(types.Type):  # type: ignore[misc]
    """A whole register."""


class _Half(types.Type):  # type: ignore[misc]
    """128 bits."""


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, numba_type: Any) -> None:
        super().__init__(manager, numba_type, _D)


@register_model(_Half)
class _HalfModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, numba_type: Any) -> None:
        super().__init__(manager, numba_type, _X)


llvmlite.binding.initialize_native_asmparser()  # for _asm
_v, _x = _Vector("avx2"), _Half("sse")
_u64 = types.uint64


def _op(returns: Any, arguments: list[Any], emit: Emit) -> Any:
    """An intrinsic from a function that emits LLVM instructions: emit(builder, *values) -> value.

    Arguments may also be equally long tuples; then the instructions of all elements follow each other, and a plain
    argument serves every element.
    """

    def define(typing_context: Any, *args: Any) -> Any:
        count = next((a.count for a in args if isinstance(a, types.UniTuple)), 0)
        kinds = [
            types.UniTuple(k, count) if isinstance(a, types.UniTuple) else k
            for a, k in zip(args, arguments, strict=True)
        ]
        result = types.UniTuple(returns, count) if count and returns is not types.void else returns

        def generate(context: Any, b: Any, signature: Any, values: Any) -> Any:
            if not count:
                return emit(b, *values)
            rows = [
                [
                    b.extract_value(v, i) if isinstance(a, types.UniTuple) else v
                    for a, v in zip(args, values, strict=True)
                ]
                for i in range(count)
            ]
            results = [emit(b, *row) for row in rows]
            return None if returns is types.void else cgutils.pack_array(b, results)

        return result(*kinds), generate

    # numba counts the arguments of the definition, and does not take *args for an answer
    names = ["typing_context", *(f"a{i}" for i in range(len(arguments)))]
    define.__signature__ = Signature([Parameter(n, Parameter.POSITIONAL_OR_KEYWORD) for n in names])  # type: ignore[attr-defined]
    return intrinsic(define)


def _lanes(lane_type: Any, emit: Emit) -> Emit:
    """Let an emitter see registers as vectors of `lane_type`."""
    return lambda b, *values: b.bitcast(emit(b, *[b.bitcast(v, lane_type) for v in values]), _D)


def _call(b: Any, name: str, returns: Any, arguments: list[Any]) -> Any:
    function = b.module.globals.get(name)
    if function is None:
        function = ir.Function(b.module, ir.FunctionType(returns, [a.type for a in arguments]), name)
    return b.call(function, arguments)


def _load(b: Any, address: Any, kind: Any) -> Any:
    value = b.load(b.inttoptr(address, kind.as_pointer()))
    value.align = 1
    return value


def _store(b: Any, address: Any, value: Any) -> None:
    b.store(value, b.inttoptr(address, value.type.as_pointer())).align = 1


def _all(kind: Any, value: float) -> Any:
    return ir.Constant(kind, [value] * kind.count)


def _shuffle(b: Any, x: Any, y: Any, lanes: list[int]) -> Any:
    return b.shuffle_vector(x, y, ir.Constant(ir.VectorType(_I32, len(lanes)), lanes))


def _asm(mnemonic: str) -> Emit:
    """One instruction that LLVM cannot look through.

    On a CPU with AVX-512 it would turn comparisons and what depends on them into mask registers, whose latency
    costs the decoder 20 %.
    """

    def emit(b: Any, x: Any, y: Any) -> Any:
        kind = ir.FunctionType(_D, [_D, _D])
        return b.call(ir.InlineAsm(kind, f"{mnemonic} $2, $1, $0", "=x,x,x", False), [x, y])

    return emit


# Scalars and memory


def _scratch(nbytes: int) -> Any:
    def emit(b: Any) -> Any:
        with b.goto_entry_block():
            buffer = b.alloca(ir.ArrayType(_I8, nbytes))
        buffer.align = 64
        return b.ptrtoint(buffer, _I64)

    return _op(_u64, [], emit)


def scratch(nbytes: int) -> Any:
    """A function for kernels: the address of `nbytes` new bytes on the stack of the kernel, aligned to 64."""
    return _scratch(nbytes)


load_u8 = _op(_u64, [_u64], lambda b, a: b.zext(_load(b, a, _I8), _I64))
load_u16 = _op(_u64, [_u64], lambda b, a: b.zext(_load(b, a, _I16), _I64))
load_u32 = _op(_u64, [_u64], lambda b, a: b.zext(_load(b, a, _I32), _I64))
load_u64 = _op(_u64, [_u64], lambda b, a: _load(b, a, _I64))
store_u8 = _op(types.void, [_u64, _u64], lambda b, a, x: _store(b, a, b.trunc(x, _I8)))
store_u16 = _op(types.void, [_u64, _u64], lambda b, a, x: _store(b, a, b.trunc(x, _I16)))
store_u32 = _op(types.void, [_u64, _u64], lambda b, a, x: _store(b, a, b.trunc(x, _I32)))
add_u64 = _op(_u64, [_u64, _u64], lambda b, x, y: b.add(x, y))  # for tuples of addresses
store_u64 = _op(types.void, [_u64, _u64], _store)
popcount = _op(_u64, [_u64], lambda b, x: b.ctpop(x))
log2_u64 = _op(
    _u64, [_u64], lambda b, x: b.sub(_I64(63), b.ctlz(x, ir.Constant(ir.IntType(1), 1)))
)  # down; of 1 and more


def _prefetch(b: Any, address: Any) -> None:
    b.call(ir.InlineAsm(ir.FunctionType(ir.VoidType(), [_I64]), "prefetcht0 ($0)", "r", True), [address])


prefetch = _op(types.void, [_u64], _prefetch)  # any address: it never faults
load = _op(_v, [_u64], lambda b, a: _load(b, a, _D))
store = _op(types.void, [_u64, _v], _store)


def _store_around(b: Any, address: Any, value: Any) -> None:
    instruction = b.store(value, b.inttoptr(address, value.type.as_pointer()))
    instruction.align = 32
    instruction.set_metadata("nontemporal", b.module.add_metadata([_I32(1)]))


# Around the caches, to an address that is a multiple of 32: memory is not read before it is written. `fence` follows the last.
store_around = _op(types.void, [_u64, _v], _store_around)
fence = _op(types.void, [], lambda b: _call(b, "llvm.x86.sse.sfence", ir.VoidType(), []))


def _load_twice(b: Any, address: Any) -> Any:
    half = _load(b, address, _HALF)
    return b.bitcast(_shuffle(b, half, half, [*range(16)] * 2), _D)


def _load_halves(b: Any, low: Any, high: Any) -> Any:
    return b.bitcast(_shuffle(b, _load(b, low, _HALF), _load(b, high, _HALF), [*range(32)]), _D)


load_twice = _op(_v, [_u64], _load_twice)  # 16 bytes, the same in both halves
load_halves = _op(_v, [_u64, _u64], _load_halves)  # two times 16 bytes


def _look_up(index_type: Any) -> Emit:
    nbytes = index_type.width // 8
    places = [half + nbytes * i for half in (0, 16) for i in range(4)]

    def emit(b: Any, table: Any, indices: Any) -> Any:
        result = ir.Constant(_D, ir.Undefined)
        for lane, place in enumerate(places):
            index = b.zext(_load(b, b.add(indices, ir.Constant(_I64, place)), index_type), _I64)
            entry = _load(b, b.add(table, b.shl(index, ir.Constant(_I64, 2))), _I32)
            result = b.insert_element(result, entry, ir.Constant(_I32, lane))
        return result

    return emit


# Eight entries of a u32 table in memory. Indices, of 8 or 16 bits, lie in memory, too: four at the address, four 16 bytes
# further. By single loads: vpgatherdd is slow on every AMD core with AVX2, and indices are slow to leave a register.
look_up_by_h, look_up_by_b = (_op(_v, [_u64, _u64], _look_up(kind)) for kind in (_I16, _I8))


def splat_b(value: int) -> Any:
    """A function without arguments: `value` in every byte."""
    return _op(_v, [], lambda b: b.bitcast(_all(_B, value), _D))


def splat_h(value: int) -> Any:
    """A function without arguments: `value` in every 16-bit lane."""
    return _op(_v, [], lambda b: b.bitcast(_all(_H, value), _D))


def splat_d(value: int) -> Any:
    """A function without arguments: `value` in every 32-bit lane."""
    return _op(_v, [], lambda b: _all(_D, value))


def _fill_f(b: Any, value: Any) -> Any:
    start = b.insert_element(ir.Constant(_F, ir.Undefined), value, ir.Constant(_I32, 0))
    return b.bitcast(_shuffle(b, start, start, [0] * 8), _D)


def _fill_d(b: Any, value: Any) -> Any:
    start = b.insert_element(ir.Constant(_D, ir.Undefined), b.trunc(value, _I32), ir.Constant(_I32, 0))
    return _shuffle(b, start, start, [0] * 8)


fill_f = _op(_v, [types.float32], _fill_f)  # a float32 in every lane
fill_d = _op(_v, [_u64], _fill_d)  # the low half in every lane


def constant_d(values: list[int]) -> Any:
    """A function without arguments: these 8 integers."""
    return _op(_v, [], lambda b: ir.Constant(_D, values))


def constant_f(values: list[float]) -> Any:
    """A function without arguments: these 8 floats."""
    return _op(_v, [], lambda b: b.bitcast(ir.Constant(_F, values), _D))


def splat_f(value: float) -> Any:
    """A function without arguments: `value` in every float lane."""
    return _op(_v, [], lambda b: b.bitcast(_all(_F, value), _D))


def constant_b(pattern: list[int]) -> Any:
    """A function without arguments: the 16 bytes of `pattern` in both halves."""
    return _op(_v, [], lambda b: b.bitcast(ir.Constant(_B, pattern * 2), _D))


# Bits and arithmetic

and_ = _op(_v, [_v, _v], lambda b, x, y: b.and_(x, y))
and_not = _op(_v, [_v, _v], lambda b, x, y: b.and_(b.not_(x), y))  # y where x is not
or_ = _op(_v, [_v, _v], lambda b, x, y: b.or_(x, y))
xor = _op(_v, [_v, _v], lambda b, x, y: b.xor(x, y))
add_h = _op(_v, [_v, _v], _lanes(_H, lambda b, x, y: b.add(x, y)))
sub_h = _op(_v, [_v, _v], _lanes(_H, lambda b, x, y: b.sub(x, y)))
add_b = _op(_v, [_v, _v], _lanes(_B, lambda b, x, y: b.add(x, y)))
sub_b = _op(_v, [_v, _v], _lanes(_B, lambda b, x, y: b.sub(x, y)))
mul_h = _op(_v, [_v, _v], _lanes(_H, lambda b, x, y: b.mul(x, y)))
mul_high_h = _op(_v, [_v, _v], _lanes(_H, lambda b, x, y: _call(b, "llvm.x86.avx2.pmulhu.w", _H, [x, y])))
sub_saturate_h = _op(_v, [_v, _v], _lanes(_H, lambda b, x, y: _call(b, "llvm.usub.sat.v16i16", _H, [x, y])))


def shift_right_h(bits: int) -> Any:
    return _op(_v, [_v], _lanes(_H, lambda b, x: b.lshr(x, _all(_H, bits))))


def shift_signed_h(bits: int) -> Any:
    return _op(_v, [_v], _lanes(_H, lambda b, x: b.ashr(x, _all(_H, bits))))


def shift_left_h(bits: int) -> Any:
    return _op(_v, [_v], _lanes(_H, lambda b, x: b.shl(x, _all(_H, bits))))


min_h = _op(_v, [_v, _v], _asm("vpminuw"))  # unsigned
min_b = _op(_v, [_v, _v], _asm("vpminub"))  # unsigned

add_d = _op(_v, [_v, _v], lambda b, x, y: b.add(x, y))
sub_d = _op(_v, [_v, _v], lambda b, x, y: b.sub(x, y))
mul_d = _op(_v, [_v, _v], lambda b, x, y: b.mul(x, y))


add_q = _op(_v, [_v, _v], _lanes(_Q, lambda b, x, y: b.add(x, y)))  # 4 x 64 bit


def _sum_b(b: Any, x: Any) -> Any:
    return b.bitcast(_call(b, "llvm.x86.avx2.psad.bw", _Q, [b.bitcast(x, _B), _all(_B, 0)]), _D)


sum_b = _op(_v, [_v], _sum_b)  # 4 x 64 bit: of 8 bytes each


def shift_right_d(bits: int) -> Any:
    return _op(_v, [_v], lambda b, x: b.lshr(x, _all(_D, bits)))


def shift_left_d(bits: int) -> Any:
    return _op(_v, [_v], lambda b, x: b.shl(x, _all(_D, bits)))


def shift_signed_d(bits: int) -> Any:
    return _op(_v, [_v], lambda b, x: b.ashr(x, _all(_D, bits)))


# Floats: the lanes of a register as 8 x float32

float_d = _op(_v, [_v], lambda b, x: b.bitcast(b.sitofp(x, _F), _D))
round_f = _op(_v, [_v], _lanes(_F, lambda b, x: _call(b, "llvm.x86.avx.cvt.ps2dq.256", _D, [x])))  # to nearest
add_f = _op(_v, [_v, _v], _lanes(_F, lambda b, x, y: b.fadd(x, y)))
sub_f = _op(_v, [_v, _v], _lanes(_F, lambda b, x, y: b.fsub(x, y)))
mul_f = _op(_v, [_v, _v], _lanes(_F, lambda b, x, y: b.fmul(x, y)))
divide_f = _op(_v, [_v, _v], _lanes(_F, lambda b, x, y: b.fdiv(x, y)))

# Comparisons: all ones where true

greater_b = _op(_v, [_v, _v], _asm("vpcmpgtb"))  # signed
greater_h = _op(_v, [_v, _v], _asm("vpcmpgtw"))
equal_h = _op(_v, [_v, _v], _asm("vpcmpeqw"))

# Moves

shuffle_b = _op(_v, [_v, _v], _lanes(_B, lambda b, t, i: _call(b, "llvm.x86.avx2.pshuf.b", _B, [t, i])))
blend_b = _op(  # by the top bit of each byte of the mask: x where it is set, else y
    _v, [_v, _v, _v], _lanes(_B, lambda b, m, x, y: _call(b, "llvm.x86.avx2.pblendvb", _B, [y, x, m]))
)


def _unpack(count: int, high: int) -> Emit:
    """Lanes of x and y alternately, from the low or high 8 bytes of each 128-bit half; `count` lanes in a register."""
    quarter = count // 4
    lanes = [i + h + high * quarter for h in (0, 2 * quarter) for i in range(quarter)]
    kind = {32: _B, 16: _H}[count]
    return _lanes(kind, lambda b, x, y: _shuffle(b, x, y, [j for i in lanes for j in (i, i + count)]))


unpack_low_b, unpack_high_b = _op(_v, [_v, _v], _unpack(32, 0)), _op(_v, [_v, _v], _unpack(32, 1))
unpack_low_h, unpack_high_h = _op(_v, [_v, _v], _unpack(16, 0)), _op(_v, [_v, _v], _unpack(16, 1))
pack_d = _op(  # 32-bit lanes below 2^16 to 16 bits; undoes unpack_low_h and unpack_high_h
    _v, [_v, _v], lambda b, x, y: b.bitcast(_call(b, "llvm.x86.avx2.packusdw", _H, [x, y]), _D)
)
pack_h = _op(  # 16-bit lanes below 2^8 to bytes; undoes unpack_low_b and unpack_high_b
    _v,
    [_v, _v],
    lambda b, x, y: b.bitcast(_call(b, "llvm.x86.avx2.packuswb", _B, [b.bitcast(v, _H) for v in (x, y)]), _D),
)
even_then_odd_d = _op(_v, [_v], lambda b, x: _shuffle(b, x, x, [0, 2, 4, 6, 1, 3, 5, 7]))
low_half = _op(_x, [_v], lambda b, x: _shuffle(b, x, x, [0, 1, 2, 3]))
high_half = _op(_x, [_v], lambda b, x: _shuffle(b, x, x, [4, 5, 6, 7]))


def _shuffle_half(b: Any, x: Any, address: Any) -> Any:
    control = _load(b, address, _HALF)
    return b.bitcast(_call(b, "llvm.x86.ssse3.pshuf.b.128", _HALF, [b.bitcast(x, _HALF), control]), _X)


shuffle_half = _op(_x, [_x, _u64], _shuffle_half)  # by 16 control bytes in memory
store_half = _op(types.void, [_u64, _x], _store)


def _to_float16(b: Any, x: Any) -> Any:
    halves = _call(b, "llvm.x86.vcvtps2ph.256", ir.VectorType(_I16, 8), [b.bitcast(x, _F), ir.Constant(_I32, 0)])
    return b.bitcast(halves, _X)


to_float16 = _op(_x, [_v], _to_float16)  # F16C, which every CPU with AVX2 has: to nearest even, as 8 16-bit lanes


join = _op(_v, [_x, _x], lambda b, x, y: _shuffle(b, x, y, [*range(8)]))
low_bytes_h = _op(_v, [_v], _lanes(_B, lambda b, x: _shuffle(b, x, x, [*range(0, 32, 2)] * 2)))  # 16 bytes, twice
high_bytes_h = _op(_v, [_v], _lanes(_B, lambda b, x: _shuffle(b, x, x, [*range(1, 32, 2)] * 2)))


def _mask_bits_h(b: Any, x: Any, y: Any) -> Any:
    packed = _call(b, "llvm.x86.avx2.packsswb", _B, [b.bitcast(x, _H), b.bitcast(y, _H)])
    return b.zext(_call(b, "llvm.x86.avx2.pmovmskb", _I32, [packed]), _I64)


# One bit per lane of two masks: x's low half from bit 0, y's low half from bit 8, x's high half from 16, y's from 24
mask_bits_h = _op(_u64, [_v, _v], _mask_bits_h)


def _mask_bits_b(b: Any, x: Any) -> Any:
    return b.zext(_call(b, "llvm.x86.avx2.pmovmskb", _I32, [b.bitcast(x, _B)]), _I64)


mask_bits_b = _op(_u64, [_v], _mask_bits_b)  # the top bit of each byte


def _compress() -> NDArray[np.uint8]:
    table = np.full((256, 16), 0x80, np.uint8)
    for mask in range(256):
        lanes = [k for k in range(8) if mask >> k & 1]
        for place, lane in zip(range(8 - len(lanes), 8), lanes, strict=True):
            table[mask, 2 * place : 2 * place + 2] = 2 * lane, 2 * lane + 1
    return table


def _spread() -> NDArray[np.uint8]:
    table = np.full((256, 16), 0x80, np.uint8)
    for mask in range(256):
        for word, lane in enumerate(k for k in range(8) if mask >> k & 1):
            table[mask, 2 * lane : 2 * lane + 2] = 2 * word, 2 * word + 1
    return table


SPREAD = _spread()  # by mask of 8 lanes: the shuffle of 16 bytes that moves word 0, 1 .. to the lanes of the mask
COMPRESS = _compress()  # by mask of 8 lanes: the shuffle that moves those of the mask to the end, in order
