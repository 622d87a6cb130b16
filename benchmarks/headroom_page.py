"""The page and the picture of `headroom.py`, made of its table of results."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from measuring import ROOT, table

PAGE = ROOT / "docs" / "headroom.md"
PICTURE = ROOT / "docs" / "headroom.png"
METRICS = {"ttft_p99_s": "P99 TTFT", "e2e_p99_s": "P99 E2E"}
REACH, LOSS = 0.90, 1.03
KINDS = {
    "simple": ("best simple rule", "x", "tab:gray"),
    "as shipped": ("best rule that looks at prefixes, as shipped", "s", "tab:blue"),
    "oracle": ("oracle (knows output lengths, looks ahead)", "|", "black"),
    "learned": ("learned rule, the same constants everywhere, 95% intervals", "o", "tab:red"),
}
"""What is drawn beside the best tuned rule: its label, marker and colour."""
SHOWN = 0.7, 1.6
"""Ratios that are drawn; what is beyond stands at the edge."""
WHY = """## Why

- **Several gateways.** A router counts its own requests only. The learned rule corrects what the
  engines reported at the last poll by what it has sent and seen end since, takes the requests of
  others to be like its own, and weighs prefill, load and memory by their share. Rules that poll
  twenty times as often (`llmd_baseline`: 50 ms) know less. The suite's seeds were looked at while
  the scenarios of the search were chosen; on 20 runs of seed 2,000,000, which were not, learned /
  tuned is 0.88 [0.88, 0.89] in gateways_2 and 0.91 [0.89, 0.92] in gateways_4.
- **Agents.** The slowest requests are long tasks that are new everywhere or were under way when the
  run began, which no router can help, and steps that leave the replica that holds their
  conversation. In the first run of agent_loop, of the slowest hundredth 43% had left it under
  `lmetric`, 12% under the learned rule.
- **Nothing to win.** In shared_prefix_* the slowest hundredth are the first requests of their
  group: their TTFT is one prefill of a whole prompt. In multi_turn nearly all of them are chats
  that were under way when the run began, of which no replica holds anything: a cold start. In
  stale_* the best rules go by their own counts, which are never old; a rule that goes by polls
  loses by up to thirty times.
- **Where it loses.** P99 E2E under the highest load of shared prefixes, where `llmd_baseline`
  spreads new prefixes in turn, and on mooncake, a trace that the search never saw.
- **Limits.** Found on replicas of equal speed: constants that speeds bring to bear were drawn at
  random, so for mixed replicas take another rule. It needs the engines' KV-cache events."""


class Ratio(NamedTuple):
    """A number with its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Returns it with two digits."""
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


class Line(NamedTuple):
    """A line of the table of results."""

    scenario: str
    metric: str
    kind: str
    router: str
    seconds: Ratio
    learned_over_it: Ratio
    over_simple: Ratio


class Lines(list[Line]):
    """All of them."""

    @classmethod
    def read(cls, path: Path) -> "Lines":
        """Reads the table."""
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))[1:]
        ratios = [[Ratio(*map(float, row[at : at + 3])) for at in (4, 7, 10)] for row in rows]
        return cls(
            Line(row[0], row[1], row[2], row[3], *each)
            for row, each in zip(rows, ratios, strict=True)
        )

    @property
    def scenarios(self) -> list[str]:
        """Returns the scenarios in order."""
        return list(dict.fromkeys(one.scenario for one in self))

    def some(self, scenario: str, metric: str, kind: str) -> list[Line]:
        """Returns the lines of one kind."""
        key = (scenario, metric, kind)
        return [one for one in self if (one.scenario, one.metric, one.kind) == key]

    def best(self, scenario: str, metric: str, kind: str) -> Line | None:
        """Returns the lowest of them, of tuned ones as shipped too; None where there is none."""
        some = self.some(scenario, metric, kind)
        if kind == "tuned":
            some += self.some(scenario, metric, "as shipped")
        return min(some, key=lambda one: one.seconds.value) if some else None

    def needed(self, scenario: str, metric: str, kind: str) -> Line:
        """Returns the same where there must be one."""
        best = self.best(scenario, metric, kind)
        assert best is not None
        return best


def plot(lines: Lines) -> None:
    """Draws every scenario's best rules beside its best tuned one."""
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    names = lines.scenarios
    for panel, (metric, title) in zip(panels, METRICS.items(), strict=True):
        for place, (kind, (label, marker, colour)) in enumerate(KINDS.items()):
            found = [(at, name, lines.best(name, metric, kind)) for at, name in enumerate(names)]
            known = [(at, name, one) for at, name, one in found if one is not None]
            if not known:
                continue
            tuned = [lines.needed(name, metric, "tuned") for _, name, _ in known]
            ratios = [
                one.over_simple.value / best.over_simple.value
                for (_, _, one), best in zip(known, tuned, strict=True)
            ]
            height = np.array([at for at, _, _ in known]) + 0.16 * (place - 1.5)
            panel.plot(
                *(np.clip(ratios, *SHOWN), height, marker),
                color=colour,
                markersize=9 if marker == "|" else 5,
                label=label,
                clip_on=False,
            )
            if kind == "learned":
                each = [best.learned_over_it for best in tuned]
                panel.hlines(height, [one.low for one in each], [one.high for one in each], colour)
        panel.axvline(1.0, color="gray", linewidth=0.8)
        panel.set(xscale="log", xlabel=f"{title} / that of the best tuned rule", xlim=SHOWN)
        ticks = [0.7, 0.8, 0.9, 1.0, 1.2, 1.4, 1.6]
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.minorticks_off()
        panel.grid(alpha=0.3, axis="x")
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(PICTURE, dpi=120)


