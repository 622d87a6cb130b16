"""A suite's report: one HTML file that needs nothing else, and pictures.

Charts are drawn by Plotly. It was chosen because one library gives zoomable lines with bands,
logarithmic axes, heat maps and linked strips that fit themselves to a phone; because it comes as a
Python package of 10 MB whose only dependencies are two small ones, with its script inside, so that
no browser and no network is needed to write the page; and because its figures are plain mappings,
checked against its own schema in the tests. Bokeh brings a dozen dependencies, Vega-Altair does not
resize stacked views, and a page's own drawing code would have to be kept for ever. Its script
(4.8 MB) and the figures are packed into 2 MB of the page, which the browser unpacks. Tables, the
heat map among them, are HTML: they can be read without a script, by a screen reader, on a phone.
"""

import base64
import gzip
import html
import json
from collections.abc import Callable, Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from llmroute_gym.compare.html import charts
from llmroute_gym.compare.html.groups import Group, grouped
from llmroute_gym.compare.html.palette import (
    UPPER_BOUND,
    Style,
    drawn_at_first,
    styles,
    upper_bounds,
)
from llmroute_gym.compare.html.pictures import MAPPED, PICTURES
from llmroute_gym.compare.html.tables import CLASSES, heat_map, plain, scenario_table, swatch
from llmroute_gym.compare.suites.result import RATIOS, ScenarioResult, SuiteResult
from llmroute_gym.compare.suites.timeline import Timeline
from llmroute_gym.ground.files import complete_or_absent
from llmroute_gym.ground.metrics import LATENCIES, METRICS

REPORT_FILE = "report.html"
AGAINST_LOAD = ("ttft_p99_s", "e2e_p99_s", "goodput_share")
"""Metrics that are drawn for each group of scenarios."""
TAILS = ("e2e", "ttft")
"""Latencies whose percentiles are drawn for each scenario."""
LOWER = "Lower is better."
HIGHER = "Higher is better."


def write_report(result: SuiteResult, timelines: Sequence[Timeline], folder: str | Path) -> None:
    """Writes ``report.html`` and the pictures of a suite.

    The same results give the same bytes.

    Args:
        result: what the suite found.
        timelines: of two routers each; may be empty.
        folder: what is written to; it is made where it does not exist.

    Raises:
        InputError: the folder cannot be written.
    """
    folder = Path(folder)
    for name, picture in PICTURES.items():
        figure = picture(result)
        if figure is not None:
            with complete_or_absent(folder / name) as part:
                figure.savefig(part, dpi=120)
    with complete_or_absent(folder / REPORT_FILE) as part:
        part.write_text(page(result, timelines), encoding="utf-8")


def page(result: SuiteResult, timelines: Sequence[Timeline]) -> str:
    """Returns the report as the text of one HTML file."""
    return _Page(result, timelines).text()


