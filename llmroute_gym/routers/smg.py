"""The rules of the SGLang model gateway that go by its monitor's polls."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, ClassVar

import numpy as np

from llmroute_gym.config import ObservationConfig
from llmroute_gym.errors import InputError, shown
from llmroute_gym.ground.arrays import BoolArray, FloatArray
from llmroute_gym.ground.signals import Signal
from llmroute_gym.routers.blocks import clear, fewest_in_flight, keep_one, lowest, pair_at_random
from llmroute_gym.routers.constants import constant
from llmroute_gym.routers.decision import Decision, decision
from llmroute_gym.routers.jit import block
from llmroute_gym.routers.lessons import Lesson
from llmroute_gym.routers.rule import Rule, Source
from llmroute_gym.routers.seeing import SeeingRule, poll
from llmroute_gym.sim.replica import Cluster
from llmroute_gym.sim.run import Run

FULL = 1e-9
"""What is left of a full memory, so that its score is a number."""


@block
def _write_scores(rows: FloatArray, constants: FloatArray, memory: FloatArray) -> None:
    """Writes the scores to the front of the memory.

    Behind are the tokens sent since the poll, which poll that was, seconds from one to the next,
    and when the first is.
    """
    n = len(rows)
    throughput, per_request, weight = constants[0], constants[1], constants[2]
    last, interval_s, first_s = memory[2 * n], memory[2 * n + 1], memory[2 * n + 2]
    polled = last + 1.0
    if interval_s > 0.0:
        polled = np.floor((rows[0, Signal.NOW_S] - first_s) / interval_s)
    if polled != last:
        clear(memory[: 2 * n])
        memory[2 * n] = polled
    for r in range(n):
        used = rows[r, Signal.KV_USAGE]
        tokens = per_request * rows[r, Signal.WAITING] + memory[n + r]
        queue_s = tokens / (throughput * rows[r, Signal.SPEED])
        memory[r] = queue_s + weight * used / max(1.0 - used, FULL)


@decision
def _least_load(
    rows: FloatArray, mask: BoolArray, draws: FloatArray, constants: FloatArray, memory: FloatArray
) -> int:
    _write_scores(rows, constants, memory)
    replica = lowest(memory, mask)
    memory[len(mask) + replica] += rows[replica, Signal.PROMPT_TOKENS]
    return replica


@decision
def _less_load_of_two(
    rows: FloatArray, mask: BoolArray, draws: FloatArray, constants: FloatArray, memory: FloatArray
) -> int:
    _write_scores(rows, constants, memory)
    one, other = pair_at_random(mask, draws[0], draws[1])
    replica = other if memory[other] < memory[one] else one
    memory[len(mask) + replica] += rows[replica, Signal.PROMPT_TOKENS]
    return replica


@block
def _leave_out_full(rows: FloatArray, mask: BoolArray, constants: FloatArray) -> None:
    """Narrows the mask to replicas under both limits, or to the least loaded where none is."""
    queue, kv, some = constants[0], constants[1], False
    for r in range(len(mask)):
        under = rows[r, Signal.WAITING] < queue and rows[r, Signal.KV_USAGE] < kv
        some = some or (mask[r] and under)
    if some:
        for r in range(len(mask)):
            under = rows[r, Signal.WAITING] < queue and rows[r, Signal.KV_USAGE] < kv
            mask[r] = mask[r] and under
    else:
        keep_one(mask, fewest_in_flight(rows, mask))


OWN = 3
"""How many constants the filter has; those of the rule behind it follow."""


@cache
def _filtered(behind: Decision) -> Decision:
    """Returns a decision that narrows the mask before another decides."""
    decide: Callable[..., int] = behind.compiled

    @decision
    def filtered(
        rows: FloatArray,
        mask: BoolArray,
        draws: FloatArray,
        constants: FloatArray,
        memory: FloatArray,
    ) -> int:
        _leave_out_full(rows, mask, constants)
        return decide(rows, mask, draws, constants[OWN:], memory)

    return filtered


@dataclass
class SmgLeastLoad(SeeingRule):
    """Least expected seconds of queue, with a price of full memory.

    (1024 q + tokens sent since the poll) / (2000 speed) + 0.15 k / (1 - k): q waiting requests, k
    the share of KV blocks in use, and the prompt tokens that this router sent there since the
    engines were polled (none if they are always fresh), each gateway from its own polls on. Where
    a run tells of other polls than `poll_s`, it goes by those. Ties by lowest index. Source: SMG.

    Args:
        tokens_per_s: throughput of a replica of speed 1.
        tokens_per_request: what a waiting request counts for, since vLLM reports no tokens.
        memory_s: weight of k / (1 - k), seconds.
        poll_s: age of the metrics, seconds.
    """

    name = "smg_least_load"
    decide = _least_load
    source = Source("SMG least_load", "1.13", "2026-11")

    tokens_per_s: float = constant(2000.0, 10.0, 1e6, logarithmic=True)
    tokens_per_request: float = constant(1024.0, 0.0, 65536.0)
    memory_s: float = constant(0.15, 0.0, 100.0)
    poll_s: float = poll(10.0)

    def __post_init__(self) -> None:
        """Checks the options; until a run says otherwise, it is polled as they say."""
        super().__post_init__()
        self._interval_s, self._first_s = float(self.poll_s), 0.0

    def join(self, told: ObservationConfig, gateway: int) -> None:
        """Takes when the engines are polled."""
        self._interval_s = told.signal_interval_s if told.information != "router" else 0.0
        self._first_s = self._interval_s * gateway / told.gateways

    def empty_memory(self, n_replicas: int, n_requests: int) -> FloatArray:
        """Returns room for the scores and the tokens sent since the poll, and when polls are."""
        memory = np.zeros(2 * n_replicas + 3)
        memory[-2:] = self._interval_s, self._first_s
        return memory


@dataclass
class SmgPowerOfTwo(SmgLeastLoad):
    """Two replicas at random without replacement, the one with the lower `smg_least_load`.

    The first drawn wins a tie. Source: SMG.
    """

    name = "smg_power_of_two"
    decide = _less_load_of_two
    per_request = 2
    source = Source("SMG power_of_two", "1.13", "2026-11")


@dataclass
class SmgVeto(Rule):
    """Leaves out replicas that wait or remember too much, and lets another rule choose.

    A replica is left out with `queue` or more waiting requests or `kv` or more of its KV blocks in
    use, as long as another is under both. Where none is, the one with the fewest requests in flight
    gets the request, ties by lowest index. Both rules see the metrics of the same poll. Source:
    SMG, where it stands before any rule unless it is switched off.

    Args:
        rule: the rule behind it; `make` takes its name or a mapping too:
            ``"smg_veto:rule=llmd_default"``, ``"smg_veto:rule=(llmd_default:queue=3,kv=1)"``.
        queue: waiting requests from which on it is left out.
        kv: share of KV blocks from which on it is left out.
        poll_s: age of the metrics, seconds.

    Raises:
        InputError: a constant is out of its range, or `rule` is none that can be behind it.
    """

    name = "smg_veto"
    source = Source("SMG, on by default", "1.13", "2026-11")
    nested: ClassVar[tuple[str, ...]] = ("rule",)

    rule: Any = field(default_factory=SmgLeastLoad)
    queue: float = constant(8.0, 1.0, 10000.0)
    kv: float = constant(0.8, 0.0, 1.0)
    poll_s: float = poll(10.0)

    def __post_init__(self) -> None:
        """Checks the options, and polls for both rules at once."""
        seen = getattr(self.rule, "observation", None) or ObservationConfig()
        if not isinstance(self.rule, Rule) or seen.information == "oracle":
            raise InputError(
                "rule of smg_veto must be a Rule that asks no oracle, such as "
                f"make('smg_least_load'), got {shown(self.rule)}"
            )
        super().__post_init__()
        if hasattr(self.rule, "poll_s"):
            self.rule = replace(self.rule, poll_s=self.poll_s)  # type: ignore[call-arg]
        self.observation = replace(
            seen, information="metrics", signal_interval_s=float(self.poll_s)
        )

    @property
    def decide(self) -> Decision:  # type: ignore[override]
        """The rule behind it, on a mask that is narrowed first."""
        return _filtered(self.rule.decide)

    @property
    def per_request(self) -> int:  # type: ignore[override]
        """How many uniform numbers the rule behind it gets for a decision."""
        return int(self.rule.per_request)

    def meet(self, cluster: Cluster) -> None:
        """Introduces the rule behind it."""
        self.rule.meet(cluster)

    def join(self, told: ObservationConfig, gateway: int) -> None:
        """Says to the rule behind it what they will be told."""
        self.rule.join(told, gateway)

    def attend(self, run: Run) -> None:
        """Shows the run to the rule behind it."""
        self.rule.attend(run)

    def lessons(self, n_requests: int) -> Sequence[int]:
        """Returns when the rule behind it is to be taught."""
        lessons: Sequence[int] = self.rule.lessons(n_requests)
        return lessons

    def learn(self, lesson: Lesson) -> None:
        """Teaches the rule behind it, whose memory this one's is."""
        self.rule.memory = self.memory
        self.rule.learn(lesson)

    def constants(self) -> FloatArray:
        """Returns those of this rule, then those of the rule behind it."""
        return np.concatenate([super().constants(), self.rule.constants()])

    def empty_memory(self, n_replicas: int, n_requests: int) -> FloatArray:
        """Returns that of the rule behind it."""
        memory: FloatArray = self.rule.empty_memory(n_replicas, n_requests)
        return memory
