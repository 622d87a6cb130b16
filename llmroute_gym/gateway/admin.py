"""The second port: numbers for Prometheus, and backends that an operator drains and resumes."""

import json

from llmroute_gym.gateway.backends import Backend
from llmroute_gym.gateway.meters import Meter, exposition
from llmroute_gym.gateway.shared import Shared
from llmroute_gym.http.answers import JSON_TYPE
from llmroute_gym.http.heads import RequestHead
from llmroute_gym.http.responder import Responder
from llmroute_gym.http.site import Handler, Routes

METRICS_TYPE = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")


def admin_routes(shared: Shared, meters: list[Meter]) -> Routes:
    """Returns what the admin port serves.

    Args:
        shared: of all requests.
        meters: all that is measured.
    """

    def metrics(request: RequestHead, body: bytes, responder: Responder) -> None:
        responder.send(200, exposition(meters), [METRICS_TYPE])

    def backends(request: RequestHead, body: bytes, responder: Responder) -> None:
        _send(responder, [_described(one) for one in shared.backends])

    def turning(backend: Backend, draining: bool) -> Handler:
        def turn(request: RequestHead, body: bytes, responder: Responder) -> None:
            backend.draining = draining
            _send(responder, _described(backend))

        return turn

    routes: dict[str, dict[str, Handler]] = {
        "/metrics": {"GET": metrics},
        "/backends": {"GET": backends},
    }
    for backend in shared.backends:
        routes[f"/backends/{backend.name}/drain"] = {"POST": turning(backend, True)}
        routes[f"/backends/{backend.name}/resume"] = {"POST": turning(backend, False)}
    return routes


def _described(backend: Backend) -> dict[str, object]:
    return {
        "name": backend.name,
        "state": backend.state.value,
        "draining": backend.draining,
        "failures": backend.failures,
        "speed": backend.speed,
        "waiting": backend.waiting,
        "running": backend.running,
        "pending_prompt_tokens": backend.prompt_tokens,
    }


def _send(responder: Responder, content: object) -> None:
    responder.send(200, json.dumps(content).encode("utf-8"), [JSON_TYPE])
