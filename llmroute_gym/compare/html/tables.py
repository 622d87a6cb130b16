"""The tables of a suite's page: numbers with their intervals, sorted by a click on a heading."""

import html
import math
from collections.abc import Iterable, Mapping, Sequence

from llmroute_gym.compare.html.palette import BETTER, WORSE, Style, shade
from llmroute_gym.compare.statistics import Estimate, RouterResult
from llmroute_gym.compare.suites.result import MORE_IS_BETTER, Ratios, ScenarioResult
from llmroute_gym.ground.metrics import METRICS

COLUMNS = (
    *("e2e_mean_s", "e2e_p99_s", "ttft_mean_s", "ttft_p90_s", "ttft_p99_s", "tpot_mean_s"),
    *("output_throughput_tps", "goodput_share", "cached_token_share", "served_share"),
)
"""Metrics of a scenario's table, those of them that are known."""
CLASSES = {
    **{colour: f"better step{step}" for step, colour in enumerate(BETTER, start=1)},
    **{colour: f"worse step{step}" for step, colour in enumerate(WORSE, start=1)},
}
"""Background to the classes of a cell."""


def scenario_table(scenario: ScenarioResult, styles: Mapping[str, Style]) -> str:
    """Returns a table of routers by metrics, upper bounds apart and unstable ones without numbers.

    Latencies over served requests alone stand below where some were rejected.
    """
    keys = [key for key in COLUMNS if any(key in one.metrics for one in scenario.results)]
    heads = ["Router", *(_headed(key) for key in keys), f"E2E mean / {scenario.baseline}"]
    ratios = scenario.ratio_to_baseline.get("e2e_mean_s", {})
    rows: dict[bool, list[str]] = {False: [], True: []}
    for result in scenario.results:
        cells = [_cell(result, key) for key in keys]
        cells.append(_ratio(ratios.get(result.router)))
        row = _row(result.router, cells, styles)
        rows[result.router in scenario.upper_bounds].append(row)
    unstable = [
        _row(one, [_grows(scenario, one, len(keys) + 1)], styles) for one in scenario.unstable
    ]
    return _table(heads, rows[False], unstable, rows[True], len(keys) + 2)


def heat_map(
    scenarios: Sequence[ScenarioResult],
    ratios: Sequence[Ratios],
    metric: str,
    styles: Mapping[str, Style],
) -> str:
    """Returns a table of routers by scenarios, coloured where a ratio is surely not 1.

    Args:
        scenarios: the columns.
        ratios: of each of them, to the baseline or to the best.
        metric: one of `llmroute_gym.compare.suites.result.RATIOS`.
        styles: of the routers; each has a row.
    """
    more_is_better = metric in MORE_IS_BETTER
    bounds = {router for one in scenarios for router in one.upper_bounds}
    rows: dict[bool, list[str]] = {False: [], True: []}
    for router in styles:
        cells = []
        for scenario, table in zip(scenarios, ratios, strict=True):
            one = table.get(metric, {}).get(router)
            if router in scenario.unstable:
                cells.append(_grows(scenario, router, 1))
            else:
                cells.append(_ratio(one, shade(one, more_is_better=more_is_better)))
        rows[router in bounds].append(_row(router, cells, styles))
    heads = ["Router", *(one.name for one in scenarios)]
    return _table(heads, rows[False], [], rows[True], len(heads))


def swatch(style: Style) -> str:
    """Returns a short line as the charts draw the router's."""
    dashes = {"dash": "7 3", "dot": "2 3", "dashdot": "7 3 2 3", "longdash": "11 3"}
    dashed = f' stroke-dasharray="{dashes[style.line]}"' if style.line in dashes else ""
    line = f'<path d="M0 6H26" stroke-width="2.5"{dashed}/>'
    mark = f'<path d="{_MARKS[style.mark]}" fill="{style.colour}" stroke-width="2"/>'
    drawn = f'<g stroke="{style.colour}" fill="none">{line}{mark}</g>'
    return f'<svg class="swatch" viewBox="0 0 26 12" aria-hidden="true">{drawn}</svg>'


