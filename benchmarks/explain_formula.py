"""A rule of the estimated latency as a formula: its terms, and how they are written down."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmroute_gym.compare.search.space import tuned_ranges
from llmroute_gym.routers.estimated_latency import EstimatedLatency

FEATURES = {
    "in_flight": "(n + 1)/s",
    "kv": "0.05 + k",
    "pending": "500 + U/s",
    "oldest": "0.5 + w",
    "ttft": "0.1 + f",
    "context": "2000 + C/s",
    "queue": "1 + q",
    "slowness": "d",
    "work": "{work_floor:.2g} + (U + P)/s",
    "rounds": "1 + r",
    "batch_time": "0.01 + b",
    "recent": "2000 + v/s",
    "uncached": "1.05 - h",
}
"""What of a replica is compared with the others, by the name of its weight."""
SYMBOLS = {
    "n": "requests in flight, the router's own count",
    "s": "speed of the replica",
    "k": "share of its KV blocks in use (polled)",
    "U": "uncached prompt tokens of its requests without first token",
    "P": "prompt tokens of this request, times 1 - {cached:.3g} h",
    "h": "share of the prompt that the replica has cached",
    "w": "seconds since its oldest request without first token arrived",
    "f": "its average time to first token, lately (s)",
    "C": "prompt tokens of its requests past their first token",
    "q": "its waiting requests (polled)",
    "d": "how long requests took there in the last {remembered_s:.3g} s, by Little's law (s)",
    "r": "rounds since it was chosen",
    "b": "its average batch time (s, polled)",
    "v": "tokens sent to it in the last {recent_s:.3g} s",
    "p": "ln((prompt tokens + 50)/1000)",
    "l": "ln(predicted output tokens/100), 0 without a prediction",
}
IF_MIXED, IF_SHARED = (
    tuple(name for name in tuned_ranges(EstimatedLatency()) if name.endswith(end))
    for end in ("_if_mixed", "_if_shared")
)
UNPRINTED = (
    *("recent_if_cold", "uncached_by_load", "of_all", "like_own", "attention", "progress"),
    *IF_MIXED,
    *IF_SHARED,
)
"""Constants that no formula here states."""
LEFT_OUT = {
    **dict.fromkeys(UNPRINTED, 0.0),
    **dict.fromkeys(("predicted_power", "speed_by_output"), 0.0),
    **{f"{name}_by_output": 0.0 for name in FEATURES},
}
"""What a formula goes without: what is for caches and for several gateways, which the scenarios of
the search do not have, predicted lengths, which few gateways have, and weights of their own for
replicas of several speeds, which would be as many terms again."""
NEEDED_BY = {
    "kv_threshold": [("kv_price",)],
    "cached": [("prefill",), ("own_prefill",)],
    "own_prefill": [("prefill",)],
    "remembered_s": [("slowness", "slowness_by_prompt", "slowness_by_output")],
    "recent_s": [("recent", "recent_by_prompt", "recent_by_output")],
    "work_floor": [("work", "work_by_prompt", "work_by_output")],
}
"""Constants that count only where of each group of others one is not 0."""


def plain_values(name: str) -> list[float]:
    """Returns what a constant may be without being one that a formula states.

    The value that makes the family `speed_lor` comes first, then 0 and 1 where they are allowed.
    """
    limits = tuned_ranges(EstimatedLatency())[name]
    values = [float(getattr(EstimatedLatency, name)), 0.0]
    if "_by_" not in name:
        values.append(1.0)
    if limits.logarithmic:
        values.append(limits.low)
    found = dict.fromkeys(one for one in values if limits.low <= one <= limits.high)
    return list(found)


def stated(rule: EstimatedLatency) -> list[str]:
    """Returns the constants that a formula states: neither plain nor without effect."""
    names = []
    for name in tuned_ranges(rule):
        if _counts(rule, name) and getattr(rule, name) not in plain_values(name):
            names.append(name)
    return names


def rounded(rule: EstimatedLatency, digits: int = 2) -> EstimatedLatency:
    """Returns the rule with what its formula states to so many significant digits."""
    return replace(rule, **{one: float(f"{getattr(rule, one):.{digits}g}") for one in stated(rule)})


def options(rule: EstimatedLatency) -> dict[str, Any]:
    """Returns the rule as `make` takes it: its name, and what differs from the family."""
    family = EstimatedLatency()
    different = {
        name: getattr(rule, name)
        for name in tuned_ranges(rule)
        if _counts(rule, name) and getattr(rule, name) != getattr(family, name)
    }
    return {"name": family.name, **different}


def terms(rule: EstimatedLatency) -> tuple[list[str], list[str]]:
    """Returns the terms of the estimated seconds, and those that are added to its logarithm.

    Raises:
        ValueError: it has a constant that no formula here states.
    """
    if any(getattr(rule, name) for name in UNPRINTED):
        raise ValueError(f"{rule.name} has a constant that no formula states: {UNPRINTED}")
    seconds = ["1"]
    if rule.pace_per_request not in (0.0, _lowest("pace_per_request")):
        seconds.append(_times(rule.pace_per_request, "n"))
    if rule.pace_per_context:
        seconds.append(_times(rule.pace_per_context, "C/1000"))
    if rule.kv_price:
        seconds.append(f"{rule.kv_price:.3g} max(0, k - {rule.kv_threshold:.3g})")
    if rule.prefill:
        seconds.append(_times(rule.prefill, "U/1000"))
        if rule.own_prefill:
            seconds.append(_times(rule.prefill * rule.own_prefill, "P/1000"))
    if rule.waited:
        seconds.append(_times(rule.waited, "w"))
    logarithms = []
    for name, feature in FEATURES.items():
        by = {"": name, " p": f"{name}_by_prompt", " l": f"{name}_by_output"}
        for variable, weight in by.items():
            if getattr(rule, weight):
                inside = feature.format(work_floor=rule.work_floor)
                value = _times(getattr(rule, weight), f"{variable.strip()} ln({inside})".strip())
                logarithms.append(value)
    return seconds, logarithms


def written(rule: EstimatedLatency) -> str:
    """Returns the formula of a rule's score, of which the lowest is chosen."""
    seconds, logarithms = terms(rule)
    pace = [
        one for one in seconds if "k -" not in one and not one.endswith(("U/1000", "P/1000", "w"))
    ]
    price = [f"(1 + {one})" for one in seconds if "k -" in one]
    prefill = [one for one in seconds if one.endswith(("U/1000", "P/1000"))]
    waited = [one for one in seconds if one.endswith("w")]
    factors = [f"({' + '.join(pace)})"] if len(pace) > 1 else []
    factors += price
    if rule.predicted_power:
        factors.append("e^l" if rule.predicted_power == 1 else f"e^({rule.predicted_power:.3g} l)")
    sums = [" ".join(factors) or "1", *prefill]
    inside = " + ".join(sums)
    power = _power(rule)
    if power != "0":
        divided = f"({inside})" if len(sums) > 1 else inside
        inside = f"{divided}/s" + ("" if power == "1" else f"^{power}")
    lines = [f"score = ln[ {' + '.join([inside, *waited])} ]"]
    for one in logarithms:
        sign, value = ("-", one[1:]) if one.startswith("-") else ("+", one)
        lines.append(f"        {sign} {value}")
    return "\n".join(lines)


