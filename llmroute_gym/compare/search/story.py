"""A search from its settings to its files."""

import numpy as np
from tqdm import tqdm

from llmroute_gym.compare.search.choice import Choice, chosen
from llmroute_gym.compare.search.course import Course, population_of
from llmroute_gym.compare.search.history import History
from llmroute_gym.compare.search.picture import PICTURE, plot_course
from llmroute_gym.compare.search.pools import Pool
from llmroute_gym.compare.search.result import metric_title, result_text, router_text
from llmroute_gym.compare.search.space import Space
from llmroute_gym.compare.search.workers import Workers
from llmroute_gym.compare.serving import serve
from llmroute_gym.config import EvaluationConfig, SearchingConfig
from llmroute_gym.routers import Router, make
from llmroute_gym.runs.folder import HISTORY_FILE, ROUTER_FILE, RunFolder

TRIED = 20
"""Requests that a rule is tried on before anything is written."""


def limiting_rule(settings: SearchingConfig) -> Router | None:
    """Returns the rule that limits the time to first token; None where nothing does.

    Raises:
        InputError: there is no such rule.
    """
    return None if settings.ttft_p99_at_most is None else make(settings.ttft_p99_of)


def try_out(space: Space, settings: SearchingConfig, pools: list[Pool]) -> None:
    """Serves a few requests of each scenario, so that what is wrong is wrong before the search.

    What has to be compiled is so here, once for all processes.

    Raises:
        InputError: the budget is too small, or the rule cannot serve a scenario.
    """
    population_of(space, settings)
    for pool in pools:
        requests = min(TRIED, settings.requests)
        workload, cluster = pool.draw(requests, np.random.default_rng(settings.seed))
        view, config = pool.scenario.view, EvaluationConfig()
        serve(space.rule, [workload], cluster, config, pool.observation, view=view)


def search_constants(
    space: Space, settings: SearchingConfig, pools: list[Pool], folder: RunFolder
) -> Choice:
    """Searches, writes the history, the picture and the router, and prints what was found.

    Args:
        space: of the constants.
        settings: the metric, the budget, the seed.
        pools: the scenarios that candidates are measured on.
        folder: what is written to; a history in it goes on; the router comes last and marks the
            search as finished.
    """
    limiting = limiting_rule(settings)
    history = History(folder.path / HISTORY_FILE, space)
    with Workers(pools, settings) as workers:
        with tqdm(total=settings.budget, desc="search", unit="candidate") as bar:
            Course(space, settings, limiting, workers, history).run(bar)
        choice = chosen(space, history.candidates, settings, limiting, workers)
    title = f"{settings.router} by {metric_title(settings)}"
    with folder.writing(PICTURE) as part:
        plot_course(history.candidates, space, choice.constants, part, title)
    folder.write_text(ROUTER_FILE, router_text(space, choice, settings))
    print(f"\n{title}\n{result_text(space, choice, settings, len(pools))}")
    print(f"\nrouter: {folder.path / ROUTER_FILE}")
    return choice
