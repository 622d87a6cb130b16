"""Requests whose prompts begin alike: system prompts and other prefixes that many share."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from llmroute_gym.ground.arrays import FloatArray, IntArray
from llmroute_gym.ground.checks import count, positive
from llmroute_gym.sim.arrivals import ArrivalProcess, PoissonArrivals
from llmroute_gym.sim.content import Content
from llmroute_gym.sim.workload import Workload


@dataclass(frozen=True, eq=False)
class PromptSource(ABC):
    """Draws requests together with what their prompts are made of.

    Attributes:
        qps: mean rate in requests/s, > 0.
        arrivals: draws arrival times.
    """

    qps: float
    arrivals: ArrivalProcess = field(default_factory=PoissonArrivals, kw_only=True)

    def __post_init__(self) -> None:
        """Checks the options.

        Raises:
            InputError: one is out of range; the message names it.
        """
        object.__setattr__(self, "qps", positive("qps", self.qps))

    @abstractmethod
    def sample(self, n_requests: int, rng: np.random.Generator) -> Workload:
        """Draws ``n_requests`` requests; the generator is the only randomness.

        Raises:
            InputError: ``n_requests`` is not an integer >= 1.
        """

    def with_qps(self, qps: float) -> Self:
        """Returns the same source at another mean rate, in requests/s."""
        return replace(self, qps=qps)


@dataclass(frozen=True, eq=False)
class SharedPrefix(PromptSource):
    """Groups of prompts under a system prompt each, asked in turn in one shuffled order.

    All groups x prompts are shuffled once per workload and asked round and round, so that from the
    second round on whole prompts come again. By default the workload of llm-d's guides
    (inference-perf's ``shared_prefix``): 7,200 prompt and 1,000 output tokens a request. With an
    endless cache of 16-token blocks at most 67% of the prompt tokens of the first round are found
    there, and at most 95% of those of the first 5,000 requests.

    Attributes:
        groups: system prompts, >= 1.
        prompts: prompts of each group, >= 1.
        system_tokens: of a group's system prompt, >= 1.
        question_tokens: of a prompt's own part, >= 1.
        output_tokens: >= 1.
    """

    groups: int = 150
    prompts: int = 5
    system_tokens: int = 6000
    question_tokens: int = 1200
    output_tokens: int = 1000

    def __post_init__(self) -> None:
        """Checks the options."""
        super().__post_init__()
        for name in ("groups", "prompts", "system_tokens", "question_tokens", "output_tokens"):
            count(name, getattr(self, name))

    def sample(self, n_requests: int, rng: np.random.Generator) -> Workload:
        """Draws ``n_requests`` requests, the order of the prompts first."""
        order = rng.permutation(self.groups * self.prompts)
        prompt = np.resize(order, count("n_requests", n_requests))
        content = _two_parts(
            prompt // self.prompts,
            self.system_tokens,
            self.groups + prompt,
            self.question_tokens,
        )
        arrived_at_s = self.arrivals.sample(n_requests, self.qps, rng)
        return _alike(arrived_at_s, content, self.output_tokens)


@dataclass(frozen=True, eq=False)
class PrefixRepetition(PromptSource):
    """A few prefixes, each before many suffixes that never come again.

    As ``vllm bench serve --dataset-name prefix_repetition`` has it, with its defaults: each prefix
    is as frequent as the others, in random order; 512 prompt and 128 output tokens a request.
    With an endless cache of 16-token blocks at most (1 - prefixes / requests) / 2 of the prompt
    tokens are found there, 49.5% of those of 1,000 requests.

    Attributes:
        prefixes: how many there are, >= 1.
        prefix_tokens: of each, >= 1.
        suffix_tokens: of a prompt's own part, >= 1.
        output_tokens: >= 1.
    """

    prefixes: int = 10
    prefix_tokens: int = 256
    suffix_tokens: int = 256
    output_tokens: int = 128

    def __post_init__(self) -> None:
        """Checks the options."""
        super().__post_init__()
        for name in ("prefixes", "prefix_tokens", "suffix_tokens", "output_tokens"):
            count(name, getattr(self, name))

    def sample(self, n_requests: int, rng: np.random.Generator) -> Workload:
        """Draws ``n_requests`` requests, the order of the prefixes first."""
        prefix = rng.permutation(np.arange(count("n_requests", n_requests)) % self.prefixes)
        suffix = self.prefixes + np.arange(n_requests)
        content = _two_parts(prefix, self.prefix_tokens, suffix, self.suffix_tokens)
        arrived_at_s = self.arrivals.sample(n_requests, self.qps, rng)
        return _alike(arrived_at_s, content, self.output_tokens)


def _two_parts(first: IntArray, first_tokens: int, then: IntArray, then_tokens: int) -> Content:
    """Returns the content of prompts that are a part of one stream and a part of another."""
    return Content(
        np.arange(len(first) + 1) * 2,
        np.stack([first, then], axis=1).ravel(),
        np.tile([first_tokens, then_tokens], len(first)),
    )


def _alike(arrived_at_s: FloatArray, content: Content, output_tokens: int) -> Workload:
    """Returns requests that all have as many tokens as the first."""
    prompt_tokens = np.full(len(content), content.lengths[:2].sum())
    return Workload(arrived_at_s, prompt_tokens, np.full(len(content), output_tokens), content)
