"""Requests that go on from each other: chats in turns, and agents that call tools."""

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from llmroute_gym.errors import InputError
from llmroute_gym.ground.arrays import FloatArray, IntArray
from llmroute_gym.ground.checks import count, number
from llmroute_gym.sim.content import Content
from llmroute_gym.sim.lengths import LognormalLengths
from llmroute_gym.sim.prefixes import PromptSource
from llmroute_gym.sim.workload import Workload

AHEAD = 3.0
"""So many mean lengths of a conversation before time 0 the first ones begin."""
SHORTEST_GAP_S = 1e-9


class Turns(NamedTuple):
    """The requests of all conversations, one conversation after the other: shape (n,) each."""

    turn: IntArray
    """Place in the conversation, from 0."""
    message: IntArray
    """Tokens that are new in the prompt, beside the last output."""
    output: IntArray
    pause_s: FloatArray
    """From the end of the request before to this one; not read where ``turn`` is 0."""


@dataclass(frozen=True, eq=False)
class Conversations(PromptSource):
    """Conversations whose every prompt holds all that was said before.

    A prompt is the system prompt, which all share, then in turn the messages and outputs so far,
    then the new message. Conversations begin as ``arrivals`` has it, at ``qps`` over the mean
    number of turns. Those that began before time 0 are cut there, so that the rate is ``qps`` from
    the start; what was said before is in their prompts, and in no cache.

    Open loop: all times are drawn before the run; a request arrives a pause after its predecessor
    would have ended at ``token_s`` per output token. Closed loop: it arrives a pause after its
    predecessor has ended (``Workload.after``, ``gap_s``). ``Workload.session`` numbers the
    conversations.

    Attributes:
        system_tokens: of the system prompt, >= 0.
        sigma: standard deviation of the logarithm of messages and outputs, >= 0; 0 fixes them.
        token_s: seconds per output token that the open loop's times assume, >= 0.
        closed_loop: whether requests wait for their predecessors.
    """

    system_tokens: int = field(kw_only=True)
    sigma: float = field(default=0.8, kw_only=True)
    token_s: float = field(default=0.03, kw_only=True)
    closed_loop: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        """Checks the options."""
        super().__post_init__()
        count("system_tokens", self.system_tokens, at_least=0)
        number("sigma", self.sigma, at_least=0)
        number("token_s", self.token_s, at_least=0)
        if not isinstance(self.closed_loop, bool):
            raise InputError(f"closed_loop must be True or False, got {self.closed_loop!r}")

    @property
    @abstractmethod
    def mean_turns(self) -> float:
        """Mean number of requests of a conversation."""

    @property
    @abstractmethod
    def mean_s(self) -> float:
        """Mean seconds from a conversation's first request to its last, in the open loop."""

    @abstractmethod
    def _draw(self, conversations: int, rng: np.random.Generator) -> Turns:
        """Draws the requests of so many conversations."""

    def sample(self, n_requests: int, rng: np.random.Generator) -> Workload:
        """Draws ``n_requests`` consecutive requests of conversations in all stages."""
        ahead_s = AHEAD * self.mean_s
        wanted = count("n_requests", n_requests) + self.qps * ahead_s
        conversations = int(1.2 * wanted / self.mean_turns) + 10
        while True:
            turns = self._draw(conversations, rng)
            starts_s = self.arrivals.sample(conversations, self.qps / self.mean_turns, rng)
            workload = self._workload(turns, starts_s)
            first, end = np.searchsorted(workload.arrived_at_s, (ahead_s, starts_s[-1]))
            if end - first >= n_requests:
                break
            conversations *= 2
        part = workload.slice(int(first), int(first) + n_requests)
        return part.with_arrivals(part.arrived_at_s - ahead_s)

    def _workload(self, turns: Turns, starts_s: FloatArray) -> Workload:
        """Returns the requests of conversations that begin at these times."""
        turn, message, output, pause_s = turns
        index = np.arange(turn.size)
        opening = index - turn  # the first request of each one's conversation
        earlier = np.where(turn > 0, index - 1, index)
        session = np.cumsum(turn == 0) - 1
        gap_s = np.where(turn > 0, pause_s + self.token_s * output[earlier], 0.0)
        arrived_at_s = starts_s[session] + _since(gap_s, opening)
        said = message + np.where(turn > 0, output[earlier], 0)
        closed = self.closed_loop
        return Workload(
            arrived_at_s,
            self.system_tokens + message[opening] + _since(said, opening),
            output,
            self._content(turns, opening),
            session,
            after=np.where(turn > 0, index - 1, -1) if closed else None,
            gap_s=np.where(turn > 0, np.maximum(pause_s, SHORTEST_GAP_S), 0.0) if closed else None,
        )

    def _content(self, turns: Turns, opening: IntArray) -> Content:
        """Returns the system prompt's stream 0, then messages and outputs in turn."""
        system = int(self.system_tokens > 0)
        counts = system + 2 * turns.turn + 1
        offsets = np.concatenate([[0], np.cumsum(counts)])
        # The place among messages and outputs; -1 is the system prompt.
        place = np.arange(offsets[-1]) - np.repeat(offsets[:-1] + system, counts)
        request = np.repeat(opening, counts) + np.maximum(place, 0) // 2
        is_output = place % 2 == 1
        streams = np.where(is_output, ~request, request + 1)
        lengths = np.where(is_output, turns.output[request], turns.message[request])
        return Content(
            offsets,
            np.where(place < 0, 0, streams),
            np.where(place < 0, self.system_tokens, lengths),
        )

    def _tokens(
        self, message: float, output: float, n: int, rng: np.random.Generator
    ) -> tuple[IntArray, IntArray]:
        """Draws messages and outputs with these means."""
        lengths = LognormalLengths(
            message, output, prompt_sigma=self.sigma, output_sigma=self.sigma
        )
        return lengths.sample(n, rng)


