"""Sixteen words at once: what vector registers do in a few instructions, and loops do not.

The compiler turns no loop with a minimum into such instructions, so they are written out. They are
portable: where a machine has narrower registers, several of them do it.
"""

from collections.abc import Callable
from typing import Any, cast

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from llmroute_gym.ground.arrays import IntArray

LANES = 16
LANE_BITS = 4

_WORD = ir.IntType(64)
_LANES = ir.VectorType(_WORD, LANES)


def _load(context: Any, builder: Any, array_type: Any, array: Any, start: Any) -> Any:
    words = context.make_array(array_type)(context, builder, array).data
    lanes = builder.bitcast(builder.gep(words, [start]), _LANES.as_pointer())
    return builder.load(lanes, align=8)


def _all(builder: Any, word: Any) -> Any:
    """Returns sixteen times the same word."""
    nothing, zero = ir.Constant(_LANES, ir.Undefined), ir.IntType(32)(0)
    places = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(builder.insert_element(nothing, word, zero), nothing, places)


def _call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    kind = ir.FunctionType(result, [one.type for one in arguments])
    return builder.call(builder.module.declare_intrinsic(name, (), kind), arguments)


def _bits_of(typing_context: Any, number: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], _WORD)

    return types.int64(types.float64), generate


def _least_with(typing_context: Any, words: Any, node: Any, word: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, node, word = arguments
        start = builder.and_(node, _WORD(-LANES))
        lanes = _load(context, builder, signature.args[0], array, start)
        numbers = ir.Constant(_LANES, list(range(LANES)))
        own = _all(builder, builder.and_(node, _WORD(LANES - 1)))
        lanes = builder.select(builder.icmp_signed("==", numbers, own), _all(builder, word), lanes)
        return _call(builder, f"llvm.vector.reduce.smin.v{LANES}i64", _WORD, lanes)

    return types.int64(words, types.int64, types.int64), generate


def _first_equal(typing_context: Any, words: Any, start: Any, word: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, start, word = arguments
        lanes = _load(context, builder, signature.args[0], array, start)
        equal = builder.icmp_signed("==", lanes, _all(builder, word))
        bits = builder.bitcast(equal, ir.IntType(LANES))
        lane = _call(builder, f"llvm.cttz.i{LANES}", bits.type, bits, ir.IntType(1)(0))
        return builder.zext(lane, _WORD)

    return types.int64(words, types.int64, types.int64), generate


def _weighed(typing_context: Any, words: Any, start: Any, first: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, start, first = arguments
        lanes = _load(context, builder, signature.args[0], array, start)
        numbers = ir.Constant(_LANES, list(range(LANES)))
        weights = builder.and_(
            builder.sub(_all(builder, first), numbers), ir.Constant(_LANES, [LANES - 1] * LANES)
        )
        name = f"llvm.vector.reduce.add.v{LANES}i64"
        return _call(builder, name, _WORD, builder.mul(lanes, weights))

    return types.int64(words, types.int64, types.int64), generate


def _within(typing_context: Any, words: Any, start: Any, first: Any, count: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, start, first, count = arguments
        lanes = _load(context, builder, signature.args[0], array, start)
        numbers = ir.Constant(_LANES, list(range(LANES)))
        back = builder.and_(
            builder.sub(_all(builder, first), numbers), ir.Constant(_LANES, [LANES - 1] * LANES)
        )
        inside = builder.icmp_signed("<", back, _all(builder, count))
        kept = builder.select(inside, lanes, ir.Constant(_LANES, [0] * LANES))
        return _call(builder, f"llvm.vector.reduce.add.v{LANES}i64", _WORD, kept)

    return types.int64(words, types.int64, types.int64, types.int64), generate


bits_of = cast(Callable[[float], int], intrinsic(_bits_of))
"""The word of a float; of floats >= 0 the larger one has the larger word."""

least_with = cast(Callable[[IntArray, int, int], int], intrinsic(_least_with))
"""`least_with(words, node, word)`: the least of the group of `node`, were `word` there.

A group is sixteen words from a multiple of sixteen on."""

first_equal = cast(Callable[[IntArray, int, int], int], intrinsic(_first_equal))
"""`first_equal(words, start, word)`: the first of sixteen words from `start` on that is `word`."""

weighed = cast(Callable[[IntArray, int, int], int], intrinsic(_weighed))
"""`weighed(words, start, first)`: the sum of sixteen words from `start` on, each word j taken
(first - j) modulo sixteen times."""

within = cast(Callable[[IntArray, int, int, int], int], intrinsic(_within))
"""`within(words, start, first, count)`: the sum of those of sixteen words from `start` on that
`count` steps down from word `first` meet, going on at the last after the first."""
