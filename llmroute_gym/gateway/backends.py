"""One backend: whether it can be used, and what is under way there."""

import logging
import os
from collections.abc import Callable
from enum import Enum
from time import perf_counter

from llmroute_gym.config import BackendConfig, BreakerConfig, GatewayTimeouts, HealthConfig
from llmroute_gym.errors import InputError
from llmroute_gym.gateway.breaker import Breaker
from llmroute_gym.gateway.upstream import Pool

log = logging.getLogger(__name__)


class State(Enum):
    """Whether a backend takes requests."""

    UP = "up"
    TRIAL = "trial"
    """It answers to probes again; one request at a time is sent there."""
    DOWN = "down"


class Backend:
    """One engine.

    Args:
        index: its place among all, which is the replica's number of the router.
        settings: its own.
        health: of all.
        breaker: of all.
        timeouts: of all.
        clock: tells the time in seconds.

    Attributes:
        state: whether it takes requests.
        draining: whether it gets no new ones, by order of the admin port.
        waiting: requests there that have no first token yet.
        running: requests there that have.
        prompt_tokens: of those that are waiting.
        pool: its connections.

    Raises:
        InputError: its key is missing in the environment.
    """

    def __init__(
        self,
        index: int,
        settings: BackendConfig,
        health: HealthConfig,
        breaker: BreakerConfig,
        timeouts: GatewayTimeouts,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self.index = index
        self.name = settings.name
        self.speed = settings.speed
        host, port, self.path = settings.address()
        self.host_header = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.key = read_key(f"backends[{index}].key_env", settings.key_env)
        self.pool = Pool(host, port, timeouts.connect_s, timeouts.upstream_idle_s)
        self.state = State.DOWN
        self.draining = False
        self.waiting = self.running = self.prompt_tokens = 0
        self._health, self._breaker, self._clock = health, Breaker(breaker), clock
        self._trying = 0
        self._refused = False
        self._failed = 0
        self._good = 0

    @property
    def in_flight(self) -> int:
        """Requests there."""
        return self.waiting + self.running

    @property
    def up(self) -> bool:
        """Whether it is there to be used, be it busy."""
        return self.state is State.UP and not self.draining

    @property
    def failures(self) -> int:
        """Requests in a row that failed there."""
        return self._breaker.failures

    @property
    def level(self) -> float:
        """1 if it is up, 0 if it is down, one half on trial."""
        return {State.UP: 1.0, State.TRIAL: 0.5, State.DOWN: 0.0}[self.state]

    def usable(self, most: int) -> bool:
        """Returns whether it may get a request.

        Args:
            most: requests that it may have at a time.
        """
        if self.draining or self.in_flight >= most:
            return False
        return self.state is State.UP or (self.state is State.TRIAL and not self._trying)

    def spare(self, most: int) -> bool:
        """Returns whether it may get a request while no backend is up.

        It may if it is only silent to probes, which perhaps were late, or left out for failures,
        which perhaps are over.

        Args:
            most: requests that it may have at a time.
        """
        return not (self.draining or self._refused or self.in_flight >= most)

    def placed(self, prompt_tokens: int) -> bool:
        """Counts a request that is sent there; returns whether it is a trial, as it is not up."""
        self.waiting += 1
        self.prompt_tokens += prompt_tokens
        trial = self.state is not State.UP
        self._trying += trial
        return trial

    def first_token(self, prompt_tokens: int) -> None:
        """Counts the first token of a request."""
        self.waiting -= 1
        self.running += 1
        self.prompt_tokens -= prompt_tokens

    def left(self, prompt_tokens: int, *, begun: bool, trial: bool) -> None:
        """Counts that a request is there no more.

        Args:
            prompt_tokens: as when it was placed.
            begun: whether it had its first token.
            trial: whether it was one.
        """
        if begun:
            self.running -= 1
        else:
            self.waiting -= 1
            self.prompt_tokens -= prompt_tokens
        self._trying -= trial

    def answered(self, *, trial: bool = False) -> None:
        """Takes it as up: it has answered a request.

        Args:
            trial: whether the request was placed while it was not up.
        """
        if self.state is State.TRIAL or (trial and not self._refused):
            self._turn(State.UP, "it answers again")

    def broke(self, reason: str, sent_s: float) -> None:
        """Takes it as down: a new connection was refused or broken.

        Args:
            reason: in words.
            sent_s: when the request was sent, by the clock.
        """
        self._good = 0
        self._refused = True
        self.failed(reason, sent_s)
        self._turn(State.DOWN, reason)

    def failed(self, reason: str, sent_s: float) -> None:
        """Counts a request that failed there, for which it may be left out for a while.

        Args:
            reason: in words.
            sent_s: when the request was sent, by the clock.
        """
        rest_s = self._breaker.failed(sent_s, self._clock())
        if rest_s is not None:
            last = f"{self.failures} failures in a row, the last one: {reason}"
            self._turn(State.DOWN, f"{last}; it is left out for {rest_s:g} s")

    def served(self) -> None:
        """Forgets earlier failures: it has answered a request in full."""
        if self.state is State.UP:
            self._breaker.forgive()

    def probed(self, *, good: bool | None) -> None:
        """Counts a probe.

        Args:
            good: what it says of itself, None if it says nothing.
        """
        self._failed = 0 if good else self._failed + 1
        self._good = self._good + 1 if good else 0
        if not good and (self._failed >= self._health.down_after or self.state is State.TRIAL):
            self._turn(State.DOWN, f"{self._failed} probes failed")
        elif good and self.state is State.DOWN and self._good >= self._health.up_after:
            if self._breaker.rests(self._clock()):
                self._refused = False
            else:
                self._turn(State.TRIAL, "a probe went well")
        if good is False and self.state is State.DOWN:
            self._refused = True

    def introduced(self, *, good: bool | None) -> None:
        """Takes over the first probe of all, made before there are requests."""
        self._refused = good is False
        self._turn(State.UP if good else State.DOWN, "first probe")

    def _turn(self, state: State, reason: str) -> None:
        if state is not self.state:
            self.state = state
            if state is State.UP:
                self._refused, self._failed = False, 0
                self._breaker.close()
            log.info("backend %s is %s: %s", self.name, state.value, reason)


def read_key(key: str, variable: str | None) -> bytes | None:
    """Returns the key in an environment variable, None where none is named.

    Args:
        key: the setting that names it.
        variable: its name.

    Raises:
        InputError: it is not set, or cannot stand in a header.
    """
    if variable is None:
        return None
    value = os.environ.get(variable, "").strip()
    if not value or not all(33 <= ord(letter) < 127 for letter in value):
        raise InputError(
            f"{key}={variable}: that environment variable holds no key; set it to one without "
            "spaces"
        )
    return value.encode("ascii")