class _Page:
    """The page as it grows: sections that name the figures which stand beside them."""

    def __init__(self, result: SuiteResult, timelines: Sequence[Timeline]) -> None:
        self.result = result
        self.timelines = timelines
        self.styles = styles(result)
        self.figures: dict[str, charts.Figure] = {}

    def text(self) -> str:
        """Returns the whole page."""
        folder = files("llmroute_gym.compare.html")
        parts = {name: (folder / name).read_text(encoding="utf-8") for name in _FILES}
        sections = "\n".join(section for section in self._sections() if section)
        result = self.result
        return Template(parts["page.html"]).substitute(
            title=html.escape(f"Suite {result.name}: routers compared"),
            css=parts["page.css"] + _backgrounds(),
            script=parts["page.js"],
            summary=self._summary(),
            routers=self._chips(),
            sections=sections,
            figures=_packed(json.dumps(self.figures, separators=(",", ":"), allow_nan=False)),
            library=_library(),
            footer=html.escape(
                f"llmroute_gym {result.version}, {result.date}, seed {result.seed}. Charts: Plotly "
                "(MIT licence), inside this file; nothing is loaded from anywhere."
            ),
        )

    def _summary(self) -> str:
        result = self.result
        n_bounds = len(upper_bounds(result))
        requests = sum(one.requests * one.runs for one in result.scenarios)
        said = (
            f"<p>{len(result.routers) - n_bounds} routers in {len(result.scenarios)} scenarios, "
            f"{requests:,} requests each, the same for all. Version "
            f"{html.escape(result.version)}, {html.escape(result.date)}, seed {result.seed}. "
            f"Intervals and bands hold {result.confidence:.0%}: whole runs are resampled, the same "
            "for every router.</p>"
        )
        if n_bounds:
            said += (
                "<p>An upper bound knows what no router can know. It stands apart, in black, and "
                "is never called the best.</p>"
            )
        if any(one.unstable for one in result.scenarios):
            said += (
                "<p>Unstable: more requests come in than leave, so that every latency depends on "
                "how long one looks. Such a router is shown with the growth of its queue and has "
                "no other number there.</p>"
            )
        left_out = "".join(
            f"<li>{html.escape(name)}: {html.escape(reason)}</li>"
            for name, reason in result.left_out.items()
        )
        return said + (f"<p>Not run:</p><ul>{left_out}</ul>" if left_out else "")

    def _chips(self) -> str:
        first = set(drawn_at_first(self.result)) | upper_bounds(self.result)
        chips = ['<button type="button" class="all">All / few</button>']
        for router, style in self.styles.items():
            name = html.escape(router)
            chosen = 'aria-pressed="true" data-first' if router in first else 'aria-pressed="false"'
            said = f"{swatch(style)} {name}"
            chips.append(f'<button type="button" data-router="{name}" {chosen}>{said}</button>')
        return "".join(chips)

    def _sections(self) -> Iterable[str]:
        yield self._heat_maps()
        yield self._loads()
        yield self._cached()
        yield self._regret()
        yield self._timelines()
        yield self._scenarios()

    def _heat_maps(self) -> str:
        scenarios = self.result.scenarios
        baselines = list(dict.fromkeys(one.baseline for one in scenarios))
        references: dict[str, tuple[str, Callable[[ScenarioResult], Any]]] = {
            "baseline": (f"baseline ({', '.join(baselines)})", lambda one: one.ratio_to_baseline),
            "best": ("best router", lambda one: one.ratio_to_best),
        }
        metrics = sorted(RATIOS, key=lambda metric: metric != MAPPED)
        maps = ""
        for reference, (_, ratios) in references.items():
            for metric in metrics:
                table = heat_map(scenarios, [*map(ratios, scenarios)], metric, self.styles)
                hidden = "" if (reference, metric) == ("baseline", MAPPED) else " hidden"
                maps += f'<div data-map="{metric} {reference}"{hidden}>{table}</div>'
        choice = _select("Ratio of", {metric: METRICS[metric].title for metric in metrics})
        choice += _select("to the", {key: said for key, (said, _) in references.items()})
        key = (
            '<p class="key"><span class="better step4">much better</span>'
            '<span class="better step1">better</span><span>not significant</span>'
            '<span class="worse step1">worse</span><span class="worse step4">much worse</span>'
            '<span class="unstable">unstable</span></p>'
        )
        caption = (
            "A ratio of 0.9 is 10% less, with its interval below. Less is better, but for "
            "throughput. Bold on colour: the interval leaves out 1, so the difference is "
            "significant; white: it may be chance. A click on a heading sorts."
        )
        inside = f'<p class="choice">{choice}</p>{key}{maps}<figcaption>{caption}</figcaption>'
        return _section("heat-map", "Every router in every scenario", f"<figure>{inside}</figure>")

    def _loads(self) -> str:
        parts = ""
        for number, group in enumerate(grouped(self.result.scenarios)):
            keys = [key for key in AGAINST_LOAD if _known(group, key)]
            drawn = ""
            for key in keys:
                better = LOWER if METRICS[key].latency else HIGHER
                caption = f"{METRICS[key].definition[:1].upper()}{METRICS[key].definition[1:]}. "
                caption += f"{better}{_missing(group.scenarios)}"
                figure = charts.along(group, key, self.styles)
                drawn += self._chart(f"along-{number}-{key}", METRICS[key].title, figure, caption)
            if drawn:
                title = f"{group.title}: {_differing(group)}"
                parts += _fold(f"group-{number}", title, _grid(drawn), opened=number == 0)
        return _section("load", "P99 and goodput against load", parts)

    def _cached(self) -> str:
        key = "cached_token_share"
        scenarios, found = [], []
        for one in self.result.scenarios:
            shares = {each.router: each.metrics[key] for each in one.results if key in each.metrics}
            if any(share.value > 0 for share in shares.values()):
                scenarios.append(one)
                found.append(shares)
        if not scenarios:
            return ""
        figure = charts.across(scenarios, found, "Cached share of prompt tokens (%)", self.styles)
        caption = (
            "Prompt tokens found in the prefix cache / prompt tokens. Higher saves prefill, but "
            f"says nothing of latency by itself.{_missing(scenarios)} Scenarios in which nothing "
            "can be cached are left out."
        )
        drawn = self._chart("cached", "", figure, caption)
        return _section("cached", "Cached share", drawn)

    def _regret(self) -> str:
        bounded = [one for one in self.result.scenarios if one.regret and one.upper_bounds]
        if not bounded:
            return ""
        bounds = {one.upper_bounds[0] for one in bounded}
        found = [
            {router: each for router, each in one.regret.items() if router not in one.upper_bounds}
            for one in bounded
        ]
        title = "Mean E2E above the upper bound's (%)"
        figure = charts.across(bounded, found, title, self.styles)
        nothing = dict(type="line", x0=0, x1=0, yref="paper", y0=0, y1=1)
        dotted = dict(color=UPPER_BOUND.colour, dash=UPPER_BOUND.line, width=2)
        figure["layout"]["shapes"].append(nothing | dict(line=dotted))
        caption = (
            f"How much more mean end-to-end latency a router has than {', '.join(sorted(bounds))} "
            "(dotted line), which simulates each replica ahead with the true lengths: an upper "
            f"bound to what can be reached by routing, not a competitor. {LOWER}"
            f"{_missing(bounded)}"
        )
        drawn = self._chart("regret", "", figure, html.escape(caption, quote=False))
        return _section("regret", "Regret to the oracle", drawn)

    def _timelines(self) -> str:
        parts = ""
        for number, timeline in enumerate(self.timelines):
            drawn = ""
            for place, course in enumerate(timeline.courses):
                figure = charts.course(timeline, course, self._style(course.router))
                caption = (
                    f"{len(course.at_s):,} decisions. One row per replica; darker is more, with "
                    "the same shades on both sides. An even column means balance."
                )
                name = f"timeline-{number}-{place}"
                drawn += self._chart(name, course.router, figure, caption)
            title = f"{timeline.scenario}: a window from {timeline.start_s:.0f} s on"
            said = f"<p>{html.escape(timeline.title)}</p>"
            parts += _fold(
                f"window-{number}", title, said + _grid(drawn, "pair"), opened=number == 0
            )
        title = "Two routers, the same requests, the same minute"
        return _section("timelines", title, parts)

    def _style(self, router: str) -> Style:
        return self.styles.get(router, next(iter(self.styles.values())))

    def _scenarios(self) -> str:
        parts = ""
        for number, one in enumerate(self.result.scenarios):
            drawn = ""
            for latency in TAILS:
                figure = charts.tails(one, latency, self.styles)
                caption = (
                    f"Percentiles over all {one.requests * one.runs:,} requests of {one.runs} "
                    f"runs, in seconds; both axes logarithmic. {LOWER}{_missing([one])}"
                )
                title = LATENCIES[latency].title
                drawn += self._chart(f"tail-{number}-{latency}", title, figure, caption)
            words = "; ".join(filter(None, (one.title, one.detail)))
            said = f"{words}; {plain(one.qps)} requests/s"
            if one.load is not None and one.capacity_rps is not None:
                said += f", {one.load:.0%} of a capacity of {plain(one.capacity_rps)}"
            table = scenario_table(one, self.styles)
            below = (
                "<figcaption>Intervals below the numbers. Latencies are in seconds, lower is "
                "better; shares and throughput: higher is better. A click on a heading sorts."
                "</figcaption>"
            )
            numbers = f"<figure>{table}{below}</figure>"
            inside = f"<p>{html.escape(said)}</p>{_grid(drawn, 'pair')}{numbers}"
            parts += _fold(f"scenario-{number}", one.name, inside, beside=one.group)
        return _section("scenarios", "Each scenario: tails and tables", parts)

    def _chart(self, name: str, title: str, figure: charts.Figure, caption: str) -> str:
        """Keeps a figure and returns where it is drawn; the caption is HTML."""
        self.figures[name] = figure
        headed = f"<h4>{html.escape(title)}</h4>" if title else ""
        # Its room is kept, so that nothing moves while a reader scrolls.
        room = f"min-height: {figure['layout']['height']}px"
        place = f'<div class="chart" data-figure="{name}" style="{room}"></div>'
        return f"<figure>{headed}{place}<figcaption>{caption}</figcaption></figure>"