def used_symbols(rule: EstimatedLatency) -> Mapping[str, str]:
    """Returns the symbols of a rule's formula and what they mean, in order."""
    letters = set(re.findall(r"\b[a-zA-Z]\b", written(rule)))
    if "P" in letters:
        letters.add("h")
    constants = {name: getattr(rule, name) for name in tuned_ranges(rule)}
    return {
        name: meaning.format(**constants) for name, meaning in SYMBOLS.items() if name in letters
    }


def n_terms(rule: EstimatedLatency) -> int:
    """Returns how many terms the formula has, the speed's power not among them."""
    seconds, logarithms = terms(rule)
    return len(seconds) + len(logarithms)


def _counts(rule: EstimatedLatency, name: str) -> bool:
    groups = NEEDED_BY.get(name, [])
    return all(any(getattr(rule, one) for one in group) for group in groups)


def _power(rule: EstimatedLatency) -> str:
    parts = [f"{rule.speed_power:.3g}"]
    for value, variable in ((rule.speed_by_prompt, "p"), (rule.speed_by_output, "l")):
        if value:
            parts.append(f"{'-' if value < 0 else '+'} {_times(abs(value), variable)}")
    return parts[0] if len(parts) == 1 else f"({' '.join(parts)})"


def _times(value: float, what: str) -> str:
    return what if value == 1 else f"-{what}" if value == -1 else f"{value:.3g} {what}"


def _lowest(name: str) -> float:
    return tuned_ranges(EstimatedLatency())[name].low