@dataclass(frozen=True, eq=False)
class MultiTurn(Conversations):
    """Chats of people with an assistant, under one system prompt.

    By default 6 requests a chat and 26 s from one to the next: a prompt has 2,017 tokens in the
    mean, an output 200. With an endless cache of 16-token blocks at most 93% of the prompt tokens
    of 5,000 requests at 5 requests/s are found there.

    Attributes:
        turns_min: fewest requests of a chat, >= 1.
        turns_max: most, >= ``turns_min``; all numbers between are equally likely.
        message_tokens: mean of what the user writes, >= 1.
        output_tokens: mean of the answers, >= 1.
        think_s: mean seconds from an answer to the next message (exponential), >= 0.
    """

    system_tokens: int = field(default=1000, kw_only=True)
    turns_min: int = 2
    turns_max: int = 10
    message_tokens: float = 100.0
    output_tokens: float = 200.0
    think_s: float = 20.0

    def __post_init__(self) -> None:
        """Checks the options."""
        super().__post_init__()
        _check_turns("turns", self.turns_min, self.turns_max)
        number("message_tokens", self.message_tokens, at_least=1)
        number("output_tokens", self.output_tokens, at_least=1)
        number("think_s", self.think_s, at_least=0)

    @property
    def mean_turns(self) -> float:
        """Mean number of requests of a chat."""
        return (self.turns_min + self.turns_max) / 2

    @property
    def mean_s(self) -> float:
        """Mean seconds from a chat's first request to its last, in the open loop."""
        return (self.mean_turns - 1) * (self.think_s + self.token_s * self.output_tokens)

    def _draw(self, conversations: int, rng: np.random.Generator) -> Turns:
        turn = _places(rng.integers(self.turns_min, self.turns_max + 1, conversations))
        message, output = self._tokens(self.message_tokens, self.output_tokens, turn.size, rng)
        return Turns(turn, message, output, rng.exponential(self.think_s, turn.size))


@dataclass(frozen=True, eq=False)
class AgentLoop(Conversations):
    """Agents that call tools until they answer: short outputs, and a context that grows.

    The first request brings the task, each further one the result of the tool that the one before
    called; the last output is the answer. By default 10 requests a task and 3.8 s from one to the
    next: a prompt has 5,892 tokens in the mean, an output 94. With an endless cache of 16-token
    blocks at most 93% of the prompt tokens of 5,000 requests at 5 requests/s are found there.

    Attributes:
        steps_min: fewest requests of a task, >= 1.
        steps_max: most, >= ``steps_min``; all numbers between are equally likely.
        task_tokens: mean of a task, >= 1.
        result_tokens: mean of what a tool returns, >= 1.
        call_tokens: mean of a call, >= 1.
        answer_tokens: mean of an answer, >= 1.
        tool_s: mean seconds that a tool takes (exponential), >= 0.
    """

    system_tokens: int = field(default=3000, kw_only=True)
    steps_min: int = 4
    steps_max: int = 16
    task_tokens: float = 500.0
    result_tokens: float = 400.0
    call_tokens: float = 60.0
    answer_tokens: float = 400.0
    tool_s: float = 2.0

    def __post_init__(self) -> None:
        """Checks the options."""
        super().__post_init__()
        _check_turns("steps", self.steps_min, self.steps_max)
        for name in ("task_tokens", "result_tokens", "call_tokens", "answer_tokens"):
            number(name, getattr(self, name), at_least=1)
        number("tool_s", self.tool_s, at_least=0)

    @property
    def mean_turns(self) -> float:
        """Mean number of requests of a task."""
        return (self.steps_min + self.steps_max) / 2

    @property
    def mean_s(self) -> float:
        """Mean seconds from a task's first request to its last, in the open loop."""
        return (self.mean_turns - 1) * (self.tool_s + self.token_s * self.call_tokens)

    def _draw(self, conversations: int, rng: np.random.Generator) -> Turns:
        turn = _places(rng.integers(self.steps_min, self.steps_max + 1, conversations))
        task, answer = self._tokens(self.task_tokens, self.answer_tokens, conversations, rng)
        message, output = self._tokens(self.result_tokens, self.call_tokens, turn.size, rng)
        first = np.flatnonzero(turn == 0)
        message[first] = task
        output[np.append(first[1:], turn.size) - 1] = answer
        return Turns(turn, message, output, rng.exponential(self.tool_s, turn.size))


def _check_turns(name: str, least: int, most: int) -> None:
    if count(f"{name}_max", most) < count(f"{name}_min", least):
        raise InputError(f"{name}_max must be at least {name}_min={least}, got {most}")


def _places(turns: IntArray) -> IntArray:
    """Returns 0, 1, ... of each conversation, one after the other."""
    return np.arange(turns.sum()) - np.repeat(np.cumsum(turns) - turns, turns)


def _since(amounts: IntArray | FloatArray, opening: IntArray) -> Any:
    """Returns the sum of what came after each conversation's first request, up to each."""
    total = np.cumsum(amounts)
    return total - total[opening]
