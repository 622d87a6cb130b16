"""Chooses the constants of a rule by what they achieve: ``python -m llmroute_gym.search``."""

from dataclasses import replace
from pathlib import Path

from llmroute_gym.compare.search.choice import Choice
from llmroute_gym.compare.search.pools import pools_of
from llmroute_gym.compare.search.space import Space
from llmroute_gym.compare.search.story import limiting_rule, search_constants, try_out
from llmroute_gym.config import SearchConfig
from llmroute_gym.errors import InputError
from llmroute_gym.routers import make
from llmroute_gym.runs.command import run_command
from llmroute_gym.runs.folder import RunFolder
from llmroute_gym.runs.resuming import resumed


def search(settings: SearchConfig) -> Choice:
    """Searches, or goes on with a search that was interrupted; writes and prints what it finds.

    Returns:
        The constants, and what they are worth.

    Raises:
        InputError: a setting is wrong; nothing is written then.
    """
    settings = resumed(_with_whole_path(settings))
    router = settings.search.router
    if router is None:
        raise InputError("router is missing; name a rule with constants, as in router=lor_hybrid")
    space = Space.of(router, make(router), settings.search.constants)
    limiting_rule(settings.search)
    pools = pools_of(settings)
    try_out(space, settings.search, pools)
    resuming = settings.resume is not None
    with RunFolder(settings.run_dir, resuming=resuming) as folder:
        folder.write_settings(replace(settings, resume=None))
        return search_constants(space, settings.search, pools, folder)


def _with_whole_path(settings: SearchConfig) -> SearchConfig:
    """Returns the settings with a path that holds wherever the search goes on."""
    path = settings.workload.path
    whole = None if path is None else str(Path(path).absolute())
    return replace(settings, workload=replace(settings.workload, path=whole))


def main() -> None:
    """Runs the command."""
    run_command("search", search)


if __name__ == "__main__":
    main()
