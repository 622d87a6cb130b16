"""A trained policy over replicas as a rule: its networks in plain arithmetic, without PyTorch.

The networks are those of `llmroute_gym.sb3.replica_set`: columns of the rows, scaled, normalised,
each with its difference from the mean row; layers shared by all rows; a summary of the codes, mean
and maximum over the rows; one score per row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from llmroute_gym.ground.arrays import BoolArray, FloatArray
from llmroute_gym.ground.signals import Signal
from llmroute_gym.routers.decision import decision
from llmroute_gym.routers.rule import Rule

Singles = npt.NDArray[np.float32]
UNDECIDED = -1
"""The answer where two scores are too close to say which one PyTorch would find the larger."""
MARGIN = 2e-5
"""Of the sum of a score's terms: what rounding may do to it, ten times over."""
_FLOOR = 2e-6
"""The same of a log-probability near 0."""
_HEADER = 8
_ONE, _TWO = np.float32(1.0), np.float32(2.0)

Function = TypeVar("Function", bound=Callable[..., Any])


def _fast(function: Function) -> Function:
    """Compiles a function that allocates nothing and may take sums in any order, in vectors."""
    loosely = {"contract", "reassoc", "nsz"}
    options: dict[str, Any] = {"cache": True, "error_model": "numpy", "_nrt": False}
    compiled: Function = njit(fastmath=loosely, **options)(function)
    return compiled


class Layer(NamedTuple):
    """A linear map.

    Attributes:
        weights: (n_out, n_in).
        bias: (n_out,).
    """

    weights: Singles
    bias: Singles


@dataclass(frozen=True)
class Network:
    """A policy over replicas, all that its choices depend on.

    Attributes:
        signals: (n_columns,) which columns of the rows it reads, see `Signal`.
        shift: (n_columns,) subtracted from the scaled columns.
        factor: (n_columns,) what they are multiplied by then.
        layers: shared by all rows, from 2 n_columns on.
        joint: from a row's code to its part of the last layer.
        context: from mean and maximum of the codes to the rows' common part.
        score: from that layer and the differences, n_columns, to one number.
        rectified: whether activations are max(x, 0); if not, tanh(x).
        temperature: that the scores are divided by.
    """

    signals: Sequence[int]
    shift: Singles
    factor: Singles
    layers: Sequence[Layer]
    joint: Layer
    context: Layer
    score: Layer
    rectified: bool = False
    temperature: float = 1.0