_FILES = ("page.html", "page.css", "page.js")


def _packed(text: str) -> str:
    """Returns a text as letters that may stand in any element: gzip, then base 64."""
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=9, mtime=0)).decode()


def _backgrounds() -> str:
    return "".join(
        f".{name.replace(' ', '.')} {{ background: {colour}; }}\n"
        for colour, name in CLASSES.items()
    )


def _library() -> str:
    """Returns Plotly's script, packed."""
    from plotly.offline import get_plotlyjs  # half a second, for those who write a report

    return _packed(get_plotlyjs())


def _section(name: str, title: str, inside: str) -> str:
    if not inside:
        return ""
    return (
        f'<details class="section" id="{name}" open><summary><h2>{html.escape(title)}</h2>'
        f"</summary>{inside}</details>"
    )


def _fold(name: str, title: str, inside: str, *, beside: str = "", opened: bool = False) -> str:
    small = f" <small>{html.escape(beside)}</small>" if beside else ""
    return (
        f'<details id="{name}"{" open" * opened}><summary><h3>{html.escape(title)}</h3>{small}'
        f"</summary>{inside}</details>"
    )


def _grid(inside: str, name: str = "") -> str:
    return f'<div class="{f"charts {name}".strip()}">{inside}</div>'


def _select(said: str, options: dict[str, str]) -> str:
    listed = "".join(
        f'<option value="{html.escape(key)}">{html.escape(text)}</option>'
        for key, text in options.items()
    )
    return f"<label>{said} <select>{listed}</select></label>"


def _known(group: Group, key: str) -> bool:
    return any(key in one.metrics for each in group.scenarios for one in each.results)


def _differing(group: Group) -> str:
    names = ", ".join(one.name for one in group.scenarios)
    return names if group.positions is None else f"against {group.axis[0].lower()}{group.axis[1:]}"


def _missing(scenarios: Sequence[ScenarioResult]) -> str:
    """Says, as HTML, who is not drawn because its queues grow."""
    said = [
        f"{router} in {one.name} (+{plain(growth)} requests/s)"
        for one in scenarios
        for router, growth in one.unstable.items()
    ]
    return f" Unstable, so not drawn: {html.escape('; '.join(said))}." if said else ""
