"""The charts of a suite's page, as figures that Plotly draws.

A figure is a plain mapping of ``data`` and ``layout``, so that making it costs no import of the
library. Each trace of a router carries its name as ``meta``, by which the page shows and hides it.
Names come from users: Plotly reads some HTML in texts, so they are escaped.
"""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from llmroute_gym.compare.html.groups import Group
from llmroute_gym.compare.html.palette import BAND, Style
from llmroute_gym.compare.html.ticks import log_ticks, stretched
from llmroute_gym.compare.statistics import Estimate
from llmroute_gym.compare.suites.result import ScenarioResult
from llmroute_gym.compare.suites.timeline import Course, Timeline
from llmroute_gym.ground.arrays import FloatArray
from llmroute_gym.ground.metrics import METRICS, latency_key

Figure = dict[str, Any]
MOMENTS = 160
"""So many times of a window are drawn."""
SHADES = ("#f3f5f9", "#c6d7e8", "#7fa8cf", "#3a6ea5", "#0b2a52")
"""From none to all: of growing darkness, so that any eye can order them."""
HEADING_PX = 28
"""Room for the heading of a strip."""
STRIPS = (
    ("waiting", "Waiting (requests in queue)"),
    ("running", "Batch (running requests)"),
    ("kv_usage", "KV cache in use (%)"),
    ("cached_share", "Cached share of prompt tokens (%)"),
)
GRID = {"gridcolor": "#e3e6ea", "zeroline": False, "linecolor": "#8a9099", "ticks": "outside"}


def tails(scenario: ScenarioResult, latency: str, styles: Mapping[str, Style]) -> Figure:
    """Draws the percentiles of a latency, both axes logarithmic, the bands their intervals."""
    tail = stretched(latency)
    traces = []
    for result in scenario.results:
        found = [result.metrics[key] for key in tail.keys]
        traces += _line(result.router, tail.places, found, styles, "s")
    layout = _layout("Percentile, tail stretched", f"{_short(latency)} (s)", log=True)
    layout["xaxis"] |= {"tickvals": tail.places, "ticktext": tail.labels}
    return _figure(traces, layout)


def along(group: Group, key: str, styles: Mapping[str, Style]) -> Figure:
    """Draws a metric against what the scenarios of a group differ in, with bands."""
    metric = METRICS[key]
    share = not metric.unit
    places: Sequence[float] | Sequence[str] = group.positions or [
        html.escape(one.name) for one in group.scenarios
    ]
    traces = []
    for router in styles:
        found = [_scaled(one.metric(router, key), 100 if share else 1) for one in group.scenarios]
        if any(found):
            unit = "%" if share else metric.unit
            draw = _line if group.positions else _marks
            traces += draw(router, places, found, styles, unit)
    title = f"{metric.title} ({'%' if share else metric.unit})"
    layout = _layout(group.axis, title, log=bool(metric.latency))
    if group.positions:
        layout["xaxis"] |= {"tickvals": list(group.positions)}
    else:
        # A long name of a scenario would take the room of the chart itself.
        layout["xaxis"] |= {"type": "category", "title": {"text": ""}, "tickangle": -35}
        layout["scattermode"] = "group"
    return _figure(traces, layout)


def across(
    scenarios: Sequence[ScenarioResult],
    found: Sequence[Mapping[str, Estimate]],
    title: str,
    styles: Mapping[str, Style],
) -> Figure:
    """Draws a share of each router, in per cent, one row per scenario.

    Marks of a row lie on one height; the page moves apart those that it shows.

    Args:
        scenarios: from top to bottom.
        found: router to estimate, for each of them.
        title: of the axis, with its unit.
        styles: of the routers; those of them that were found are drawn.
    """
    rows = list(range(len(scenarios)))
    traces = []
    for router, style in styles.items():
        each = [_scaled(one.get(router), 100) for one in found]
        if any(each):
            trace = _trace(router, style, mode="markers")
            trace |= dict(x=_values(each), y=rows, error_x=_bars(each, style))
            trace |= dict(customdata=_intervals(each), hovertemplate=_said("x", "%"))
            traces.append(trace)
    layout = _layout(title, "", log=False)
    layout["yaxis"] |= dict(
        range=[len(rows) - 0.5, -0.5],
        tickvals=rows,
        ticktext=[html.escape(one.name) for one in scenarios],
    )
    layout["xaxis"] |= dict(rangemode="tozero")
    layout["height"] = 90 + max(160, 70 * len(rows))
    # Stripes tell the rows apart where marks of one row lie on several heights.
    layout["shapes"] = [
        dict(type="rect", xref="paper", x0=0, x1=1, y0=row - 0.5, y1=row + 0.5, layer="below")
        | dict(fillcolor="#f5f7f9", line=dict(width=0))
        for row in rows[::2]
    ]
    return _figure(traces, layout) | dict(apart=True)