_MARKS = {
    "circle": "M10.5 6a2.5 2.5 0 1 0 5 0a2.5 2.5 0 1 0 -5 0",
    "square": "M10.5 3.5h5v5h-5z",
    "triangle-up": "M13 3l3 5.5h-6z",
    "diamond": "M13 2.5l3.5 3.5l-3.5 3.5l-3.5 -3.5z",
    "x": "M10 3l6 6M16 3l-6 6",
}
"""The marks of `llmroute_gym.compare.html.palette.MARKS` as paths."""


def plain(number: float) -> str:
    """Returns a number to three digits, as people write it."""
    if math.isnan(number):
        return "n/a"
    if math.isinf(number):
        return "∞" if number > 0 else "−∞"
    if abs(number) >= 1000:
        return f"{number:,.0f}"
    text = f"{number:#.3g}"
    return f"{number:.4f}" if "e" in text else text.rstrip(".")


def ratio_text(number: float) -> str:
    """Returns a ratio with as many digits as tell it from 1."""
    return f"{number:.3f}" if abs(number) < 10 else plain(number)


def _headed(key: str) -> str:
    metric = METRICS[key]
    return f"{metric.title} ({metric.unit or '%'})"


def _cell(result: RouterResult, key: str) -> str:
    metric = METRICS[key]
    one = result.metrics.get(key)
    served = result.served.get(key) if metric.latency else None
    if one is None or served is None or math.isfinite(one.value):
        return _number(one, 1.0 if metric.unit else 100.0)
    below = f"of served {plain(served.value)}<br>{plain(served.low)} to {plain(served.high)}"
    return f'<td data-value="1e300">∞<small>{below}</small></td>'


def _number(one: Estimate | None, scale: float) -> str:
    if one is None or math.isnan(one.value):
        return "<td>–</td>"
    value, low, high = (plain(number * scale) for number in (one.value, one.low, one.high))
    below = f"<small>{low} to {high}</small>" if one.low < one.high else ""
    return f'<td data-value="{_order(one.value)}">{value}{below}</td>'


def _ratio(one: Estimate | None, background: str | None = None) -> str:
    if one is None or math.isnan(one.value):
        return "<td>–</td>"
    value, low, high = (ratio_text(number) for number in (one.value, one.low, one.high))
    below = f"<small>{low} to {high}</small>" if one.low < one.high else ""
    classes = f' class="{CLASSES[background]}"' if background else ""
    return f'<td{classes} data-value="{_order(one.value)}">{value}{below}</td>'


def _order(number: float) -> str:
    return f"{number:.6g}" if math.isfinite(number) else "1e300"


def _grows(scenario: ScenarioResult, router: str, columns: int) -> str:
    growth = plain(scenario.unstable[router])
    if columns == 1:
        return f'<td class="unstable">unstable<small>queue +{growth}/s</small></td>'
    said = f"unstable: {growth} more requests wait each second"
    return f'<td class="unstable" colspan="{columns}">{said}</td>'


def _row(router: str, cells: Iterable[str], styles: Mapping[str, Style]) -> str:
    name = _breakable(router)
    mark = swatch(styles[router])
    return f'<tr><th scope="row">{mark} {name}</th>{"".join(cells)}</tr>'


def _breakable(text: str) -> str:
    """Returns a text as HTML in which a long name breaks where its words do."""
    return html.escape(text).replace("_", "_<wbr>")


def _table(
    heads: Sequence[str],
    rows: Sequence[str],
    unstable: Sequence[str],
    bounds: Sequence[str],
    width: int,
) -> str:
    headed = "".join(
        f'<th scope="col"><button type="button">{_breakable(head)}</button></th>' for head in heads
    )
    parts = [f"<thead><tr>{headed}</tr></thead>", f"<tbody>{''.join(rows)}</tbody>"]
    if unstable:
        parts.append(f'<tbody class="apart">{"".join(unstable)}</tbody>')
    if bounds:
        said = "Upper bound: knows what no router can know"
        line = f'<tr class="said"><th colspan="{width}"><span>{said}</span></th></tr>'
        parts.append(f'<tbody class="apart">{line}{"".join(bounds)}</tbody>')
    return f'<div class="scroll"><table>{"".join(parts)}</table></div>'
