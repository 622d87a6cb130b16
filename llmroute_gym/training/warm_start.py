"""Where a policy starts from: random weights, a checkpoint, demonstrations, or both."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmroute_gym.config import CloningConfig, CollectDemosConfig, TrainConfig, WarmStartConfig
from llmroute_gym.demos.collection import collect, planned_episodes
from llmroute_gym.demos.file import Demos
from llmroute_gym.errors import InputError
from llmroute_gym.routers import make
from llmroute_gym.sim import Cluster
from llmroute_gym.sim.sources import WorkloadSource

if TYPE_CHECKING:
    from llmroute_gym.sb3.checkpoint import Layout

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WarmStart:
    """What was found where the settings point to, checked against them.

    Attributes:
        checkpoint: the file that the weights come from; None starts from random ones.
        layout: of the checkpoint; None if it is another program's.
        demos: what is cloned; None where nothing is, or where it is yet to be collected.
        collects: whether demonstrations are to be collected.
    """

    checkpoint: Path | None
    layout: "Layout | None"
    demos: Demos | None
    collects: bool

    @classmethod
    def find(cls, settings: TrainConfig, cluster: Cluster) -> "WarmStart":
        """Reads what the settings name; a run that is resumed has started already.

        Args:
            settings: of the whole run.
            cluster: what the policy will route to.

        Raises:
            InputError: a file is missing, or does not fit the cluster, observation or networks; or
                a router that shall demonstrate is unknown.
        """
        if settings.resume is not None:
            return cls(None, None, None, collects=False)
        start, replicas = settings.warm_start, len(cluster)
        checkpoint = layout = demos = None
        if start.checkpoint is not None:
            from llmroute_gym.sb3.checkpoint import Layout, check_same_networks, checkpoint_file
            from llmroute_gym.sb3.pretrained import read_networks
            from llmroute_gym.training.setup import needs_masks

            checkpoint = checkpoint_file(start.checkpoint)
            layout = Layout.read(checkpoint)
            if layout is not None:
                layout.check_fits(replicas, settings.observation, same_columns=True)
            networks = read_networks(checkpoint, masked=needs_masks(cluster), trusted=start.trusted)
            check_same_networks(networks, settings.model)
        if start.demos is not None:
            demos = Demos.load(start.demos)
            demos.check_fits(replicas, settings.observation)
            demos.check_returns(settings.reward, settings.training.gamma, settings.cluster)
        collects = start.cloning and demos is None
        if collects:
            _check_collection(settings)
        return cls(checkpoint, layout, demos, collects)

    def demonstrations(
        self, settings: TrainConfig, cluster: Cluster, source: WorkloadSource
    ) -> Demos | None:
        """Returns what is to be cloned, collected now if no file holds it; None clones nothing.

        Args:
            settings: of the whole run.
            cluster: what they describe.
            source: what the episodes' requests are drawn from, at the rate in force.
        """
        if not self.collects:
            return self.demos
        return collect(collection(settings), cluster, source)

    def origin(self, demos: Demos | None) -> str:
        """Describes the policy that PPO starts from, in words; random weights have none."""
        parts = []
        if self.checkpoint is not None:
            parts.append(f"the checkpoint {self.checkpoint}")
        if demos is not None:
            parts.append(f"a clone of {', '.join(demos.routers())} ({len(demos)} decisions)")
        return ", then ".join(parts)


def _check_collection(settings: TrainConfig) -> None:
    wanted = collection(settings)
    for name in wanted.policies:
        make(name)
    first, *others = planned_episodes(wanted)
    if not others:
        raise InputError(
            f"warm_start.decisions={wanted.decisions} are all of one episode, and cloning holds "
            f"whole episodes out; ask for more than the {len(first.recorded)} that it gives"
        )


def collection(settings: TrainConfig) -> CollectDemosConfig:
    """Returns how a training collects the demonstrations that it was not given."""
    return CollectDemosConfig(
        policies=list(settings.warm_start.policies),
        decisions=settings.warm_start.decisions,
        qps=settings.training.qps,
        gamma=settings.training.gamma,
        requests_per_episode=settings.env.requests_per_episode,
        engine=settings.env.engine,
        cluster=settings.cluster,
        workload=settings.workload,
        observation=settings.observation,
        reward=settings.reward,
        seed=settings.seed,
    ).validate()


def cloning(start: WarmStartConfig) -> CloningConfig:
    """Returns how a training clones demonstrations."""
    return CloningConfig(epochs=start.epochs, keep=start.keep)