def course(timeline: Timeline, one: Course, style: Style) -> Figure:
    """Draws a router's decisions above what they did to each replica.

    The shades mean the same for all courses of a timeline.
    """
    end_s = min(timeline.duration_s, max(float(each.at_s[-1]) for each in timeline.courses))
    times = np.linspace(0, end_s, MOMENTS)
    known = (times >= one.at_s[0]) & (times <= one.at_s[-1])
    strips = [(name, title) for name, title in STRIPS if _most(timeline, name) > 0]
    replicas = list(range(one.waiting.shape[1]))
    height = 1 / (len(strips) + 1)
    strip_px = HEADING_PX + max(60, min(14 * len(replicas), 170))
    gap = height * HEADING_PX / strip_px
    layout = _layout("Time in the window (s)", "", log=False)
    layout["annotations"] = [_heading("Decisions: which replica got the request", 1.0)]
    layout["yaxis"] = _rows(replicas, 1 - height, 1 - gap)
    traces = [_decisions(one, style)]
    for number, (name, title) in enumerate(strips, start=2):
        top = 1 - (number - 1) * height
        scale = 100 if title.endswith("(%)") else 1
        drawn = np.where(known, getattr(one, name)[one.latest(times)].T * scale, np.nan)
        most = 100.0 if scale == 100 else max(_most(timeline, name), 1.0)
        bar = dict(
            len=(height - gap) * 1.1, y=top - (height + gap) / 2, thickness=8, nticks=4, xpad=4
        )
        traces.append(
            dict(type="heatmap", x=_rounded(times), y=replicas, z=[*map(_rounded, drawn)])
            | dict(yaxis=f"y{number}", zmin=0, zmax=most, colorscale=_scale(SHADES))
            | dict(colorbar=bar | dict(tickfont=dict(size=10), outlinewidth=0))
            | dict(hovertemplate="%{x:.1f} s, replica %{y}: %{z}<extra></extra>")
        )
        layout["annotations"].append(_heading(title, top))
        layout[f"yaxis{number}"] = _rows(replicas, top - height, top - gap)
    layout["xaxis"] |= dict(range=[0, end_s], anchor=f"y{len(strips) + 1}")
    layout["height"] = 68 + (len(strips) + 1) * strip_px
    layout["margin"] = dict(l=30, t=18, r=44, b=50)
    return _figure(traces, layout)


def _decisions(one: Course, style: Style) -> dict[str, Any]:
    placed = one.replica >= 0
    return dict(
        type="scatter",
        mode="markers",
        x=_rounded(one.at_s[placed]),
        y=one.replica[placed].tolist(),
        marker=dict(color=style.colour, size=4, opacity=0.7),
        hovertemplate="%{x:.2f} s to replica %{y}<extra></extra>",
    )


def _most(timeline: Timeline, name: str) -> float:
    """Returns the largest number of a strip over all courses, 0 where there is none."""
    return max(float(np.nanmax(getattr(one, name), initial=0)) for one in timeline.courses)


def _rows(replicas: Sequence[int], bottom: float, top: float) -> dict[str, Any]:
    """Returns an axis of replicas, the first on top."""
    labelled = replicas[:: max(1, math.ceil(len(replicas) / 5))]
    ends = [len(replicas) - 0.5, -0.5]
    small = dict(tickfont=dict(size=10), title=dict(text=""))
    return GRID | small | dict(domain=[max(0.0, bottom), top], tickvals=labelled, range=ends)


def _heading(text: str, top: float) -> dict[str, Any]:
    paper = dict(xref="paper", yref="paper", xanchor="left", yanchor="top", showarrow=False)
    return paper | dict(text=text, x=0, y=top, yshift=-5, font=dict(size=12))


def _scale(colours: Sequence[str]) -> list[list[float | str]]:
    return [[place / (len(colours) - 1), colour] for place, colour in enumerate(colours)]