def _short(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.1g}"


def _summary(lines: Lines, metric: str) -> str:
    rows = []
    for name in lines.scenarios:
        kinds = ("simple", "as shipped", "tuned", "learned")
        simple, shipped, tuned, learned = (lines.needed(name, metric, kind) for kind in kinds)
        oracle = lines.best(name, metric, "oracle")
        ratio = tuned.learned_over_it
        text = f"**{ratio}**" if ratio.high < 1 else str(ratio)
        rows.append(
            (
                name,
                f"{simple.router}, {simple.seconds.value:.3g} s",
                f"{_short(shipped.over_simple.value)} ({shipped.router})",
                f"{_short(tuned.over_simple.value)} ({tuned.router})",
                _short(learned.over_simple.value),
                "" if oracle is None else _short(oracle.over_simple.value),
                text,
            )
        )
    heads = ("scenario", "best simple rule", "as shipped / simple", "tuned / simple")
    return table([*heads, "learned / simple", "oracle / simple", "learned / tuned"], rows)


def _each_tuned(lines: Lines, metric: str) -> str:
    names = lines.scenarios
    rules = dict.fromkeys(one.router for one in lines if one.kind == "tuned")
    rows = []
    for rule in rules:
        cells = []
        for name in names:
            found = [one for one in lines.some(name, metric, "tuned") if one.router == rule]
            cells.append(_short(found[0].over_simple.value) if found else "")
        rows.append((rule, *cells))
    return table(["tuned rule", *names], rows)


def _named(some: Sequence[tuple[str, Ratio]]) -> str:
    return ", ".join(f"{name} {ratio}" for name, ratio in some) or "none"


def _verdict(lines: Lines, metric: str) -> str:
    ratios = []
    for name in lines.scenarios:
        ratios.append((name, lines.needed(name, metric, "tuned").learned_over_it))
    wins = [(name, one) for name, one in ratios if one.value <= REACH and one.high < 1]
    better = [(name, one) for name, one in ratios if one.value > REACH and one.high < 1]
    losses = [(name, one) for name, one in ratios if one.value > LOSS]
    level = len(ratios) - len(wins) - len(better) - len(losses)
    return (
        f"{METRICS[metric]} of the learned rule over that of the best tuned one: at most {REACH:g} "
        f"with the interval below 1: {_named(wins)}. Less certainly lower, interval below 1: "
        f"{_named(better)}. Above {LOSS:g}: {_named(losses)}. Level: {level} of {len(ratios)}."
    )


def write_page(results: Path, made_by: str) -> None:
    """Writes the page and the picture.

    Args:
        results: the table.
        made_by: how, when and where.
    """
    lines = Lines.read(results)
    plot(lines)
    parts = [
        "# Where learning pays: cached prefixes, old metrics, several gateways",
        made_by,
        "*Learned*: `frontier_prefix`, the estimated latency with constants of `python -m "
        "llmroute_gym.search +search=frontier_prefix search.seed=1` (ten minutes on one core). It "
        "sees its own counts, the engines' metrics polled each second (in stale_* as rarely as "
        "these say) and their KV-cache events.",
        "*Simple*: the best of round_robin, lor, lor_hybrid, speed_lor, least_tokens, jsq and "
        "power_of_two in that scenario. *As shipped*: the best of the production rules that look "
        "at prefixes or sessions, by their defaults. *Tuned*: the best of these as shipped or "
        "tuned by P99 TTFT for that very scenario, each with a budget of its own of 150 candidates "
        "(`python -m llmroute_gym.search`, seed 14). All these bests are minima taken on the test "
        "runs, which favours them; the learned rule is one rule for all scenarios. *Oracle*: "
        "places each request where it adds least to the summed E2E latency, with true output "
        "lengths, blind to what comes later: a bound of neither P99, which rules may beat, but a "
        "sign of what is left to win; 5 runs in multi_turn and agent_loop. Seeds are those of the "
        "suite, on which nothing was tuned. 20 runs pooled; of mooncake 10, whose trace has "
        "no more windows that share no request: there the rules were tuned on the trace itself, "
        "the learned one was not. 95% intervals, paired bootstrap over runs. Not here: "
        "`llmd_predicted`, which learns while it runs.",
        f"![Headroom](./{PICTURE.name})",
    ]
    for metric, title in METRICS.items():
        parts += [f"## {title}", _verdict(lines, metric), _summary(lines, metric)]
        parts += [
            "Every rule, tuned by P99 TTFT, over the best simple rule:",
            _each_tuned(lines, metric),
        ]
    parts.append(WHY)
    PAGE.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
