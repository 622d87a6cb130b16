"""Rules that ship with vLLM: its data-parallel balancer, and one of its router."""

from dataclasses import dataclass

from llmroute_gym.ground.arrays import BoolArray, FloatArray
from llmroute_gym.ground.signals import Signal
from llmroute_gym.routers.blocks import lowest, uncached_tokens
from llmroute_gym.routers.constants import constant
from llmroute_gym.routers.decision import decision
from llmroute_gym.routers.rule import Source
from llmroute_gym.routers.seeing import SeeingRule, poll


@decision
def _waiting_and_running(
    rows: FloatArray, mask: BoolArray, draws: FloatArray, constants: FloatArray, memory: FloatArray
) -> int:
    for r in range(len(mask)):
        memory[r] = constants[0] * rows[r, Signal.WAITING] + rows[r, Signal.RUNNING]
    return lowest(memory, mask)


@decision
def _longest_match_in_time(
    rows: FloatArray, mask: BoolArray, draws: FloatArray, constants: FloatArray, memory: FloatArray
) -> int:
    linear_s, pair_s, gate = constants[0], constants[1], constants[2]
    prompt = rows[0, Signal.PROMPT_TOKENS]
    bound_s = constants[3] * (constants[4] + constants[5] * prompt)
    longest, queued_s = -1, 0.0
    for r in range(len(mask)):
        if not mask[r]:
            continue
        new = uncached_tokens(rows, r)
        cost_s = linear_s * new + pair_s * new * (prompt - new / 2.0)
        cost_s += linear_s * rows[r, Signal.UNCACHED_TOKENS]
        cost_s += pair_s * rows[r, Signal.UNCACHED_PAIRS]
        memory[r] = cost_s * rows[r, Signal.IN_FLIGHT]
        share = rows[r, Signal.CACHED_PREFIX]
        if longest < 0 or share > rows[longest, Signal.CACHED_PREFIX]:
            longest, queued_s = r, cost_s
    if rows[longest, Signal.CACHED_PREFIX] > gate and queued_s <= bound_s:
        return longest
    return lowest(memory, mask)


@dataclass
class VllmDataParallel(SeeingRule):
    """Smallest 4 x waiting + running; ties by lowest index.

    Source: vLLM's balancer of data-parallel engines.

    Args:
        waiting: what a waiting request counts for.
        poll_s: age of the engines' counts, seconds.
    """

    name = "vllm_dp"
    decide = _waiting_and_running
    source = Source("vLLM data-parallel balancer", "0.33", "2026-11")

    waiting: float = constant(4.0, 0.0, 1000.0)
    poll_s: float = poll(0.1)


@dataclass
class Smetric(SeeingRule):
    """The longest match where it is long and its queue short enough, else the least work.

    A prompt of p tokens, u of them uncached, costs `linear_s` u + `pair_s` u (p - u / 2) seconds;
    queued is the sum over requests without first token, this one included. The longest match (ties
    by lowest index) is taken if its share of the prompt is over `gate` and queued there at most
    `slack` (`base_s` + `token_s` p); else the smallest queued x requests in flight, ties by lowest
    index. Source: vllm-router, not released, which ships no defaults of its constants: those here
    are ours, 15,928 tokens of prefill per second and what attention costs a model of 32B parameters
    beside it; its bound grows with characters, here with tokens.

    Args:
        linear_s: seconds per uncached token.
        pair_s: seconds per pair of an uncached token and one before it.
        gate: share of the prompt.
        slack: factor of the bound.
        base_s: of the bound, seconds.
        token_s: of the bound, seconds per prompt token.
    """

    name = "smetric"
    decide = _longest_match_in_time
    source = Source("vllm-router smetric", "unreleased", "2026-11")
    view = "tree"
    tree_tokens = 2**26

    linear_s: float = constant(6.28e-5, 1e-7, 1e-2, logarithmic=True)
    pair_s: float = constant(2e-9, 0.0, 1e-4)
    gate: float = constant(0.5, 0.0, 1.0)
    slack: float = constant(1.0, 0.0, 1000.0)
    base_s: float = constant(1.0, 0.0, 600.0)
    token_s: float = constant(2.5e-4, 0.0, 1.0)
