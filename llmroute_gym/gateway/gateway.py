"""The gateway: its two ports, what it watches, and how it ends."""

import asyncio
import hmac
import logging
from contextlib import suppress
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from llmroute_gym.config import ServeConfig, address, changed
from llmroute_gym.errors import InputError
from llmroute_gym.gateway.admin import admin_routes
from llmroute_gym.gateway.backends import Backend, read_key
from llmroute_gym.gateway.choosing import Chooser
from llmroute_gym.gateway.deciding import Arrival, Decider
from llmroute_gym.gateway.forwarding import AGAIN, Forwarding
from llmroute_gym.gateway.meters import Gauge
from llmroute_gym.gateway.prompts import BLOCK_BYTES, ID_BYTES, Prompt, read_prompt
from llmroute_gym.gateway.record import Record
from llmroute_gym.gateway.shared import Shared
from llmroute_gym.gateway.watching import is_well, probe, scrape
from llmroute_gym.http.answers import JSON_TYPE
from llmroute_gym.http.heads import HttpError, RequestHead
from llmroute_gym.http.responder import Responder
from llmroute_gym.http.server import Server
from llmroute_gym.routers import make
from llmroute_gym.sim.build import build_cluster

log = logging.getLogger(__name__)

COMPLETIONS = ("/v1/completions", "/v1/chat/completions")
MODELS = "/v1/models"
LOOKS = 8
"""How often requests are looked at during the shortest timeout, but at least twice a second."""
BEARER = b"Bearer "


