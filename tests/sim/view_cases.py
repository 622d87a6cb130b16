"""Random cases of what routers see: gateways, polls, events, trees, names."""

from dataclasses import replace

import numpy as np

from llmroute_gym.config import ObservationConfig
from tests.sim.strategies import Case, random_case, with_waiting
from tests.sim.vllm_cases import random_vllm_case


def random_view(
    rng: np.random.Generator, told: ObservationConfig, exact: bool
) -> ObservationConfig:
    """Returns settings with another view of the engines, and by any number of gateways."""
    return replace(
        told,
        information=str(rng.choice(["metrics", "metrics", "router", "engine", "oracle"])),
        signal_interval_s=float(rng.choice([0.0, 0.25, 4.0] if exact else [0.0, 0.1, 5.0])),
        gateways=int(rng.integers(1, 5)),
        speed_hidden=bool(rng.random() < 0.3),
    )


def random_view_case(seed: int) -> Case:
    """Draws a case; the same seed gives the same one."""
    rng = np.random.default_rng([seed, 13])
    case = random_vllm_case(seed) if rng.random() < 0.7 else random_case(seed)
    told = random_view(rng, case.options["observation"], case.exact)
    if rng.random() < 0.5:
        session = rng.integers(0, 9, len(case.workload))
        case = case._replace(workload=replace(case.workload, session=session))
    case = case._replace(options={**case.options, "observation": told})
    return with_waiting(case, seed) if rng.random() < 0.4 else case
