"""The rules that this package ships: the estimated latency with constants found by search."""

from llmroute_gym.routers.estimated_latency import EstimatedLatency
from llmroute_gym.routers.rule import Source
from llmroute_gym.routers.shipped import shipped

Frontier = shipped(
    EstimatedLatency,
    "frontier",
    source=Source("llmroute_gym", "1", "2026-11"),
    __module__=__name__,
    __doc__="""The estimated latency with constants of searches over randomised scenarios.

    Equal and mixed speeds, mixed hardware, stragglers, bursts, 2 to 32 replicas, shared prefixes,
    chats, agents, old metrics, several gateways, with and without predicted lengths, by the tail of
    the end-to-end latency and with TTFT limited by that of `lor`. What it was measured to do, and
    where it loses, is on its card, ``docs/frontier.md``. It sees its own counts, the engines'
    metrics polled each second, and what of the prompt they hold: by their KV-cache events, or by a
    tree of what it sent them (``view="tree"``).

    Attributes:
        those of `EstimatedLatency`.
    """,
)

FrontierPrefix = shipped(
    EstimatedLatency,
    "frontier_prefix",
    source=Source("llmroute_gym", "1", "2026-11"),
    __module__=__name__,
    __doc__="""The estimated latency for cached prefixes, old metrics and several gateways.

    With constants of a search over 15 such scenarios (``+search=frontier_prefix``), by the tail of
    the time to first token with a third of the end-to-end latency, where `frontier` goes by the
    latter. All replicas there were of one speed; for others take `frontier`. What it was measured
    to do, and where it loses, is in ``docs/headroom.md``. It sees what `frontier` does.

    Attributes:
        those of `EstimatedLatency`.
    """,
)