class Gateway:
    """Routes requests of OpenAI's API to engines.

    Args:
        settings: valid ones.

    Attributes:
        shared: backends and counts.
        port: where it listens, once it does.
        admin_port: where its admin port does, None for none.

    Raises:
        InputError: a router cannot be served, a key is missing or a file cannot be written.
    """

    def __init__(self, settings: ServeConfig) -> None:
        self.settings = settings
        self._key = read_key("key_env", settings.key_env)
        backends = [
            Backend(index, one, settings.health, settings.breaker, settings.timeouts)
            for index, one in enumerate(settings.backends)
        ]
        chooser = make_chooser(settings)
        record = None if settings.log is None else Record(settings.log)
        self.shared = Shared(settings, backends, chooser, record)
        self._reads_blocks = chooser.reads_blocks
        self._session = (settings.session_header or "").lower().encode("ascii")
        self._server = Server(
            {
                **{path: {"POST": self._complete} for path in COMPLETIONS},
                MODELS: {"GET": self._list_models},
                "/health": {"GET": self._say_health},
                "/ready": {"GET": self._say_ready},
            },
            settings.limits,
            settings.timeouts,
            self._admit,
        )
        meters = [*self.shared.meters(), self._scrape_age(chooser)]
        self._admin = Server(admin_routes(self.shared, meters), lengths=False)
        self._tasks: list[asyncio.Task[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        waits = settings.timeouts
        shortest_s = min(waits.first_byte_s, waits.between_s, waits.whole_s, waits.upstream_idle_s)
        self._look_s = min(0.5, shortest_s / LOOKS)
        self.port = 0
        self.admin_port: int | None = None

    async def start(self) -> None:
        """Probes all backends once and opens the ports.

        Raises:
            InputError: it cannot listen.
        """
        settings, shared = self.settings, self.shared
        well = await asyncio.gather(*(is_well(one, settings.health) for one in shared.backends))
        for backend, good in zip(shared.backends, well, strict=True):
            backend.introduced(good=good)
            self._tasks.append(asyncio.create_task(probe(backend, settings.health)))
            if settings.scrape.interval_s is not None:
                self._tasks.append(
                    asyncio.create_task(scrape(backend, settings.scrape, shared.chooser))
                )
        self._look(asyncio.get_running_loop())
        if settings.admin is not None:
            self.admin_port = await self._admin.listen(*address("admin", settings.admin))
        self.port = await self._server.listen(*address("listen", settings.listen))

    async def take_leave(self, hurry: asyncio.Event) -> None:
        """Says that it is not ready, and goes on for a while so that this is noticed.

        Args:
            hurry: ends it at once.
        """
        self.shared.leaving = True
        with suppress(TimeoutError):
            await asyncio.wait_for(hurry.wait(), self.settings.timeouts.grace_s)

    async def close(self) -> None:
        """Takes no new requests, lets those under way end for a while, and cuts the rest."""
        loop = asyncio.get_running_loop()
        self._server.stop()
        end_s = loop.time() + self.settings.timeouts.drain_s
        while self.shared.live and loop.time() < end_s:
            await asyncio.sleep(0.02)
        for live in list(self.shared.live):
            live.end_now()
        await self._server.close(0.5)
        await self._admin.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for backend in self.shared.backends:
            await backend.pool.close()
        if self._timer is not None:
            self._timer.cancel()
        if self.shared.record is not None:
            self.shared.record.close()

    def _admit(self, head: RequestHead) -> None:
        """Refuses a request by its head."""
        if head.path in ("/health", "/ready"):
            return
        if self._key is not None:
            shown = head.get(b"authorization") or b""
            if not hmac.compare_digest(shown, BEARER + self._key):
                asked = [(b"www-authenticate", b"Bearer")]
                raise HttpError(401, "the key is missing or wrong", asked)
        if head.get(b"content-encoding") not in (None, b"identity"):
            raise HttpError(415, "a body must be sent as it is, without content-encoding")
        if len(self.shared.live) >= self.settings.limits.in_flight:
            raise HttpError(503, "too many requests are under way", AGAIN)

    def _complete(self, request: RequestHead, body: bytes, responder: Responder) -> None:
        """Routes a request."""
        try:
            prompt = read_prompt(
                request.path, body, self.settings.limits.parsed_bytes, blocks=self._reads_blocks
            )
        except HttpError as error:
            responder.refuse(error)
            return
        arrival = self._arrival(request, prompt)
        Forwarding(self.shared, request, body, responder, prompt, arrival).start()

    def _list_models(self, request: RequestHead, body: bytes, responder: Responder) -> None:
        Forwarding(self.shared, request, body, responder).start()

    def _arrival(self, request: RequestHead, prompt: Prompt) -> Arrival:
        tokens = self.shared.rates.tokens(prompt)
        per_block = BLOCK_BYTES / ID_BYTES
        if not prompt.tokens:
            per_block = BLOCK_BYTES * self.shared.rates.rate(prompt.model)
        named = request.get(self._session) if self._session else None
        session = -1
        if named:
            session = int.from_bytes(blake2b(named, digest_size=6).digest())
        return Arrival(
            prompt_tokens=tokens,
            prompt_blocks=prompt.blocks,
            session=session,
            prompt_head=prompt.head,
            block_tokens=per_block,
        )

    def _say_health(self, request: RequestHead, body: bytes, responder: Responder) -> None:
        responder.send(200, b'{"status": "ok"}', [JSON_TYPE])

    def _say_ready(self, request: RequestHead, body: bytes, responder: Responder) -> None:
        if self.shared.ready:
            responder.send(200, b'{"status": "ready"}', [JSON_TYPE])
            return
        why = b"the gateway ends" if self.shared.leaving else b"no backend is available"
        responder.send(503, b'{"status": "%b"}' % why, [JSON_TYPE])

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now_s = perf_counter()
        for live in list(self.shared.live):
            live.look(now_s)
        for backend in self.shared.backends:
            backend.pool.look()
        if self.shared.record is not None:
            self.shared.record.flush()
        self._timer = loop.call_later(self._look_s, self._look, loop)

    def _scrape_age(self, chooser: Chooser) -> Gauge:
        return Gauge(
            "llmroute_scrape_age_seconds",
            "Seconds since the metrics of a backend were read.",
            lambda: [
                ((one.name,), perf_counter() - read_at_s)
                for one, read_at_s in zip(self.shared.backends, chooser.read_at_s, strict=True)
                if self.settings.scrape.interval_s is not None
            ],
            "backend",
        )


def make_chooser(settings: ServeConfig) -> Chooser:
    """Returns who decides.

    Raises:
        InputError: a router is unknown or cannot be served.
    """
    policy = settings.policy
    if policy.mode == "learned" and changed(policy, ["rule"]):
        log.info("policy.rule=%s is not asked, as policy.mode=learned", policy.rule)
    main = policy.policy if policy.mode == "learned" else policy.rule
    shadow = _decider(settings, policy.policy) if policy.mode == "shadow" else None
    return Chooser(_decider(settings, main), shadow, policy.slowest_ms / 1000)


def _decider(settings: ServeConfig, rule: Any) -> Decider:
    if isinstance(rule, str) and (rule.endswith(".zip") or Path(rule).is_dir()):
        raise InputError(
            f"{rule} is a training's, which needs PyTorch; write what is served, python -m "
            f"llmroute_gym.export {rule} policy.npz, and set policy.policy=policy.npz"
        )
    told = settings.observation
    if settings.scrape.interval_s is not None:
        told = replace(told, information="metrics", signal_interval_s=settings.scrape.interval_s)
    cluster = None
    if settings.cluster is not None:
        cluster = build_cluster(settings.cluster)
        if len(cluster) != len(settings.backends):
            raise InputError(
                f"cluster has {len(cluster)} replicas for {len(settings.backends)} backends; "
                "describe each backend, in their order"
            )
    return Decider(
        make(rule),
        [one.speed for one in settings.backends],
        told,
        np.random.default_rng(settings.policy.seed),
        now_s=perf_counter(),
        approximate=settings.policy.approximate,
        cluster=cluster,
    )
