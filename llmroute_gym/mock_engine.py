"""Stands in for vLLM servers, without a GPU: ``python -m llmroute_gym.mock_engine``."""

from importlib.util import find_spec

from llmroute_gym.config import MockEngineConfig
from llmroute_gym.errors import InputError
from llmroute_gym.runs.command import run_command


def mock_engine(settings: MockEngineConfig) -> None:
    """Serves until the process is told to end.

    Raises:
        InputError: a setting is wrong, a port is taken, or what speaks HTTP is not installed.
    """
    if find_spec("httptools") is None:
        raise InputError(
            "mock_engine needs httptools, which is not installed; pip install 'llmroute-gym[serve]'"
        )
    from llmroute_gym.mock.serving import serve

    serve(settings)


def main() -> None:
    """Runs the command."""
    run_command("mock_engine", mock_engine)


if __name__ == "__main__":
    main()