def _layout(x: str, y: str, *, log: bool) -> dict[str, Any]:
    axis = GRID | dict(title=dict(text=y), type="log" if log else "linear", automargin=True)
    return dict(
        font=dict(family="system-ui, sans-serif", size=12, color="#1a1d21"),
        paper_bgcolor="#ffffff",
        plot_bgcolor="#ffffff",
        showlegend=False,
        margin=dict(l=52, r=10, t=10, b=50),
        height=320,
        dragmode=False,
        hovermode="closest",
        xaxis=GRID | dict(title=dict(text=x), automargin=True),
        yaxis=axis,
    )


def _figure(traces: list[dict[str, Any]], layout: dict[str, Any]) -> Figure:
    """Puts bands below all lines, and marks on a logarithmic axis."""
    traces = sorted(traces, key=lambda trace: "fill" not in trace)
    if layout["yaxis"].get("type") == "log":
        shown = [one for trace in traces for one in trace["y"] if one is not None and one > 0]
        if shown:
            ticks = log_ticks(min(shown), max(shown))
            layout["yaxis"] |= dict(tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])
    return dict(data=traces, layout=layout)


def _trace(router: str, style: Style, mode: str) -> dict[str, Any]:
    return dict(
        type="scatter",
        mode=mode,
        meta=router,
        name=html.escape(router),
        marker=dict(color=style.colour, symbol=style.mark, size=7),
        line=dict(color=style.colour, dash=style.line, width=2),
    )


def _line(
    router: str,
    places: Sequence[float] | Sequence[str],
    found: Sequence[Estimate | None],
    styles: Mapping[str, Style],
    unit: str,
) -> list[dict[str, Any]]:
    """Returns a line through the values and a band between the ends of their intervals."""
    style = styles[router]
    line = _trace(router, style, mode="lines+markers")
    line |= dict(x=list(places), y=_values(found), customdata=_intervals(found))
    line |= dict(hovertemplate=_said("y", unit))
    known = [
        (place, one)
        for place, one in zip(places, found, strict=True)
        if one is not None and math.isfinite(one.low) and math.isfinite(one.high)
    ]
    ends = [(place, one.low) for place, one in known]
    ends += [(place, one.high) for place, one in reversed(known)]
    band: dict[str, Any] = dict(type="scatter", mode="lines", meta=router, hoverinfo="skip")
    band["x"], band["y"] = [place for place, _ in ends], _rounded(end for _, end in ends)
    band |= dict(fill="toself", fillcolor=style.translucent(BAND), line=dict(width=0))
    return [band, line]


def _marks(
    router: str,
    places: Sequence[float] | Sequence[str],
    found: Sequence[Estimate | None],
    styles: Mapping[str, Style],
    unit: str,
) -> list[dict[str, Any]]:
    """Returns marks with bars from end to end of their intervals."""
    style = styles[router]
    marks = _trace(router, style, mode="markers")
    marks |= dict(x=list(places), y=_values(found), error_y=_bars(found, style))
    return [marks | dict(customdata=_intervals(found), hovertemplate=_said("y", unit))]


def _said(axis: str, unit: str) -> str:
    return f"%{{{axis}:.3~g}} {unit} (%{{customdata[0]:.3~g}} to %{{customdata[1]:.3~g}})"


def _bars(found: Sequence[Estimate | None], style: Style) -> dict[str, Any]:
    return dict(
        type="data",
        symmetric=False,
        thickness=1.5,
        width=0,
        color=style.translucent(0.55),
        array=_rounded(one.high - one.value if one else math.nan for one in found),
        arrayminus=_rounded(one.value - one.low if one else math.nan for one in found),
    )


def _values(found: Iterable[Estimate | None]) -> list[float | None]:
    return _rounded(one.value if one else math.nan for one in found)


def _intervals(found: Iterable[Estimate | None]) -> list[list[float | None]]:
    return [_rounded([one.low, one.high] if one else [math.nan] * 2) for one in found]


def _scaled(one: Estimate | None, scale: float) -> Estimate | None:
    if one is None or math.isnan(one.value):
        return None
    return Estimate(one.value * scale, one.low * scale, one.high * scale)


def _rounded(numbers: Iterable[float] | FloatArray) -> list[float | None]:
    """Returns numbers to four digits, enough for a screen; what is not finite is missing."""
    return [float(f"{one:.4g}") if math.isfinite(one) else None for one in numbers]


def _short(latency: str) -> str:
    return METRICS[latency_key(latency, "p50")].title.split()[0]
