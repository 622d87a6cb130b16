"""What a suite found, as plain data: what ``results.json`` holds and every report draws."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from llmroute_gym.compare.statistics import Estimate, RouterResult
from llmroute_gym.errors import InputError

RESULTS_FILE = "results.json"
"""Written last: a suite's folder that holds it holds a finished suite."""
RATIOS = (
    "e2e_mean_s",
    "e2e_p99_s",
    "ttft_mean_s",
    "ttft_p90_s",
    "ttft_p99_s",
    "output_throughput_tps",
)
"""Metrics whose ratios are reported."""
MORE_IS_BETTER = ("output_throughput_tps",)
"""Those of them that should be large."""

Ratios = Mapping[str, Mapping[str, Estimate]]
"""Metric to router to ratio: 0.9 is 10% less."""


@dataclass(frozen=True)
class ScenarioResult:
    """What the routers achieved in one scenario.

    Attributes:
        name: of the scenario's file.
        title: what is special about it, for people.
        group: heading under which scenarios stand together.
        load: rate as a share of the cluster's capacity; None where the rate was given.
        qps: mean arrival rate, requests/s.
        capacity_rps: largest stable rate, requests/s; None where nothing needed it.
        n_replicas: of the cluster.
        requests: of each run.
        runs: independent ones, common to all routers.
        baseline: the router that `ratio_to_baseline` refers to.
        results: of each stable router, in the suite's order.
        ratio_to_baseline: each of `RATIOS` of each stable router over the baseline's; empty where
            the baseline is not stable.
        ratio_to_best: the same over the least (largest throughput) of the stable routers that are
            no upper bounds.
        regret: the mean end-to-end latency over that of the first upper bound, minus 1; empty
            where there is none.
        unstable: router to the growth of the number of waiting requests, requests/s; such
            a router is in none of the tables above.
        upper_bounds: routers that know what no router can know.
        detail: the requests, their rate and the replicas, in words.
    """

    name: str
    title: str
    group: str
    load: float | None
    qps: float
    capacity_rps: float | None
    n_replicas: int
    requests: int
    runs: int
    baseline: str
    results: tuple[RouterResult, ...]
    ratio_to_baseline: Ratios
    ratio_to_best: Ratios
    regret: Mapping[str, Estimate]
    unstable: Mapping[str, float]
    upper_bounds: tuple[str, ...] = ()
    detail: str = ""

    def metric(self, router: str, key: str) -> Estimate | None:
        """Returns a metric of a router; None where it is unstable or has none of this name."""
        found = (one.metrics.get(key) for one in self.results if one.router == router)
        return next(found, None)

    def to_json(self) -> str:
        """Returns a text that `from_json` reads."""
        return json.dumps(_plain(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "ScenarioResult":
        """Reads what `to_json` wrote.

        Raises:
            ValueError: it is no such text; or KeyError or TypeError.
        """
        return _scenario(json.loads(text))


@dataclass(frozen=True)
class SuiteResult:
    """What the routers achieved in all scenarios of a suite.

    Attributes:
        name: of the suite's file.
        version: of the package.
        date: of the day it was started, as YYYY-MM-DD.
        seed: that everything random comes from.
        confidence: of all intervals.
        routers: in the suite's order, as texts.
        scenarios: in the suite's order.
        left_out: scenario to the reason for which it was not run.
        settings: all that it was made with, for `llmroute_gym.compare.suites.verify`.
    """

    name: str
    version: str
    date: str
    seed: int
    confidence: float
    routers: tuple[str, ...]
    scenarios: tuple[ScenarioResult, ...]
    left_out: Mapping[str, str]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Returns the text of ``results.json``, every number in full, infinity as ``"inf"``."""
        return json.dumps(_plain(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, file: str | Path = "this text") -> "SuiteResult":
        """Reads what `to_json` wrote.

        Args:
            text: JSON.
            file: where it is from, for the error.

        Raises:
            InputError: it is no such text.
        """
        try:
            return _suite(json.loads(text))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            missing = isinstance(error, KeyError)
            reason = f"it has no {error.args[0]}" if missing else str(error).splitlines()[0]
            raise InputError(
                f"{file} holds no results of a suite ({reason}); give the {RESULTS_FILE} that "
                "python -m llmroute_gym.evaluate +suite=core writes"
            ) from error

    @classmethod
    def read(cls, path: str | Path) -> "SuiteResult":
        """Reads ``results.json``, or that of a folder.

        Raises:
            InputError: there is none, or it is not one of a suite.
        """
        path = Path(path)
        file = path / RESULTS_FILE if path.is_dir() else path
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"cannot read {file}: {getattr(error, 'strerror', None) or error}; give the folder "
                "of a finished suite"
            ) from error
        return cls.from_json(text, file)


def _plain(value: Any) -> Any:
    """Returns what JSON can hold; an estimate is a list of value, low, high."""
    if isinstance(value, Estimate):
        return [_plain(value.value), _plain(value.low), _plain(value.high)]
    if isinstance(value, RouterResult | ScenarioResult | SuiteResult):
        return {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return str(value)
    return value


def _suite(read: Any) -> SuiteResult:
    given = {one.name: read[one.name] for one in fields(SuiteResult) if one.name in read}
    scenarios = tuple(_scenario(one) for one in given["scenarios"])
    return SuiteResult(**given | {"scenarios": scenarios, "routers": tuple(given["routers"])})


def _scenario(read: Any) -> ScenarioResult:
    given = {one.name: read[one.name] for one in fields(ScenarioResult) if one.name in read}
    results = tuple(
        RouterResult(
            one["router"], *(_estimates(one[key]) for key in ("metrics", "served", "differences"))
        )
        for one in given["results"]
    )
    ratios = {
        key: {metric: _estimates(one) for metric, one in given[key].items()}
        for key in ("ratio_to_baseline", "ratio_to_best")
    }
    tables = {"results": results, "regret": _estimates(given["regret"]), **ratios}
    unstable = {router: float(growth) for router, growth in given["unstable"].items()}
    upper = tuple(given["upper_bounds"])
    return ScenarioResult(**given | tables | {"unstable": unstable, "upper_bounds": upper})


def _estimates(read: Mapping[str, Any]) -> dict[str, Estimate]:
    return {key: Estimate(*(float(number) for number in one)) for key, one in read.items()}
