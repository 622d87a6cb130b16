"""A trained policy as an entrant of comparisons; PyTorch is imported once there is one."""

from llmroute_gym.config import ObservationConfig, TrainingConfig
from llmroute_gym.routers import Router


def policy_router(
    checkpoint: str, replicas: int, observation: ObservationConfig, *, trusted: bool
) -> Router:
    """Loads a checkpoint as a router.

    Raises:
        InputError: there is none, or it was trained on another observation.
    """
    import torch

    from llmroute_gym.sb3.checkpoint import Checkpoint
    from llmroute_gym.sb3.policy_router import router_of

    loaded = Checkpoint.load(checkpoint, trusted=trusted, observation=observation)
    loaded.check_fits(replicas, observation)
    # As in training: the networks are so small that more threads only wait for each other.
    torch.set_num_threads(TrainingConfig.torch_threads)
    return router_of(loaded)
