"""Fixtures that every test may use."""

from pathlib import Path

import pytest

from llmroute_gym.errors import InputError
from llmroute_gym.sim import Cluster, FormulaBatchTime, Replica, Workload
from llmroute_gym.sim.engines import ENGINES, EngineName
from tests.oracle import DATA, NO_DATA


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder with traces, batch-time tables and oracle runs; skips where it is absent."""
    if DATA is None:
        pytest.skip(NO_DATA)
    return DATA


@pytest.fixture(params=tuple(ENGINES))
def engine(request: pytest.FixtureRequest) -> EngineName:
    """Each engine in turn, by its name in `simulate`."""
    name: EngineName = request.param
    return name


@pytest.fixture
def vllm_engine(engine: EngineName) -> EngineName:
    """Each engine in turn that runs `vllm_v1`."""
    one = Cluster((Replica(FormulaBatchTime(1.0, 0, 0, 0, 0), scheduler="vllm_v1"),))
    try:
        ENGINES[engine](Workload([0.0], [1], [1]), one)
    except InputError as error:
        pytest.skip(str(error))
    return engine


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a small training."""
    from llmroute_gym.train import train  # PyTorch is not for every test
    from tests.training.runs import tiny

    folder = tmp_path_factory.mktemp("runs") / "finished"
    train(tiny(folder))
    return folder
