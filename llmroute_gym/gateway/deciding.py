"""From the events of real requests to a router's decisions, by the rows that it knows from runs.

No I/O and no clock of its own: whoever serves tells it what happened, and when.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from llmroute_gym.config import ObservationConfig
from llmroute_gym.errors import InputError, shown
from llmroute_gym.gateway.service import (
    CONTENT,
    grows,
    introduce,
    signals_read,
    told_in_service,
)
from llmroute_gym.ground.arrays import BoolArray, FloatArray, IntArray
from llmroute_gym.ground.checks import array, count
from llmroute_gym.ground.signals import NO_NAME, OF_PREFIXES, Signal
from llmroute_gym.routers import Router
from llmroute_gym.sim.ledger import Ledger
from llmroute_gym.sim.replica import Cluster
from llmroute_gym.sim.sent_blocks import SentBlocks
from llmroute_gym.sim.submission import replica_index

LIFE: Final = 2**18
"""Decisions after which a rule starts anew whose memory grows with every decision."""
BLOCK: Final = 16
"""Tokens of a block unless one says otherwise, as rules count their trees."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request as a gateway knows it.

    Attributes:
        prompt_tokens: its prompt's, as counted or estimated, at least 1.
        prompt_blocks: names of the prompt's full blocks, each of which stands for all before too.
        session: number of its conversation, at least 0, -1 if it has none.
        predicted_output_tokens: a guess, 0 if there is none.
        prompt_head: names the first 256 tokens of the prompt, at least 0, -1 if no one knows them.
        block_tokens: of this prompt, how many tokens a block has; None means as usual.
    """

    prompt_tokens: int
    prompt_blocks: tuple[int, ...] = ()
    session: int = -1
    predicted_output_tokens: float = 0.0
    prompt_head: int = -1
    block_tokens: float | None = None


class Decider:
    """A router in service, one per process, with all that it counts and is told.

    Requests go by keys, any integers that are not used twice at once. A request is placed at a
    replica; it has a first token, or has none if its answer comes as a whole; it ends, always, once
    it is over for whatever reason. One that a replica did not take is withdrawn, then placed
    anew or ended. Times are in seconds, of any one clock, and never run back.

    Args:
        router: a rule or a policy; it is reset.
        speeds: (n_replicas,) relative speeds, above 0.
        observation: what a router is told that asks for nothing itself, `router` or `metrics`; and
            how old what the engines publish is.
        rng: all of the router's randomness.
        now_s: when service begins.
        approximate: whether a router that was made for what engines do not publish, or for
            predicted output lengths, is served all the same, by own counts instead and without.
        cluster: what the replicas are like, for a router that has to know; one for each.
        block_tokens: how many tokens a block of a prompt has.

    Attributes:
        told: what the router is told.
        looks_prefixes_up: whether `Arrival.prompt_blocks` are of any use.
        reads_prompts: whether these or `Arrival.prompt_head` are.
        read_at_s: (n_replicas,) when each engine's metrics were read last, minus infinity before.

    Raises:
        InputError: an argument is of the wrong kind, or the router cannot be served.
    """

    def __init__(
        self,
        router: Router,
        speeds: Sequence[float],
        observation: ObservationConfig,
        rng: np.random.Generator,
        *,
        now_s: float = 0.0,
        approximate: bool = False,
        cluster: Cluster | None = None,
        block_tokens: int = BLOCK,
    ) -> None:
        self._speeds: FloatArray = array("speeds", speeds)
        if not len(self._speeds) or not (self._speeds > 0).all():
            raise InputError(f"speeds must be numbers above 0, got {shown(speeds)}")
        n = len(self._speeds)
        if cluster is not None and len(cluster) != n:
            raise InputError(
                f"cluster must have one replica per backend, {n}, got {len(cluster)}; "
                "give them in the same order"
            )
        self.told = told_in_service(router, observation, approximate=approximate)
        self._block_tokens = count("block_tokens", block_tokens, at_least=1)
        self._router, self._rng, self._decisions = router, rng, 0
        introduce(router, self.told, cluster, LIFE)
        self._start(known=cluster is not None)
        self._grows = grows(router, n, LIFE)
        self._ledger = Ledger(n, self.told.information, now_s)
        reads = signals_read(router)
        self.looks_prefixes_up = not reads.isdisjoint(OF_PREFIXES)
        self.reads_prompts = not reads.isdisjoint(CONTENT)
        self._blocks = SentBlocks(n, self.told.tree_blocks) if self.looks_prefixes_up else None
        self.read_at_s: FloatArray = np.full(n, -math.inf)
        if self.told.speed_hidden:
            self._speeds = np.ones(n)

    def decide(self, arrival: Arrival, allowed: BoolArray, now_s: float) -> int:
        """Returns the replica for a request that has arrived or was withdrawn.

        Args:
            arrival: the request.
            allowed: (n_replicas,) which may be chosen, at least one.
            now_s: when.

        Raises:
            InputError: the router answers with no replica that may be chosen.
            FloatingPointError: a number that it would see is not finite.
        """
        rows = self.rows(arrival, allowed, now_s)
        if not math.isfinite(rows.sum()):
            raise FloatingPointError("what the router would see is not finite")
        if self._grows and self._decisions == LIFE:
            self._start()
        self._decisions += 1
        choice = self._router.route(rows, allowed)
        replica = replica_index(choice, len(rows))
        if replica is None or not allowed[replica]:
            raise InputError(
                f"router {self._router.name!r} chose {shown(choice)}; it may choose "
                f"{np.flatnonzero(allowed).tolist()}"
            )
        return replica

    def rows(self, arrival: Arrival, allowed: BoolArray, now_s: float) -> FloatArray:
        """Returns what the router knows at a decision, shape (n_replicas, N_SIGNALS)."""
        rows = self._ledger.rows(now_s)
        prompt = arrival.prompt_tokens
        rows[:, Signal.SPEED] = self._speeds
        rows[:, Signal.AVAILABLE] = allowed
        rows[:, Signal.PROMPT_TOKENS] = prompt
        rows[:, Signal.PREDICTED_OUTPUT_TOKENS] = arrival.predicted_output_tokens
        rows[:, Signal.SINCE_LAST_ARRIVAL_S] = now_s - self._ledger.previous_arrival_s
        rows[:, Signal.FITS] = 1.0
        rows[:, Signal.SESSION] = arrival.session if arrival.session >= 0 else NO_NAME
        rows[:, Signal.PROMPT_HEAD] = arrival.prompt_head if arrival.prompt_head >= 0 else NO_NAME
        if self._blocks is not None:
            rows[:, Signal.CACHED_PREFIX] = [one / prompt for one in self._cached(arrival)]
            rows[:, Signal.VIEW_TOKENS] = [
                self._blocks.count(replica) * self._block_tokens for replica in range(len(rows))
            ]
        return rows

    def placed(self, key: int, arrival: Arrival, replica: int, now_s: float) -> None:
        """Notes that a request goes to a replica, whoever chose it.

        Raises:
            InputError: the key is in flight.
        """
        cached = 0
        if self._blocks is not None:
            cached = self._cached(arrival)[replica]
            self._blocks.send(replica, arrival.prompt_blocks)
        self._ledger.placed(key, replica, arrival.prompt_tokens, cached, now_s)

    def rejected(self, now_s: float) -> None:
        """Notes that a request arrived for which there was no replica."""
        self._ledger.rejected(now_s)

    def first_token(self, key: int, now_s: float) -> None:
        """Notes the first token of a request's answer; later ones need not be told."""
        self._ledger.first_token(key, now_s)

    def ended(self, key: int, now_s: float, *, served: bool) -> None:
        """Notes the end of a request; nothing of it is left then, however often it is told.

        Args:
            key: of the request.
            now_s: when.
            served: whether it has had its whole answer, so that its latency counts.
        """
        self._ledger.ended(key, now_s, served=served)

    def withdrawn(self, key: int, now_s: float) -> None:
        """Notes that its replica has nothing of a request any more; it is placed anew, or ended.

        Its latency counts from its arrival, its time to first token from where it went last.
        """
        self._ledger.withdrawn(key)

    def read(
        self,
        replica: int,
        waiting: float,
        running: float,
        kv_usage: float,
        hit_rate: float,
        at_s: float,
        *,
        batch_time_s: float = 0.0,
    ) -> None:
        """Takes over what an engine publishes; with `information="router"` nothing shows it.

        Args:
            replica: its index.
            waiting: requests.
            running: requests.
            kv_usage: share of KV blocks in use, 0 to 1.
            hit_rate: share of prompt tokens found in the prefix cache, 0 to 1.
            at_s: when it was so.
            batch_time_s: time between tokens lately, 0 where it is not known.
        """
        if self.told.information == "metrics":
            self._ledger.read(replica, [waiting, running, kv_usage, batch_time_s, hit_rate])
        self.read_at_s[replica] = at_s

    @property
    def in_flight(self) -> IntArray:
        """Requests placed at each replica that have not ended, shape (n_replicas,)."""
        return self._ledger.in_flight

    def _start(self, *, known: bool = True) -> None:
        """Lets the router forget the past.

        Args:
            known: whether it has been told what the replicas are like.
        """
        self._decisions = 0
        try:
            self._router.reset(len(self._speeds), LIFE, self._rng)
        except InputError as error:
            if known or type(self._router).meet is Router.meet:
                raise
            raise InputError(
                f"router {self._router.name!r} has to know what the replicas are like; give a "
                "cluster with one for each, such as cluster.profile=NAME "
                f"cluster.replicas={len(self._speeds)}"
            ) from error

    def _cached(self, arrival: Arrival) -> list[int]:
        """Returns how many leading tokens each replica is taken to have, never the last one."""
        assert self._blocks is not None
        tokens = arrival.block_tokens or self._block_tokens
        most = int((arrival.prompt_tokens - 1) // tokens)
        known = self._blocks.leading(arrival.prompt_blocks[:most])
        return [int(blocks * tokens) for blocks in known]
