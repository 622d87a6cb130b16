"""How demonstrations are collected: routers decide in planned episodes and are recorded."""

import logging
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from llmroute_gym.config import CollectDemosConfig
from llmroute_gym.demos.file import Demos, concatenated
from llmroute_gym.demos.layout import DemoLayout
from llmroute_gym.envs import LLMRouteEnv
from llmroute_gym.ground.version import __version__
from llmroute_gym.routers import Router, make
from llmroute_gym.routers.gateways import at_gateways
from llmroute_gym.sim import Cluster
from llmroute_gym.sim.build import build_cluster, build_source, check_trace_length
from llmroute_gym.sim.sources import WorkloadSource

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class EpisodePlan:
    """What is decided before an episode starts, the same for every router.

    Attributes:
        episode: its number in the collection.
        load: its mean arrival rate as a multiple of the source's.
        disturbed: (n_requests,) bool, placed at random instead of by the router.
        recorded: (n_recorded,) the steps to record, ascending; all are the router's own.
    """

    episode: int
    load: float
    disturbed: npt.NDArray[np.bool_]
    recorded: npt.NDArray[np.int64]


def collect(
    settings: CollectDemosConfig,
    cluster: Cluster | None = None,
    source: WorkloadSource | None = None,
) -> Demos:
    """Lets every router decide and records it.

    Args:
        settings: which routers, how many decisions, at which loads, the seed.
        cluster: what ``settings.cluster`` describes, where it is built already.
        source: what ``settings.workload`` describes at its rate, where it is read already.

    Returns:
        The decisions, router by router and in order of their episodes. Equal settings give equal
        decisions, with any number of workers.

    Raises:
        InputError: a router is unknown, or a trace is shorter than an episode.
    """
    return collected(settings, *checked(settings, cluster, source))


def checked(
    settings: CollectDemosConfig,
    cluster: Cluster | None = None,
    source: WorkloadSource | None = None,
) -> tuple[Cluster, WorkloadSource, list[EpisodePlan]]:
    """Returns what the settings describe, all of which proves right before any episode."""
    for name in settings.policies:
        make(name)
    if cluster is None:
        cluster = build_cluster(settings.cluster)
    if source is None:
        source = build_source(settings.workload, settings.workload.rate(settings.qps))
    check_trace_length(source, {"requests_per_episode": settings.requests_per_episode})
    plans = planned_episodes(settings)
    undisturbed = not any(plan.disturbed.any() for plan in plans)
    if settings.disturbance > 0 and undisturbed and _early(settings) == 0:
        log.warning(
            "episodes of %d requests are too short to place some at random and let %d replicas "
            "settle: none are, and the demonstrations hold no uneven states",
            settings.requests_per_episode,
            settings.cluster.n_replicas,
        )
    return cluster, source, plans


def collected(
    settings: CollectDemosConfig,
    cluster: Cluster,
    source: WorkloadSource,
    plans: Sequence[EpisodePlan],
) -> Demos:
    """Plays the planned episodes with every router, under a progress bar."""
    tasks = [(name, plan) for name in settings.policies for plan in plans]
    parts = []
    with tqdm(total=len(tasks), desc="demonstrations", unit="episode") as bar:
        for part in _played(settings, cluster, source, tasks):
            parts.append(part)
            bar.update()
    return concatenated(parts)


def layout_of(settings: CollectDemosConfig) -> DemoLayout:
    """Returns what all decisions of a collection have in common."""
    return DemoLayout(
        settings.cluster.n_replicas,
        settings.observation,
        settings.reward,
        settings.gamma,
    )


def planned_episodes(settings: CollectDemosConfig) -> list[EpisodePlan]:
    """Plans as many episodes as it takes to record the decisions that are asked for.

    The loads come in turn; every second round of them is disturbed. After a burst of random
    placements a router's first decisions, one per replica, are not recorded: the rows then show
    its own doing again, round robin's turn included. Where no such decision is left after a burst,
    as among many replicas, the later bursts are left out.
    """
    left = settings.decisions
    plans: list[EpisodePlan] = []
    while left > 0:
        number = len(plans)
        rounds, position = divmod(number, len(settings.loads))
        rng = _streams(settings, number)["plan"]
        disturbed = _bursts(settings, rng) if rounds % 2 else _bursts(settings, rng) & False
        own = _settled(settings, disturbed)
        if disturbed.any() and not (own > disturbed.argmax()).any():
            disturbed[_early(settings) :] = False
            own = _settled(settings, disturbed)
        n_recorded = min(settings.decisions_per_episode, left, len(own))
        recorded = np.sort(rng.choice(own, n_recorded, replace=False))
        plans.append(EpisodePlan(number, settings.loads[position], disturbed, recorded))
        left -= n_recorded
    return plans


