"""Which routers can be served, and what they are told then."""

from dataclasses import replace
from typing import Final

from llmroute_gym.config import ObservationConfig
from llmroute_gym.errors import InputError
from llmroute_gym.ground.signals import OF_PREFIXES, Signal
from llmroute_gym.routers import Router
from llmroute_gym.sim.replica import Cluster

SERVED: Final = ("router", "metrics")
"""`ObservationConfig.information` that a gateway can give."""
CONTENT: Final = (*OF_PREFIXES, Signal.PROMPT_HEAD)
"""What depends on what stands in a prompt."""


def told_in_service(
    router: Router, given: ObservationConfig, *, approximate: bool
) -> ObservationConfig:
    """Returns what a router is told in service: what it asks for, as far as that can be had.

    Prefixes are looked up in the gateway's own tree, also for one that asks for the engines'
    events: no engine tells them here.

    Args:
        router: any.
        given: what the gateway knows: own counts, or the engines' metrics too, and how old these
            are.
        approximate: whether own counts may stand for what engines do not publish, and a predicted
            output length be missing.

    Raises:
        InputError: what it asks for cannot be had.
    """
    if given.information not in SERVED:
        raise InputError(
            f"a gateway tells {' or '.join(SERVED)}, got information={given.information}; set "
            "information=router, or metrics where the engines' metrics are read"
        )
    asked = router.observation or given
    if asked.information == "oracle" or router.upper_bound:
        raise InputError(
            f"router {router.name!r} needs to know what only a simulator knows; serve one that was "
            "made with observation=router or observation=metrics"
        )
    sigma = asked.predicted_output_sigma
    if sigma is not None and not approximate:
        raise InputError(
            f"router {router.name!r} was made with predicted output lengths, "
            f"observation.predicted_output_sigma={sigma:g}, which nobody predicts here; train it "
            "with observation.predicted_output_sigma=null, or set policy.approximate=true to serve "
            "it without them"
        )
    information = _information(router.name, asked, given, approximate=approximate)
    return replace(
        asked,
        information=information,
        signal_interval_s=given.signal_interval_s if information == "metrics" else 0.0,
        predicted_output_sigma=None,
        prefix_view="tree",
        events_lag_s=0.0,
        gateways=1,
    ).validate()


def _information(
    name: str, asked: ObservationConfig, given: ObservationConfig, *, approximate: bool
) -> str:
    """Returns which of `SERVED` stands for what a router asks for, which is no oracle."""
    information = asked.information
    if information == "engine":
        if not approximate:
            raise InputError(
                f"router {name!r} was made with observation.information=engine, which engines do "
                "not publish in full; train it with observation=router, or set "
                "policy.approximate=true to let own counts stand for it"
            )
        information = given.information
    if information == "metrics" and given.information != "metrics":
        raise InputError(
            f"router {name!r} goes by the engines' metrics, which are not read; set "
            "scrape.interval_s=1 to read them, or serve one that goes by its own counts"
        )
    return information


def introduce(
    router: Router, told: ObservationConfig, cluster: Cluster | None, decisions: int
) -> None:
    """Says to a router, before its `reset`, where it is, and compiles it if it is to be compiled.

    Raises:
        InputError: it learns from requests' ends, which no gateway tells it.
    """
    if len(router.lessons(decisions)):
        raise InputError(
            f"router {router.name!r} learns while it serves from times per output token, which "
            "are not counted here; name another one"
        )
    if cluster is not None:
        router.meet(cluster)
    router.join(told, 0)
    # Compiled now, not while the first request waits.
    getattr(getattr(router, "decide", None), "compiled", None)


def grows(router: Router, n_replicas: int, decisions: int) -> bool:
    """Returns whether a rule's memory is the longer the more decisions there are."""
    memory = getattr(router, "empty_memory", None)
    if memory is None:
        return False
    return len(memory(n_replicas, 2 * decisions)) > len(memory(n_replicas, decisions))


def signals_read(router: Router) -> frozenset[Signal]:
    """Returns the signals that a router's choice may depend on, all where one cannot tell."""
    reads: frozenset[Signal] | None = getattr(router, "reads", None)
    if reads is not None:
        return reads
    decide = getattr(router, "decide", None)
    if decide is None:
        return frozenset(Signal)
    # Brings Numba, which a policy does without.
    from llmroute_gym.routers.description import signals_of

    return frozenset(signals_of(decide.plain))