def _bits(typing_context: Any, number: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


def _single(typing_context: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


_bits_of = cast(Callable[[np.float32], np.int32], intrinsic(_bits))
_single_of = cast(Callable[[np.int32], np.float32], intrinsic(_single))
_EXPONENT_1, _MANTISSA, _SHIFT = np.int32(127 << 23), np.int32((1 << 23) - 1), np.int32(23)
_BIAS = np.int32(127)
_ROOT, _LN2, _HALF = np.float32(2.0**0.5), np.float32(np.log(2.0)), np.float32(0.5)
_THIRD, _FIFTH, _SEVENTH, _NINTH = (np.float32(2.0 / n) for n in (3, 5, 7, 9))


@_fast
def asinh_all(x: Singles) -> None:
    """Replaces numbers by their inverse hyperbolic sines.

    The logarithm of |x| + sqrt(x^2 + 1), from the exponent and the series of artanh.
    """
    for i in range(len(x)):
        size = abs(x[i])
        y = size + np.sqrt(size * size + _ONE)
        bits = _bits_of(y)
        exponent = np.float32((bits >> _SHIFT) - _BIAS)
        m = _single_of((bits & _MANTISSA) | _EXPONENT_1)
        large = m > _ROOT
        m = m * _HALF if large else m
        exponent = exponent + _ONE if large else exponent
        s = (m - _ONE) / (m + _ONE)
        square = s * s
        series = _SEVENTH + square * _NINTH
        series = _TWO + square * (_THIRD + square * (_FIFTH + square * series))
        value = exponent * _LN2 + s * series
        x[i] = -value if x[i] < np.float32(0.0) else value


# The rational approximation of Eigen's `ptanh`, within some units of the last place.
_FAR = np.float32(7.90531110763549805)
_A1, _A3, _A5, _A7, _A9, _A11, _A13 = (
    np.float32(a)
    for a in (
        4.89352455891786e-03,
        6.37261928875436e-04,
        1.48572235717979e-05,
        5.12229709037114e-08,
        -8.60467152213735e-11,
        2.00018790482477e-13,
        -2.76076847742355e-16,
    )
)
_B0, _B2, _B4, _B6 = (
    np.float32(b)
    for b in (
        4.89352518554385e-03,
        2.26843463243900e-03,
        1.18534705686654e-04,
        1.19825839466702e-06,
    )
)


@_fast
def tanh_all(x: Singles) -> None:
    """Replaces numbers by their hyperbolic tangents."""
    for i in range(len(x)):
        z = x[i]
        z = _FAR if z > _FAR else z
        z = -_FAR if z < -_FAR else z
        q = z * z
        above = _A7 + q * (_A9 + q * (_A11 + q * _A13))
        above = z * (_A1 + q * (_A3 + q * (_A5 + q * above)))
        x[i] = above / (_B0 + q * (_B2 + q * (_B4 + q * _B6)))


@_fast
def _activate(x: Singles, rectified: bool) -> None:
    if rectified:
        for i in range(len(x)):
            x[i] = max(x[i], np.float32(0.0))
    else:
        tanh_all(x)


@_fast
def _linear(x: Singles, weights: Singles, n: int, n_in: int, n_out: int, out: Singles) -> None:
    """Maps n rows of n_in numbers to n rows of n_out.

    Args:
        x: (n * n_in,).
        weights: (n_in * n_out + n_out,): a row per input, then the bias.
        n: rows.
        n_in: numbers.
        n_out: numbers.
        out: (n * n_out,) is filled.
    """
    bias = weights[n_in * n_out : (n_in + 1) * n_out]
    for r in range(n):
        row = out[r * n_out : (r + 1) * n_out]
        for j in range(n_out):
            row[j] = bias[j]
    whole = n_in - n_in % 4
    for k in range(0, whole, 4):  # four inputs at once: fewer loads and stores of the sums
        a = weights[k * n_out : (k + 1) * n_out]
        b = weights[(k + 1) * n_out : (k + 2) * n_out]
        c = weights[(k + 2) * n_out : (k + 3) * n_out]
        d = weights[(k + 3) * n_out : (k + 4) * n_out]
        for r in range(n):
            row = out[r * n_out : (r + 1) * n_out]
            first = r * n_in + k
            p, q, u, v = x[first], x[first + 1], x[first + 2], x[first + 3]
            for j in range(n_out):
                row[j] += p * a[j] + q * b[j] + u * c[j] + v * d[j]
    for k in range(whole, n_in):
        a = weights[k * n_out : (k + 1) * n_out]
        for r in range(n):
            row = out[r * n_out : (r + 1) * n_out]
            p = x[r * n_in + k]
            for j in range(n_out):
                row[j] += p * a[j]


@_fast
def _features(rows: FloatArray, columns: Singles, n_columns: int, out: Singles) -> None:
    """Fills `out` (n_replicas * 2 n_columns,) with each row's features, see `RelativeRows`."""
    n = rows.shape[0]
    for c in range(n_columns):
        column = int(columns[c])
        shift, factor = columns[n_columns + c], columns[2 * n_columns + c]
        scale, high = float(columns[3 * n_columns + c]), float(columns[4 * n_columns + c])
        total = np.float32(0.0)
        for r in range(n):
            scaled = min(max(rows[r, column] * scale, 0.0), high)
            value = (np.float32(scaled) - shift) * factor
            out[2 * r * n_columns + c] = value
            total += value
        mean = total / np.float32(n)
        for r in range(n):
            own = out[2 * r * n_columns + c]
            out[(2 * r + 1) * n_columns + c] = own - mean
    asinh_all(out[: 2 * n * n_columns])


@_fast
def _pool(codes: Singles, n: int, width: int, out: Singles) -> None:
    """Fills `out` (2 width,) with mean and maximum of codes (n * width,) over the rows."""
    for j in range(width):
        out[j] = codes[j]
        out[width + j] = codes[j]
    for r in range(1, n):
        row = codes[r * width : (r + 1) * width]
        for j in range(width):
            out[j] += row[j]
            out[width + j] = row[j] if row[j] > out[width + j] else out[width + j]
    share = _ONE / np.float32(n)
    for j in range(width):
        out[j] *= share


@_fast
def _score(weights: Singles, codes: Singles, differences: Singles) -> tuple[np.float32, np.float32]:
    """Returns a row's score and the sum of the sizes of its terms."""
    width = len(codes)
    score = weights[len(weights) - 1]
    size = abs(score)
    for j in range(width):
        term = weights[j] * codes[j]
        score += term
        size += abs(term)
    for j in range(len(differences)):
        term = weights[width + j] * differences[j]
        score += term
        size += abs(term)
    return score, size


@_fast
def score_rows(rows: FloatArray, packed: Singles, room: Singles) -> np.float32:
    """Fills the start of `room` with the scores; returns the largest sum of sizes of a score."""
    n = rows.shape[0]
    n_columns, n_layers, rectified = int(packed[0]), int(packed[1]), packed[2] > 0
    widths = packed[_HEADER : _HEADER + n_layers + 1]
    place = _HEADER + n_layers + 1
    widest = int(packed[5])
    features = room[n : n + 2 * n * n_columns]
    one = room[n + 2 * n * n_columns :][: n * widest]
    other = room[n + 2 * n * n_columns + n * widest :][: n * widest]
    pooled = room[n + 2 * n * n_columns + 2 * n * widest :]
    _features(rows, packed[place : place + 5 * n_columns], n_columns, features)
    place += 5 * n_columns
    codes = features
    width = 2 * n_columns
    for layer in range(n_layers):
        n_out = int(widths[layer + 1])
        to = one if layer % 2 == 0 else other
        _linear(codes, packed[place:], n, width, n_out, to)
        _activate(to[: n * n_out], rectified)
        place += (width + 1) * n_out
        codes, width = to, n_out
    joint = other if n_layers % 2 == 1 else one
    _linear(codes, packed[place:], n, width, width, joint)
    place += (width + 1) * width
    _pool(codes, n, width, pooled)
    common = pooled[2 * width : 3 * width]
    _linear(pooled, packed[place:], 1, 2 * width, width, common)
    place += (2 * width + 1) * width
    for r in range(n):
        row = joint[r * width : (r + 1) * width]
        for j in range(width):
            row[j] += common[j]
    _activate(joint[: n * width], rectified)
    last = packed[place : place + width + n_columns + 1]
    largest = np.float32(0.0)
    for r in range(n):
        first = (2 * r + 1) * n_columns
        row = joint[r * width : (r + 1) * width]
        score, size = _score(last, row, features[first : first + n_columns])
        room[r] = score
        largest = max(largest, size)
    return largest


@_fast
def _choose(rows: FloatArray, mask: BoolArray, packed: Singles, room: Singles) -> int:
    largest = score_rows(rows, packed, room)
    best, second = -1, np.float32(0.0)
    for r in range(len(mask)):
        if not mask[r]:
            continue
        if best < 0:
            best, second = r, np.float32(-np.inf)
        elif room[r] > room[best]:
            best, second = r, room[best]
        else:
            second = max(second, room[r])
    if best >= 0 and not room[best] - second > packed[3] * largest + packed[4]:
        return UNDECIDED if packed[3] >= 0 else best
    return best


@decision
def _most_probable(
    rows: FloatArray, mask: BoolArray, draws: FloatArray, constants: FloatArray, memory: FloatArray
) -> int:
    """Takes the replica with the largest score, where that is sure."""
    return _choose(rows, mask, constants.view(np.float32), memory.view(np.float32))


@dataclass
class PolicyNetwork(Rule):
    """Routes each request to the replica that a policy finds most probable.

    Computed in single precision as PyTorch does, but not in its order. Where two scores are closer
    than rounding allows to tell apart, it answers `UNDECIDED`, and whoever has the policy itself
    may ask that; `sure=False` takes the larger score all the same, the lowest index on a tie.
    """

    name = "policy_network"
    decide = _most_probable
    network: Network = field(kw_only=True, repr=False)
    sure: bool = True

    def __post_init__(self) -> None:
        """Packs the weights."""
        super().__post_init__()
        self._packed = packed_network(self.network, sure=self.sure)

    def constants(self) -> FloatArray:
        """Returns the network, single precision in the words of a double."""
        return self._packed

    def empty_memory(self, n_replicas: int, n_requests: int) -> FloatArray:
        """Returns room for the numbers of a decision."""
        return np.zeros(room_for(self.network, n_replicas))


def room_for(network: Network, n_replicas: int) -> int:
    """Returns how many words of a double `score_rows` needs as its room."""
    widest = max(len(layer.bias) for layer in network.layers)
    per_replica = 1 + 2 * len(network.signals) + 2 * widest
    return (n_replicas * per_replica + 3 * widest) // 2 + 1


def packed_network(network: Network, *, sure: bool) -> FloatArray:
    """Returns a network as `score_rows` reads it, single precision in the words of a double."""
    signals = [list(Signal)[signal] for signal in network.signals]
    widths = [2 * len(signals), *(len(layer.bias) for layer in network.layers)]
    for layer, (n_in, n_out) in zip(network.layers, pairwise(widths), strict=True):
        assert layer.weights.shape == (n_out, n_in)
    margin, floor = (MARGIN, _FLOOR * max(network.temperature, 1.0)) if sure else (-1.0, 0.0)
    header = [len(signals), len(network.layers), network.rectified, margin, floor, max(widths[1:])]
    parts: list[npt.ArrayLike] = [header, np.zeros(_HEADER - len(header)), widths, network.signals]
    parts += [network.shift, network.factor]
    parts += [[one.scale for one in signals], [one.high for one in signals]]
    for layer in (*network.layers, network.joint, network.context, network.score):
        parts += [layer.weights.T.ravel(), layer.bias]
    singles = np.concatenate([np.asarray(part, dtype=np.float32) for part in parts])
    padded = np.zeros(len(singles) + len(singles) % 2, dtype=np.float32)
    padded[: len(singles)] = singles
    return padded.view(np.float64)