def _bursts(settings: CollectDemosConfig, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Marks the requests that are placed at random, in bursts at random places."""
    n_requests = settings.requests_per_episode
    n_blocks = -(-n_requests // settings.burst)
    chosen = rng.random(n_blocks) < settings.disturbance
    return np.repeat(chosen, settings.burst)[:n_requests]


def _settled(settings: CollectDemosConfig, disturbed: npt.NDArray[np.bool_]) -> Any:
    """Returns the steps before which the router itself decided once per replica."""
    window = np.ones(settings.cluster.n_replicas + 1)
    return np.flatnonzero(np.convolve(disturbed, window)[: len(disturbed)] == 0)


def _early(settings: CollectDemosConfig) -> int:
    """Returns how many first requests may be disturbed for as many to be settled at the end.

    At least those that are to be recorded are; 0 where the episode is too short for that.
    """
    rest = settings.requests_per_episode - settings.cluster.n_replicas
    return max(min(rest // 2, rest - settings.decisions_per_episode), 0)


def _streams(settings: CollectDemosConfig, episode: int) -> dict[str, np.random.Generator]:
    """Returns the episode's generators, independent of each other and of the router."""
    names = ("plan", "env", "router", "placements")
    spawned = np.random.default_rng([settings.seed, episode]).spawn(len(names))
    return dict(zip(names, spawned, strict=True))


def _played(
    settings: CollectDemosConfig,
    cluster: Cluster,
    source: WorkloadSource,
    tasks: Sequence[tuple[str, EpisodePlan]],
) -> Iterator[Demos]:
    """Plays the episodes, in order, in this process or in several."""
    workers = min(settings.workers, len(tasks))
    if workers == 1:
        for name, plan in tasks:
            yield play(settings, cluster, source, name, plan)
        return
    # Forking a process that runs threads, as PyTorch's do, may lock up.
    context = multiprocessing.get_context("spawn")
    # They get what is built once each, not with every task: a trace may be long.
    shared = (settings, cluster, source)
    with ProcessPoolExecutor(workers, context, initializer=_share, initargs=shared) as pool:
        yield from pool.map(_play_shared, tasks)


_shared: tuple[CollectDemosConfig, Cluster, WorkloadSource]
"""What all tasks of a worker process have in common."""


def _share(settings: CollectDemosConfig, cluster: Cluster, source: WorkloadSource) -> None:
    global _shared
    _shared = settings, cluster, source


def _play_shared(task: tuple[str, EpisodePlan]) -> Demos:
    return play(*_shared, *task)


def play(
    settings: CollectDemosConfig,
    cluster: Cluster,
    source: WorkloadSource,
    name: str,
    plan: EpisodePlan,
) -> Demos:
    """Plays one episode with one router.

    Args:
        settings: of the collection.
        cluster: the replicas.
        source: what the requests are drawn from; the plan's load multiplies its rate.
        name: of the router.
        plan: of the episode.

    Returns:
        The recorded decisions; their returns count every reward to the end of the episode.
    """
    qps = source.qps * plan.load
    env = LLMRouteEnv(
        cluster=cluster,
        workload=source.with_qps(qps),
        qps=None,
        requests_per_episode=settings.requests_per_episode,
        reward=settings.reward,
        observation=settings.observation,
        engine=settings.engine,
    )
    streams = _streams(settings, plan.episode)
    told, n_requests = settings.observation, settings.requests_per_episode
    routers = at_gateways(make(name), told, cluster, n_requests, streams["router"])
    decider = _DisturbedRouter(routers, plan.disturbed, streams["placements"])
    env_seed = int(streams["env"].integers(2**31))
    observations, masks, actions, rewards = _decisions(env, env_seed, decider)
    steps = plan.recorded
    n_rows = len(steps)
    return Demos(
        layout=layout_of(settings),
        collections=(provenance(settings),),
        router=np.full(n_rows, name),
        seed=np.full(n_rows, settings.seed),
        episode=np.full(n_rows, plan.episode),
        step=steps,
        qps=np.full(n_rows, qps),
        observation=observations[steps],
        mask=masks[steps],
        action=actions[steps],
        reward=rewards[steps],
        return_to_go=returns_to_go(rewards, settings.gamma)[steps],
    )


class _DisturbedRouter:
    """A router, and in its place random placements that favour some replicas in each burst.

    Args:
        routers: take the decisions in turn where nothing disturbs; they are not told of the other
            placements.
        disturbed: (n_requests,) bool.
        rng: draws the placements.
    """

    def __init__(
        self,
        routers: Sequence[Router],
        disturbed: npt.NDArray[np.bool_],
        rng: np.random.Generator,
    ) -> None:
        self.routers, self.disturbed, self.rng = routers, disturbed, rng

    def decide(self, step: int, rows: npt.NDArray[np.float64], mask: npt.NDArray[np.bool_]) -> int:
        if not self.disturbed[step]:
            return self.routers[step % len(self.routers)].route(rows, mask)
        if step == 0 or not self.disturbed[step - 1]:
            self.weights = self.rng.dirichlet(np.ones(len(mask)))
        allowed = np.where(mask, self.weights + 1e-9, 0.0)
        return int(self.rng.choice(len(mask), p=allowed / allowed.sum()))


def _decisions(
    env: LLMRouteEnv, seed: int, decider: _DisturbedRouter
) -> tuple[Any, Any, Any, npt.NDArray[np.float64]]:
    """Plays an episode; returns its observations, masks, actions and rewards."""
    observations, masks, rewards = [], [], []
    actions: list[int] = []
    observation, info = env.reset(seed=seed)
    for router in decider.routers:
        router.attend(env.run)
    terminated = False
    while not terminated:
        mask = info["action_mask"].astype(np.bool_)
        action = decider.decide(len(actions), env.rows(), mask)
        observations.append(observation)
        masks.append(mask)
        actions.append(action)
        observation, reward, terminated, _, info = env.step(action)
        rewards.append(reward)
    return np.stack(observations), np.stack(masks), np.array(actions), np.array(rewards)


def returns_to_go(rewards: npt.NDArray[np.float64], gamma: float) -> npt.NDArray[np.float64]:
    """Returns the discounted sum of rewards from each step to the end, shape (n_steps,)."""
    returns = np.empty(len(rewards))
    following = 0.0
    for step in range(len(rewards) - 1, -1, -1):
        following = rewards[step] + gamma * following
        returns[step] = following
    return returns


def provenance(settings: CollectDemosConfig) -> dict[str, Any]:
    """Returns how a collection was made: the package's version and the settings that matter."""
    places = ("path", "run_dir", "append", "workers")
    given = {name: value for name, value in asdict(settings).items() if name not in places}
    return {"package": f"llmroute-gym {__version__}", **given}
