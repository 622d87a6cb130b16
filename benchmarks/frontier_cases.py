"""What the rule `frontier` is measured on, what it is compared with there, and the bars.

No workload here is one that a search has seen, or that anything was chosen by: searches draw by
their seeds, these by `SEED`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SEED = 99_000_002
SIMPLE = (
    "round_robin",
    "lor",
    "lor_hybrid",
    "speed_lor",
    "least_tokens",
    "jsq",
    "power_of_two",
)
INTERNLM, LLAMA = "a100-internlm-20b", "a100-llama-2-7b"
SHORT = {INTERNLM: "i", LLAMA: "l"}
SPEEDS = [2.0, 1.0, 1.0, 0.5]
CODE = {
    "source": "synthetic",
    "lengths": {
        "model": "lognormal",
        "prompt_mean": 2000.0,
        "prompt_sigma": 0.8,
        "output_mean": 28.0,
        "output_sigma": 1.2,
        "max_total_tokens": 8192,
    },
}
"""Long prompts and short outputs, as Azure's code trace has them (medians of Patel et al. 2024)."""


@dataclass(frozen=True)
class Case:
    """One scenario and its bars, each a ratio of P99 end to end that may not be exceeded.

    Attributes:
        name: of the case.
        group: heading of its table.
        scenario: as `read_scenario` takes it.
        simple: at most this times the best simple rule.
        zoo: at most this times the best rule of the package as it ships.
        tuned: whether rules are tuned for this very scenario: at most 1.00 times the best of the
            plain ones, 1.05 times the estimated-latency rule.
        slow: at most this times the best simple rule for requests that arrive while a replica is
            slow.
        predicted: whether `frontier` is told output lengths with a log-normal error of 0.5.
        runs: as many workloads.
        requests: of each.
    """

    name: str
    group: str
    scenario: Mapping[str, Any]
    simple: float | None = None
    zoo: float | None = None
    tuned: bool = False
    slow: float | None = None
    predicted: bool = False
    runs: int = 40
    requests: int = 1000


def _equal() -> list[Case]:
    return [
        Case(
            f"equal {load}% ({SHORT[profile]})",
            "Equal replicas",
            {"name": "equal_70", "load": load / 100, "cluster": {"profile": profile}},
            zoo=1.03,
        )
        for profile in (INTERNLM, LLAMA)
        for load in (50, 70, 85, 95)
    ]


def _mixed() -> list[Case]:
    bars = {INTERNLM: (0.70, 0.80, 0.90), LLAMA: (0.85, 0.90, 0.93)}
    predicted = (0.62, 0.72, 0.82)
    cases = []
    for profile, limits in bars.items():
        for load, bar in zip((50, 70, 85), limits, strict=True):
            scenario = {
                "name": "mixed_speeds",
                "load": load / 100,
                "cluster": {"profile": profile},
            }
            name = f"mixed {load}% ({SHORT[profile]})"
            cases.append(Case(name, "Speeds 2, 1, 1, 0.5", scenario, simple=bar, tuned=True))
    for load, bar in zip((50, 70, 85), predicted, strict=True):
        scenario = {"name": "mixed_speeds", "load": load / 100}
        name, group = f"mixed {load}% (i), predicted", "Speeds 2, 1, 1, 0.5, output lengths guessed"
        cases.append(Case(name, group, scenario, simple=bar, predicted=True))
    return cases


def _stragglers() -> list[Case]:
    return [
        Case(
            f"straggler {load}% (i)",
            "A replica at a third of its speed, a minute in ten",
            {"name": "straggler", "load": load / 100},
            simple=0.98,
            slow=0.90 if load < 85 else None,
            requests=2000,
        )
        for load in (50, 70, 85)
    ]


def _arrivals() -> list[Case]:
    group = "Arrivals and traces"
    named = {
        "bursts 60%": {"name": "bursts", "load": 0.6},
        "diurnal 70%": {"name": "diurnal"},
        "ramp 35 to 87.5%": {"name": "ramp"},
        "azure conversation 70%": {"name": "azure"},
        "lengths as of code 70%": {"name": "equal_70", "workload": CODE},
    }
    return [
        Case(name, group, scenario, zoo=1.03, runs=20 if name.startswith("azure") else 40)
        for name, scenario in named.items()
    ]


def _sizes() -> list[Case]:
    cases = []
    for replicas in (2, 8, 16, 32):
        speeds = [2.0, 0.5] if replicas == 2 else [SPEEDS[at % 4] for at in range(replicas)]
        sized = {"runs": 20, "requests": max(1000, 250 * replicas)}
        for kind, bar in (("equal", 1.02), ("mixed", 0.80)):
            cluster = {"replicas": replicas, "speeds": speeds if kind == "mixed" else []}
            scenario = {"name": "mixed_speeds", "load": 0.7, "cluster": cluster}
            name = f"{kind}, {replicas} replicas"
            cases.append(Case(name, "Other sizes at 70% (i)", scenario, simple=bar, **sized))
    cluster = {"replicas": 2, "speeds": [2.0, 1.0]}
    scenario = {"name": "mixed_speeds", "load": 0.7, "cluster": cluster}
    cases.append(Case("speeds 2, 1", "Other sizes at 70% (i)", scenario, simple=1.0, runs=20))
    return cases


def _hardware() -> list[Case]:
    return [
        Case(
            "H100 + A100 + L40S",
            "Mixed hardware, `vllm_v1`",
            {"name": "mixed_hardware", "requests": None},
            simple=0.85,
            runs=20,
            requests=4000,
        )
    ]


CASES = (*_equal(), *_mixed(), *_stragglers(), *_arrivals(), *_sizes(), *_hardware())
